#!/bin/sh
# Makes the Python environment that holds a real Chroma server, and prints the path of its python.
#
# The wheel alone: the server is a shared library in it, and none of its 80 dependencies is needed to run
# it (`chromadb_rust_bindings.cli`). As the very file that chroma-requirements.txt names by its digest.
#
# usage: chroma.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

requirements=$(cd "$(dirname "$0")" && pwd)/chroma-requirements.txt
system=/usr/bin/python3
recipe=1

if ! version=$("$system" --version 2>/dev/null); then
    echo "chroma.sh: $system is missing; as root, run: apt-get install python3-venv" >&2
    exit 1
fi
cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$({ printf '%s|%s|' "$recipe" "$version" && cat "$requirements"; } | sha256sum | cut -c1-12)
root="$cache/chroma-$hash"

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
    echo "chroma.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.chroma.lock"
flock 9
if [ ! -e "$root/.pgark-ready" ]; then
    rm -rf "$root"
    {
        "$system" -m venv "$root"
        "$root/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps --require-hashes --only-binary :all: -r "$requirements"
        "$root/bin/python" -I -c 'import chromadb_rust_bindings'
        chmod -R go+rX "$root"
        touch "$root/.pgark-ready"
    } >&2
fi
echo "$root/bin/python"
