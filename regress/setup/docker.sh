#!/bin/sh
# Unpacks Docker's engine as Debian 12 packages it (docker.io, containerd, runc), outside the clone: nothing
# is installed, so no service starts. A static busybox lies beside it, for images of the tests. Running the
# engine needs root; the tests start their own, in folders and at a socket of theirs.
#
# usage: docker.sh [--path]     prints the path of dockerd; --path makes nothing (exit 1: not made yet)
set -eu
. "$(dirname "$0")/debian.sh"

recipe=2
suite=bookworm
packages="docker.io containerd runc libdevmapper1.02.1 libseccomp2 busybox-static"

cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$(printf '%s|%s|%s' "$recipe" "$suite" "$packages" | sha256sum | cut -c1-12)
root="$cache/docker-$hash"
shown="$root/dockerd"

if [ "${1:-}" = "--path" ]; then
    echo "$shown"
    [ -e "$root/.pgark-ready" ]
    exit
fi
if [ -e "$root/.pgark-ready" ]; then
    echo "$shown"
    exit 0
fi
if ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
    echo "docker.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.docker.lock"
flock 9
if [ -e "$root/.pgark-ready" ]; then
    echo "$shown"
    exit 0
fi

{
    rm -rf "$root"
    # shellcheck disable=SC2086
    debian_unpack "$suite" "$root.making" $packages
    # dockerd looks for containerd and runc in PATH, and hands both variables on.
    {
        echo '#!/bin/sh'
        echo 'root=$(dirname "$(readlink -f "$0")")'
        echo 'export PATH="$root/usr/sbin:$root/usr/bin:$root/sbin:$root/bin:$PATH"'
        echo 'export LD_LIBRARY_PATH="$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu"'
        echo 'exec "$root/usr/sbin/dockerd" "$@"'
    } >"$root.making/dockerd"
    chmod 755 "$root.making/dockerd"
    cp "$root.making/bin/busybox" "$root.making/busybox"
    chmod -R go+rX "$root.making"
    "$root.making/dockerd" --version
    touch "$root.making/.pgark-ready"
    mv -T "$root.making" "$root"
} >&2
echo "$shown"
