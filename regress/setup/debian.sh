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

# debian_unpack SUITE DIRECTORY PACKAGE...: downloads packages and unpacks them into a folder: nothing is
# installed, so no service starts. What an interrupted run left there is thrown away.
debian_unpack() {
    suite=$1
    folder=$2
    shift 2
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        echo "$(basename "$0"): no Debian mirror found in /etc/apt/sources.list or /etc/apt/sources.list.d" >&2
        exit 1
    fi
    rm -rf "$folder"
    apt="$folder/apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$folder/debs"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
    : >"$apt/status"
    # apt with lists of its own: the host's stay what they are.
    ask="apt-get -q -o Dir::State=$apt -o Dir::State::status=$apt/status -o Dir::Cache=$apt/cache
        -o Dir::Etc::sourcelist=$apt/sources.list -o Dir::Etc::sourceparts=/dev/null
        -o APT::Sandbox::User=$(id -un)"
    $ask update
    (cd "$folder/debs" && $ask download "$@")
    for deb in "$folder"/debs/*.deb; do dpkg -x "$deb" "$folder"; done
    rm -rf "$apt" "$folder/debs"
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
