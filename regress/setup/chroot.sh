#!/bin/sh
# Makes a Debian chroot that the end-to-end tests run a newer Postgres in, and prints its path.
#
# The chroot lives outside the clone, under a name that holds the hash of everything it is
# made of: the same recipe is made once per host, and a changed recipe gets a directory of its own.
#
# usage: chroot.sh [--path] [MAJOR]
#   --path   prints where it is (exit 1: not made yet) and makes nothing
#   MAJOR    17 (default), in trixie; 18, in sid, for that part of the full tier alone
set -eu
. "$(dirname "$0")/debian.sh"

print_only=
if [ "${1:-}" = "--path" ]; then
    print_only=yes
    shift
fi
major=${1:-17}
case $major in
17)
    suite=trixie
    packages="postgresql-17 postgresql-17-pgvector"
    ;;
18)
    suite=sid
    packages="postgresql-18"
    ;;
*)
    echo "usage: chroot.sh [--path] [17|18]" >&2
    exit 2
    ;;
esac
headers="postgresql-server-dev-$major"
recipe=3

cache="${PGARK_CACHE:-/var/cache/pgark}"
hash=$(printf '%s|%s|%s|%s' "$recipe" "$suite" "$packages" "$headers" | sha256sum | cut -c1-12)
root="$cache/$suite-$hash"

if [ -n "$print_only" ]; then
    echo "$root"
    [ -e "$root/.pgark-ready" ]
    exit
fi
if [ -e "$root/.pgark-ready" ]; then
    echo "$root"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "chroot.sh: only root can make the $suite chroot; run: sudo PGARK_CACHE=$cache $0 $major" >&2
    exit 1
fi

# One maker at a time; a second waits and then finds the chroot made.
mkdir -p "$cache"
exec 9>"$cache/.$suite.lock"
flock 9
if [ -e "$root/.pgark-ready" ]; then
    echo "$root"
    exit 0
fi

{
    debian_begin "$suite" "$root.making"
    # No cluster of the distribution's own.
    mkdir -p "$work/etc/postgresql-common"
    echo 'create_main_cluster = false' >"$work/etc/postgresql-common/createcluster.conf"
    # shellcheck disable=SC2086
    in_chroot apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold $packages
    # Headers alone, to build the extension for this major: the package itself would pull in clang.
    # shellcheck disable=SC2086
    in_chroot sh -c "cd /tmp && apt-get download $headers && for deb in *.deb; do dpkg -x \$deb /; done && rm *.deb"
    # Its pg_config does not run on the host; its answers, paths below the chroot, do.
    in_chroot "/usr/lib/postgresql/$major/bin/pg_config" >"$work/pg_config.txt"
    cat >"$work/pg_config" <<'SCRIPT'
#!/bin/sh
# pg_config of the Postgres in this chroot, with paths as the host sees them.
root=$(dirname "$(readlink -f "$0")")
for option in "$@"; do
    key=$(echo "${option#--}" | tr '[:lower:]' '[:upper:]')
    sed -n "s|^$key = /|$root/|p; t; s|^$key = ||p" "$root/pg_config.txt"
done
SCRIPT
    chmod 755 "$work/pg_config"
    debian_end "$root"
} >&2
echo "$root"
