#!/bin/sh
# Makes the Python environment that holds MinIO's own client library, and prints the path of its python. The
# library is the judge of what pgark sends to MinIO's admin API (minio_server.py).
#
# As the very files that minio-requirements.txt names by their digests.
#
# usage: minio-client.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

requirements=$(cd "$(dirname "$0")" && pwd)/minio-requirements.txt
system=/usr/bin/python3
recipe=1

if ! version=$("$system" --version 2>/dev/null); then
    echo "minio-client.sh: $system is missing; as root, run: apt-get install python3-venv" >&2
    exit 1
fi
cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$({ printf '%s|%s|' "$recipe" "$version" && cat "$requirements"; } | sha256sum | cut -c1-12)
root="$cache/minio-client-$hash"

if [ "${1:-}" = "--path" ]; then
    echo "$root/bin/python"
    [ -e "$root/.pgark-ready" ]
    exit
fi
if [ -e "$root/.pgark-ready" ]; then
    echo "$root/bin/python"
    exit 0
fi
if ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
    echo "minio-client.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.minio-client.lock"
flock 9
if [ ! -e "$root/.pgark-ready" ]; then
    rm -rf "$root"
    {
        "$system" -m venv "$root"
        "$root/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps --require-hashes --only-binary :all: -r "$requirements"
        "$root/bin/python" -I -c 'import minio.crypto, minio.minioadmin'
        chmod -R go+rX "$root"
        touch "$root/.pgark-ready"
    } >&2
fi
echo "$root/bin/python"
