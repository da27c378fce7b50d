# Sourced by the scripts that make a Python environment, with `$0` theirs. Each sets:
#   name          of the environment, and of its lock
#   requirements  the file that names what is installed, by digests
#   modules       what must be importable then
#   recipe        a number that moves when it is to be made anew
#   options       of venv (default: none)
#   packages      Debian's, that it needs
#
# Prints the path of its python. With --path as the first argument: exit 1 when it is not made yet, and
# makes nothing. It lies outside the clone, like the chroots, under a name that holds the hash of
# everything it is made of.

self=$(basename "$0")
system=/usr/bin/python3
if ! version=$("$system" --version 2>/dev/null); then
    echo "$self: $system is missing; as root, run: apt-get install $packages" >&2
    exit 1
fi
cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$({ printf '%s|%s|' "$recipe" "$version" && cat "$requirements"; } | sha256sum | cut -c1-12)
root="$cache/$name-$hash"

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
    echo "$self: cannot write $cache; run: sudo PGARK_CACHE=$cache $0" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.$name.lock"
flock 9
if [ ! -e "$root/.pgark-ready" ]; then
    # What an interrupted run left is thrown away. Made in its place: an environment cannot move.
    rm -rf "$root"
    {
        # shellcheck disable=SC2086 # options are words
        "$system" -m venv ${options:-} "$root"
        "$root/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps --require-hashes --only-binary :all: -r "$requirements"
        "$root/bin/python" -I -c "import $modules"
        chmod -R go+rX "$root"
        touch "$root/.pgark-ready"
    } >&2
fi
echo "$root/bin/python"
