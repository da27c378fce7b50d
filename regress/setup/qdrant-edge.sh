#!/bin/sh
# Makes the Python environment that qdrant_fake.py runs in, and prints the path of its python.
#
# No package holds a Qdrant server. Its storage engine is one (`qdrant-edge-py`): so the snapshots of the
# fake are genuine. As the very file that qdrant-requirements.txt names by its digest.
#
# usage: qdrant-edge.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

requirements=$(cd "$(dirname "$0")" && pwd)/qdrant-requirements.txt
system=/usr/bin/python3
recipe=1

if ! version=$("$system" --version 2>/dev/null); then
    echo "qdrant-edge.sh: $system is missing; as root, run: apt-get install python3-venv" >&2
    exit 1
fi
cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$({ printf '%s|%s|' "$recipe" "$version" && cat "$requirements"; } | sha256sum | cut -c1-12)
root="$cache/qdrant-edge-$hash"

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
    echo "qdrant-edge.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.qdrant-edge.lock"
flock 9
if [ ! -e "$root/.pgark-ready" ]; then
    rm -rf "$root"
    {
        "$system" -m venv "$root"
        "$root/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps --require-hashes --only-binary :all: -r "$requirements"
        "$root/bin/python" -I -c 'import qdrant_edge'
        chmod -R go+rX "$root"
        touch "$root/.pgark-ready"
    } >&2
fi
echo "$root/bin/python"
