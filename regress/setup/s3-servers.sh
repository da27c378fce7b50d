#!/bin/sh
# Makes what the S3 tests talk to, outside the clone: moto (an emulator, from PyPI, seconds) and Ceph's
# radosgw (a real S3 server, from Debian trixie, two minutes).
#
# usage: s3-servers.sh [--path] moto|radosgw
#   moto     prints the path of moto_server
#   radosgw  prints the chroot that holds ceph-mon, ceph-osd and radosgw
#   --path   prints the path (exit 1: not made yet) and makes nothing
set -eu

print_only=
if [ "${1:-}" = "--path" ]; then
    print_only=yes
    shift
fi
here=$(cd "$(dirname "$0")" && pwd)
cache="${PGARK_CACHE:-/var/cache/pgark}"
what=${1:-}
case $what in
moto)
    requirements="$here/moto-requirements.txt"
    recipe="1|$(/usr/bin/python3 --version)|$(cat "$requirements")"
    ;;
radosgw)
    suite=trixie
    packages="ceph-mon ceph-osd radosgw"
    recipe="1|$suite|$packages"
    ;;
*)
    echo "usage: s3-servers.sh [--path] moto|radosgw" >&2
    exit 2
    ;;
esac
root="$cache/$what-$(printf '%s' "$recipe" | sha256sum | cut -c1-12)"
shown=$root
if [ "$what" = moto ]; then shown="$root/bin/moto_server"; fi

if [ -n "$print_only" ]; then
    echo "$shown"
    [ -e "$root/.pgark-ready" ]
    exit
fi
if [ -e "$root/.pgark-ready" ]; then
    echo "$shown"
    exit 0
fi
if ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
    echo "s3-servers.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0 $what" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made. What an interrupted run left is thrown
# away: half of it is never continued.
exec 9>"$cache/.$what.lock"
flock 9
if [ -e "$root/.pgark-ready" ]; then
    echo "$shown"
    exit 0
fi

make_moto() {
    rm -rf "$root"
    /usr/bin/python3 -m venv "$root"
    "$root/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements"
    "$root/bin/python" -I -c 'import moto.server'
    chmod -R go+rX "$root"
    touch "$root/.pgark-ready"
}

work="$root.making"
unmount() {
    if mountpoint -q "$work/proc"; then umount "$work/proc"; fi
}

make_radosgw() {
    if [ "$(id -u)" != 0 ]; then
        echo "s3-servers.sh: only root can make the chroot; run: sudo PGARK_CACHE=$cache $0 radosgw" >&2
        exit 1
    fi
    mirror=$(
        {
            cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs:[[:space:]]*//p' | tr ' ' '\n'
            cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
                sed -n 's/^deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\).*/\2/p'
        } | grep -E '/debian/?$' | head -n 1
    )
    if [ -z "$mirror" ]; then
        echo "s3-servers.sh: no Debian mirror found in apt's sources" >&2
        exit 1
    fi
    unmount
    rm -rf "$work"
    trap unmount EXIT
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work" "$mirror"
    cp /etc/resolv.conf "$work/etc/resolv.conf"
    cp -r /etc/apt/apt.conf.d/. "$work/etc/apt/apt.conf.d/" 2>/dev/null || true
    # No daemons started in the chroot.
    printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d"
    chmod 755 "$work/usr/sbin/policy-rc.d"
    mount -t proc proc "$work/proc"
    DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$work" apt-get update
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$work" \
        apt-get install -y --no-install-recommends $packages
    chroot "$work" apt-get clean
    rm -rf "$work/var/lib/apt/lists"
    unmount
    mv "$work" "$root"
    touch "$root/.pgark-ready"
}

"make_$what" >&2
echo "$shown"
