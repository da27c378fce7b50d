# Sourced by the scripts that need a newer Debian's programs: makes a chroot of that Debian. Those
# programs need a newer glibc than bookworm has, so they cannot run on the host directly.

# Prints the mirror that this host uses itself, both formats of apt's sources: the first one that
# serves Debian proper (".../debian", not ".../debian-security", not a third party's).
debian_mirror() {
    {
        cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs:[[:space:]]*//p' | tr ' ' '\n'
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
            sed -n 's/^deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\).*/\2/p'
    } | grep -E '/debian/?$' | head -n 1
}

# debian_begin SUITE DIRECTORY: a minimal chroot, apt's lists read, ready for in_chroot. What an
# interrupted run left there is thrown away: half a chroot is never continued.
debian_begin() {
    suite=$1
    work=$2
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        echo "$(basename "$0"): no Debian mirror found in /etc/apt/sources.list or /etc/apt/sources.list.d" >&2
        exit 1
    fi
    debian_unmount
    rm -rf "$work"
    trap debian_unmount EXIT
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work" "$mirror"
    cp /etc/resolv.conf "$work/etc/resolv.conf"
    # Proxies and the like that the host's apt needs, its sources excepted.
    cp -r /etc/apt/apt.conf.d/. "$work/etc/apt/apt.conf.d/" 2>/dev/null || true
    # No daemons started in the chroot.
    printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d"
    chmod 755 "$work/usr/sbin/policy-rc.d"
    mount -t proc proc "$work/proc"
    in_chroot apt-get update
}

in_chroot() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$work" "$@"; }

debian_unmount() {
    if mountpoint -q "$work/proc"; then umount "$work/proc"; fi
}

# debian_end DIRECTORY: gives the chroot its final name, in one step.
debian_end() {
    in_chroot apt-get clean
    rm -rf "$work/var/lib/apt/lists"
    debian_unmount
    touch "$work/.pgark-ready"
    mv -T "$work" "$1"
}
