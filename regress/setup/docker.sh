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

mirror=$(debian_mirror)
if [ -z "$mirror" ]; then
    echo "docker.sh: no Debian mirror found in /etc/apt/sources.list or /etc/apt/sources.list.d" >&2
    exit 1
fi
{
    # What an interrupted run left is thrown away.
    rm -rf "$root" "$root.making"
    mkdir -p "$root.making/apt/lists/partial" "$root.making/apt/cache/archives/partial" "$root.making/debs"
    apt="$root.making/apt"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
    : >"$apt/status"
    # apt with lists of its own: the host's stay what they are.
    ask="apt-get -q -o Dir::State=$apt -o Dir::State::status=$apt/status -o Dir::Cache=$apt/cache
        -o Dir::Etc::sourcelist=$apt/sources.list -o Dir::Etc::sourceparts=/dev/null
        -o APT::Sandbox::User=$(id -un)"
    $ask update
    (cd "$root.making/debs" && $ask download $packages)
    for deb in "$root.making"/debs/*.deb; do dpkg -x "$deb" "$root.making"; done
    rm -rf "$root.making/apt" "$root.making/debs"
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
