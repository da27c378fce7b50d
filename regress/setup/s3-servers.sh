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
. "$here/debian.sh"
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

make_radosgw() {
    if [ "$(id -u)" != 0 ]; then
        echo "s3-servers.sh: only root can make the chroot; run: sudo PGARK_CACHE=$cache $0 radosgw" >&2
        exit 1
    fi
    debian_begin "$suite" "$root.making"
    # shellcheck disable=SC2086
    in_chroot apt-get install -y --no-install-recommends $packages
    debian_end "$root"
}

"make_$what" >&2
echo "$shown"
