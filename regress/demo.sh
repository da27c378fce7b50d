#!/bin/bash
# The main job in a minute: archive WAL, take a backup, lose a table, find the moment, get it back.
#
# usage: demo.sh PGARK_BINARY ARCHIVE_MODULE.so
#
# Everything happens below one private folder, which is removed at the end; PGARK_DEMO_KEEP=1 leaves
# it. As root the demo runs as the user postgres, since a server refuses root.
set -euo pipefail

bin=/usr/lib/postgresql/15/bin
# A locale that a terminal brings may not exist here, and PGUSER and the like are not the demo's.
export LC_ALL=C.UTF-8
for name in "${!PG@}"; do
    if [ "$name" != PGARK_DEMO_KEEP ]; then unset "$name"; fi
done
if [ "$(id -u)" = 0 ]; then
    # Root's own TMPDIR may be closed to others.
    unset TMPDIR
    stage=$(mktemp -d /tmp/pgark-demo-bin.XXXXXX)
    trap 'rm -rf "$stage"' EXIT
    install -m 755 "$1" "$stage/pgark"
    install -m 755 "$2" "$stage/pgark_archive.so"
    install -m 755 "$0" "$stage/demo.sh"
    chmod 755 "$stage"
    cd /
    runuser -u postgres -- env PGARK_DEMO_KEEP="${PGARK_DEMO_KEEP:-}" \
        "$stage/demo.sh" "$stage/pgark" "$stage/pgark_archive.so"
    exit
fi

here=$(mktemp -d "${TMPDIR:-/tmp}/pgark-demo.XXXXXX")
agent=
finish() {
    status=$?
    for data in "$here/data" "$here/restored"; do
        if [ -f "$data/postmaster.pid" ]; then "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null || true; fi
    done
    if [ -n "$agent" ]; then kill "$agent" 2>/dev/null && wait "$agent" || true; fi
    if [ "$status" != 0 ]; then
        echo "the demo failed; its logs:" >&2
        tail -n 20 "$here"/*.log >&2 || true
    fi
    if [ -n "${PGARK_DEMO_KEEP:-}" ]; then echo "left in $here"; else rm -rf "$here"; fi
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }
show() {
    printf '$ %s\n' "$*"
    "$@"
}
pgark() { "$here/bin/pgark" --log-level warn "$@"; }
sql() { "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$here" -p "$port" -d postgres -c "$1"; }
export -f pgark

mkdir -p "$here/bin" "$here/lib" "$here/run"
chmod 700 "$here/run"
cp "$1" "$here/bin/pgark"
cp "$2" "$here/lib/pgark_archive.so"
export PGARK_CONFIG=$here/pgark.toml
# The port is only part of the socket's name: nothing listens on the network.
port=54321

step "a cluster that archives through pgark's archive module"
"$bin/initdb" -D "$here/data" --auth=trust --data-checksums >/dev/null
cat >>"$here/data/postgresql.conf" <<EOF
listen_addresses = ''
unix_socket_directories = '$here'
port = $port
archive_mode = on
archive_library = 'pgark_archive'
dynamic_library_path = '$here/lib:\$libdir'
pgark_archive.socket = '$here/run/agent.sock'
EOF
cat >"$PGARK_CONFIG" <<EOF
[cluster]
name = "main"
conninfo = "host=$here port=$port dbname=postgres"
data_directory = "$here/data"

[agent]
socket = "$here/run/agent.sock"
state_dir = "$here/state"

[repository.local]
kind = "posix"
path = "$here/repository"
EOF
mkdir "$here/state"
"$bin/pg_ctl" -w -D "$here/data" -l "$here/server.log" start >/dev/null
show pgark init --no-encryption
"$here/bin/pgark" --log-level warn agent 2>"$here/agent.log" &
agent=$!
sql "CREATE TABLE orders (id bigint PRIMARY KEY, item text, price numeric)"
sql "INSERT INTO orders SELECT n, 'item ' || n, n * 1.25 FROM generate_series(1, 50000) n"
show pgark check

step "a backup"
show pgark backup

step "life goes on: 25000 more orders, and then a mistake"
sql "INSERT INTO orders SELECT n, 'item ' || n, n * 1.25 FROM generate_series(50001, 75000) n"
before=$(sql "SELECT count(*), sum(price), md5(string_agg(item, ',' ORDER BY id)) FROM orders")
echo "orders holds: $before"
sql "DROP TABLE orders"
sql "CREATE TABLE unrelated AS SELECT 1"
sql "SELECT pg_switch_wal()" >/dev/null
pgark check >/dev/null

step "when was it dropped?"
show pgark wal find --relation public.orders
lsn=$(pgark wal find --relation public.orders --output json |
    sed -n 's/.*"lsn": *"\([0-9A-F]*\/[0-9A-F]*\)".*/\1/p' | tail -n 1)
test -n "$lsn"

step "back to just before it, in another directory"
show pgark restore --target-dir "$here/restored" --target-lsn "$lsn" --target-exclusive
echo "port = $((port + 1))" >>"$here/restored/postgresql.auto.conf"
"$bin/pg_ctl" -w -D "$here/restored" -l "$here/restored.log" start >/dev/null
port=$((port + 1))
for _ in $(seq 100); do
    if [ "$(sql 'SELECT pg_is_in_recovery()')" = f ]; then break; fi
    sleep 0.1
done
after=$(sql "SELECT count(*), sum(price), md5(string_agg(item, ',' ORDER BY id)) FROM orders")
echo "orders holds: $after"
test "$before" = "$after"
test "$(sql "SELECT to_regclass('unrelated') IS NULL")" = t

step "the $(echo "$after" | cut -d'|' -f1) rows are back"
