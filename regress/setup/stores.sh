#!/bin/sh
# Unpacks the stores that the tests of components back up, as Debian packages them, outside the clone:
# nothing is installed, so no service starts and no root is needed.
#
# usage: stores.sh [--path] redis|redis-8|valkey|prometheus
#   redis       prints the path of redis-server 7.0, of bookworm
#   redis-8     a command that runs redis-server 8.0, of trixie
#   valkey      a command that runs valkey-server 8.1, of trixie
#   prometheus  prints the path of prometheus, of bookworm; promtool lies beside it
#   --path      prints it (exit 1: not made yet) and makes nothing
set -eu
. "$(dirname "$0")/debian.sh"

print_only=
if [ "${1:-}" = "--path" ]; then
    print_only=yes
    shift
fi
what=${1:-}
# Debian's redis-server is a link to redis-check-rdb of redis-tools: which of them it is says its name.
libraries="libc6 libssl3t64 libjemalloc2 libsystemd0 liblzf1 libcap2 libatomic1 libzstd1 zlib1g libgcc-s1 libstdc++6"
case $what in
redis) suite=bookworm packages="redis-tools libjemalloc2 liblzf1" program=usr/bin/redis-check-rdb name=redis-server ;;
redis-8) suite=trixie packages="redis-tools $libraries" program=usr/bin/redis-check-rdb name=redis-server ;;
valkey) suite=trixie packages="valkey-tools $libraries" program=usr/bin/valkey-check-rdb name=valkey-server ;;
prometheus) suite=bookworm packages=prometheus program=usr/bin/prometheus name=prometheus ;;
*)
    echo "usage: stores.sh [--path] redis|redis-8|valkey|prometheus" >&2
    exit 2
    ;;
esac
recipe=2

cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$(printf '%s|%s|%s|%s' "$recipe" "$suite" "$packages" "$program" | sha256sum | cut -c1-12)
root="$cache/$what-$hash"
shown="$root/usr/bin/$name"

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
    echo "stores.sh: cannot write $cache; run: sudo PGARK_CACHE=$cache $0 $what" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds it made.
exec 9>"$cache/.$what.lock"
flock 9
if [ -e "$root/.pgark-ready" ]; then
    echo "$shown"
    exit 0
fi

{
    rm -rf "$root"
    # shellcheck disable=SC2086
    debian_unpack "$suite" "$root.making" $packages
    if [ "$program" != "usr/bin/$name" ]; then
        libs="usr/lib/x86_64-linux-gnu"
        if [ "$suite" = bookworm ]; then
            # The host is bookworm: its own loader and C library, the rest from here.
            line="exec env LD_LIBRARY_PATH=\"\$root/$libs\" \"\$root/libexec/$name\" \"\$@\""
        else
            # A newer C library than the host's, with its own loader.
            line="exec \"\$root/$libs/ld-linux-x86-64.so.2\" --library-path \"\$root/$libs\" --argv0 $name \"\$root/libexec/$name\" \"\$@\""
        fi
        mkdir -p "$root.making/libexec"
        cp "$root.making/$program" "$root.making/libexec/$name"
        rm -f "$root.making/usr/bin/$name"
        {
            echo '#!/bin/sh'
            echo 'root=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")'
            echo "$line"
        } >"$root.making/usr/bin/$name"
        chmod 755 "$root.making/usr/bin/$name"
    fi
    chmod -R go+rX "$root.making"
    "$root.making/usr/bin/$name" --version
    touch "$root.making/.pgark-ready"
    mv -T "$root.making" "$root"
} >&2
echo "$shown"
