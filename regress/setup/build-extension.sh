#!/bin/sh
# Builds the extension and the archive module for one Postgres, and installs them into it.
#
# usage: build-extension.sh PG_CONFIG [PROFILE]     PROFILE is dev (default) or release
#
# PG_CONFIG chooses the Postgres; DESTDIR is honoured. Plain cargo does it: pgrx's build script
# needs PGRX_PG_CONFIG_PATH and libclang, and the SQL is written by hand. Each major has a target
# directory of its own, since a change of PG_CONFIG makes pgrx generate its bindings again.
set -eu

pg_config=$1
profile=${2:-dev}
cd "$(dirname "$0")/../.."

major=$("$pg_config" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
target="${CARGO_TARGET_DIR:-$PWD/target}/pg$major"
PGRX_PG_CONFIG_PATH=$pg_config cargo build --locked --profile "$profile" --target-dir "$target" \
    -p pgark -p pgark-archive --no-default-features --features "pgark/pg$major,pgark-archive/pg$major"
case $profile in dev) built="$target/debug" ;; *) built="$target/$profile" ;; esac

libraries="${DESTDIR:-}$("$pg_config" --pkglibdir)"
share="${DESTDIR:-}$("$pg_config" --sharedir)/extension"

# Copies $1 to $2 unless it is there already: a second run then needs no rights. By rename, since
# a server that has the old library mapped must keep it.
put() {
    if cmp -s "$1" "$2"; then return; fi
    if ! install -m "$3" "$1" "$2.new" 2>/dev/null; then
        echo "cannot write $2; run as root: $0 $pg_config $profile" >&2
        exit 1
    fi
    mv -f "$2.new" "$2"
}
if [ -n "${DESTDIR:-}" ]; then mkdir -p "$libraries" "$share"; fi
put "$built/libpgark.so" "$libraries/pgark.so" 755
put "$built/libpgark_archive.so" "$libraries/pgark_archive.so" 755
put extension/pgark.control "$share/pgark.control" 644
upgrades=sql/pgark--*.sql
if [ "$profile" = dev ]; then upgrades="$upgrades regress/upgrade/pgark--*.sql"; fi
for sql in $upgrades; do
    put "$sql" "$share/$(basename "$sql")" 644
done
echo "installed pgark for Postgres $major into $libraries"
