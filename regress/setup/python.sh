#!/bin/sh
# Makes the Python that the independent reader of the format runs in, and prints its path.
#
# zstandard is Debian's, and so are the ciphers (cryptography, argon2); blake3 is in no Debian package, so it comes through pip, as the very files
# that regress/reader/requirements.txt names by their digests. Outside the clone, like the chroots,
# under a name that holds the hash of everything it is made of.
#
# usage: python.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

requirements=$(cd "$(dirname "$0")/.." && pwd)/reader/requirements.txt
system=/usr/bin/python3
recipe=2

if ! version=$("$system" --version 2>/dev/null); then
    echo "python.sh: $system is missing; as root, run: apt-get install python3-venv python3-zstandard python3-cryptography python3-argon2" >&2
    exit 1
fi
cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$({ printf '%s|%s|' "$recipe" "$version" && cat "$requirements"; } | sha256sum | cut -c1-12)
root="$cache/reader-$hash"

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
    echo "python.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.reader.lock"
flock 9
if [ ! -e "$root/.pgark-ready" ]; then
    # What an interrupted run left is thrown away. Made in its place: an environment cannot move.
    rm -rf "$root"
    {
        "$system" -m venv --system-site-packages "$root"
        "$root/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps --require-hashes --only-binary :all: -r "$requirements"
        "$root/bin/python" -I -c 'import argon2, blake3, cryptography, zstandard'
        chmod -R go+rX "$root"
        touch "$root/.pgark-ready"
    } >&2
fi
echo "$root/bin/python"
