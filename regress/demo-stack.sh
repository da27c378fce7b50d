#!/bin/bash
# A stack around Postgres at one moment: Redis, Chroma and files, and Elasticsearch where
# setup/search.sh has made it, are backed up with the cluster as a set while an application writes into
# all of them; all of it is wrecked, and restore-set brings it back.
#
# usage: demo-stack.sh PGARK_BINARY
#
# Everything happens below one private folder, which is removed at the end; PGARK_DEMO_KEEP=1 leaves
# it. As root the demo runs as the user postgres, since a server refuses root.
set -euo pipefail

bin=/usr/lib/postgresql/15/bin
export LC_ALL=C.UTF-8
for name in "${!PG@}"; do
    if [ "$name" != PGARK_DEMO_KEEP ]; then unset "$name"; fi
done
setup=$(cd "$(dirname "$0")" && pwd)/setup
if [ "$(id -u)" = 0 ]; then
    unset TMPDIR
    redis=$("$setup/stores.sh" redis)
    chroma=$("$setup/chroma.sh")
    search=$("$setup/search.sh" --path elasticsearch) || search=
    stage=$(mktemp -d /tmp/pgark-demo-bin.XXXXXX)
    trap 'rm -rf "$stage"' EXIT
    install -m 755 "$1" "$stage/pgark"
    install -m 755 "$0" "$stage/demo-stack.sh"
    chmod 755 "$stage"
    cd /
    runuser -u postgres -- env PGARK_DEMO_KEEP="${PGARK_DEMO_KEEP:-}" REDIS="$redis" CHROMA="$chroma" SEARCH="$search" \
        "$stage/demo-stack.sh" "$stage/pgark"
    exit
fi
redis=${REDIS:-$("$setup/stores.sh" redis)}
chroma=${CHROMA:-$("$setup/chroma.sh")}
if [ -z "${SEARCH+set}" ]; then SEARCH=$("$setup/search.sh" --path elasticsearch) || SEARCH=; fi
if [ -d "$chroma" ]; then chroma=$chroma/bin/python; fi
# Where Debian's package would have put them.
root=$(dirname "$(dirname "$(dirname "$redis")")")
redis() { LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu" "$redis" "$@"; }

here=$(mktemp -d "${TMPDIR:-/tmp}/pgark-stack.XXXXXX")
children=
finish() {
    status=$?
    for data in "$here/data" "$here/restored"; do
        if [ -f "$data/postmaster.pid" ]; then "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null || true; fi
    done
    for child in $children; do kill "$child" 2>/dev/null && wait "$child" || true; done
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
sql() { "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$here" -d postgres -c "$1"; }
# One command over Redis's socket; the last line of its answer.
cache() {
    python3 - "$here/redis.sock" "$@" <<'PYTHON'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
words = [w.encode() for w in sys.argv[2:]]
s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
print(s.recv(65536).decode().strip().splitlines()[-1])
PYTHON
}
# METHOD PATH [JSON] below the default database of Chroma.
vectors() {
    python3 - "$port" "$@" <<'PYTHON'
import sys, urllib.request
port, method, path = sys.argv[1:4]
body = sys.argv[4].encode() if len(sys.argv) > 4 else None
url = f"http://127.0.0.1:{port}/api/v2/tenants/default_tenant/databases/default_database/{path}"
request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
print(urllib.request.urlopen(request, timeout=30).read().decode())
PYTHON
}
# FIELD METHOD PATH [JSON LINES]: a field of Elasticsearch's answer.
index() {
    python3 - "$search_port" "$@" <<'PYTHON'
import json, sys, urllib.request
port, field, method, path = sys.argv[1:5]
body = sys.argv[5].encode() if len(sys.argv) > 5 else None
request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", body, {"Content-Type": "application/x-ndjson"}, method=method)
answer = json.load(urllib.request.urlopen(request, timeout=60))
if answer.get("errors"): sys.exit(f"{path}: {answer}")
print(answer.get(field, ""))
PYTHON
}
until_ok() {
    for _ in $(seq 900); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "not ready: $*" >&2
    return 1
}

mkdir -p "$here/bin" "$here/run" "$here/state" "$here/documents" "$here/redis" "$here/chroma"
chmod 700 "$here/run" "$here/state"
cp "$1" "$here/bin/pgark"
export PGARK_CONFIG=$here/pgark.toml
read -r port search_port transport_port < <(python3 -c 'import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))')

step "a cluster that archives, Redis, Chroma${SEARCH:+, Elasticsearch} and a folder of documents"
if [ -z "$SEARCH" ]; then echo "(for Elasticsearch as well: regress/setup/search.sh elasticsearch)"; fi
"$bin/initdb" -D "$here/data" --auth=trust --data-checksums >/dev/null
cat >>"$here/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$here'
archive_mode = on
archive_command = '$here/bin/pgark --config $PGARK_CONFIG --log-level warn archive-push %p'
CONF
cat >"$here/start.sh" <<SCRIPT
exec $bin/pg_ctl -s -w -D "\$PGARK_TARGET_DIR" -l $here/restored.log start
SCRIPT
cat >"$PGARK_CONFIG" <<CONF
[cluster]
name = "main"
conninfo = "host=$here dbname=postgres"
data_directory = "$here/data"
after_restore = ["/bin/sh", "$here/start.sh"]

[agent]
socket = "$here/run/agent.sock"
state_dir = "$here/state"

[repository.local]
kind = "posix"
path = "$here/repository"

[component.cache]
kind = "redis"
url = "unix://$here/redis.sock"

[component.vectors]
kind = "chroma"
url = "http://127.0.0.1:$port"

[component.documents]
kind = "files"
paths = ["$here/documents"]

[component.documents.reconcile]
query = "SELECT id || '.txt' FROM public.document"

# The application ends what it writes, and waits: then every store is at the same moment.
[backup_set]
quiesce = "app"
app_quiesce = ["/bin/sh", "$here/pause.sh"]
app_release = ["/bin/rm", "-f", "$here/pause"]
CONF
if [ -n "$SEARCH" ]; then
    cat >>"$PGARK_CONFIG" <<CONF

[component.search]
kind = "elasticsearch"
url = "http://127.0.0.1:$search_port"
repository_dir = "$here/snapshots"
CONF
fi
cat >"$here/pause.sh" <<SCRIPT
touch $here/pause
[ -e $here/writing ] || exit 0
until [ -e $here/paused ]; do sleep 0.05; done
SCRIPT
"$bin/pg_ctl" -w -D "$here/data" -l "$here/server.log" start >/dev/null
redis --port 0 --unixsocket "$here/redis.sock" --dir "$here/redis" --save '' \
    --repl-diskless-sync-delay 0 >"$here/redis.log" 2>&1 &
children="$children $!"
"$chroma" -I -c 'import sys, chromadb_rust_bindings as b; b.cli(["chroma", "run", "--host", "127.0.0.1"] + sys.argv[1:])' \
    --path "$here/chroma" --port "$port" >"$here/chroma.log" 2>&1 &
children="$children $!"
if [ -n "$SEARCH" ]; then
    mkdir -p "$here/search/config" "$here/search/tmp" "$here/snapshots"
    cat >"$here/search/config/elasticsearch.yml" <<CONF
node.name: node
path.data: $here/search/data
path.logs: $here/search/logs
path.repo: ["$here/snapshots"]
discovery.type: single-node
network.host: 127.0.0.1
http.port: $search_port
transport.port: $transport_port
cluster.routing.allocation.disk.threshold_enabled: false
xpack.security.enabled: false
xpack.security.autoconfiguration.enabled: false
CONF
    "$SEARCH" "$here/search/config" "$here/search/tmp" -Xms512m -Xmx512m >"$here/search.log" 2>&1 &
    children="$children $!"
    until_ok index status GET _cluster/health
fi
until_ok cache PING
until_ok vectors GET collections
show pgark init --no-encryption
sql "CREATE TABLE document (id int PRIMARY KEY, body text)"
collection=$(vectors POST collections '{"name": "documents"}' |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
write() { # FIRST LAST: documents, each in every store
    sql "INSERT INTO document SELECT n, 'document ' || n FROM generate_series($1, $2) n"
    python3 - "$1" "$2" >"$here/records.json" <<'PYTHON'
import json, sys
ids = range(int(sys.argv[1]), int(sys.argv[2]) + 1)
print(json.dumps({"ids": [str(n) for n in ids], "embeddings": [[n, n / 2, 1.0] for n in ids],
                  "documents": [f"document {n}" for n in ids]}))
PYTHON
    vectors POST "collections/$collection/add" "$(cat "$here/records.json")" >/dev/null
    for n in $(seq "$1" "$2"); do
        echo "document $n" >"$here/documents/$n.txt"
    done
    if [ -n "$SEARCH" ]; then
        index errors POST 'documents/_bulk?refresh=true' "$(for n in $(seq "$1" "$2"); do
            printf '{"index":{"_id":"%s"}}\n{"text":"document %s"}\n' "$n" "$n"
        done)
" >/dev/null
    fi
    cache MSET $(for n in $(seq "$1" "$2"); do printf 'document:%s cached-%s ' "$n" "$n"; done) >/dev/null
}
state() {
    local own
    own=$(vectors GET collections | python3 -c 'import json, sys; print("".join(c["id"] for c in json.load(sys.stdin)))')
    printf 'rows %s, keys %s, vectors %s, files %s%s\n' "$(sql 'SELECT count(*) FROM document')" \
        "$(cache DBSIZE | tr -d :)" "$([ -n "$own" ] && vectors GET "collections/$own/count" || echo none)" \
        "$(find "$here/documents" -type f | wc -l)" \
        "${SEARCH:+, indexed $(index count GET documents/_count 2>/dev/null || echo none)}"
}
# The application: one document after another, each in every store.
application() {
    local n=200
    touch "$here/writing"
    until [ -e "$here/stop" ]; do
        if [ -e "$here/pause" ]; then
            touch "$here/paused"
            sleep 0.05
            continue
        fi
        rm -f "$here/paused"
        n=$((n + 1))
        write "$n" "$n"
    done
    rm -f "$here/writing"
    # What it had written when it was stopped.
    echo "$n" >"$here/stopped"
}
write 1 200
state
application &
writer=$!
children="$children $writer"

step "a backup of everything as one set, while the application writes"
show pgark backup
set=$(pgark info --output json | python3 -c 'import json, sys; print(json.load(sys.stdin)["sets"][-1]["label"])')

step "life goes on, and then everything is wrecked"
sleep 2
touch "$here/stop"
wait "$writer"
state
sql "DROP TABLE document"
cache FLUSHALL >/dev/null
cache SET garbage 1 >/dev/null
vectors DELETE collections/documents >/dev/null
if [ -n "$SEARCH" ]; then index acknowledged DELETE documents >/dev/null; fi
rm -f "$here"/documents/*[02468].txt
echo spoiled >"$here/documents/1.txt"
"$bin/pg_ctl" -D "$here/data" -m immediate stop >/dev/null
show pgark assess || true

step "back to the set"
show pgark restore-set --set "$set" --target-dir "$here/restored" --yes
show pgark reconcile --component documents
state
rows=$(sql 'SELECT count(*) FROM document')
expected="rows $rows, keys $rows, vectors $rows, files $rows${SEARCH:+, indexed $rows}"
test "$(state)" = "$expected"
test "$rows" -ge 200 && test "$rows" -lt "$(cat "$here/stopped")"
test "$(cat "$here/documents/1.txt")" = "document 1"
test "$(cache GET document:7)" = cached-7
test "$(cache EXISTS garbage)" = :0

step "the stack is back at one moment: $rows documents in every store"
