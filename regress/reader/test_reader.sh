#!/bin/bash
# Takes a backup of a real cluster, copies the reader alone into an empty folder, and restores with it:
# the same files as "pgark restore" writes, a cluster that starts and answers, and no damage delivered.
#
#   test_reader.sh PGARK POSTGRES_BINDIR PYTHON [encrypted]   (not as root; PYTHON comes from ../setup/python.sh)
#
# "encrypted": the repository is, by a key file; a recovery kit and a passphrase open it too, another key does not.
set -euo pipefail
export LC_ALL=C
pgark=$1 bin=$2 python=$3 encrypted=${4:-}
reader=$(cd "$(dirname "$0")" && pwd)/pgark_reader.py
work=$(mktemp -d)
export PGHOST=$work PGPORT=5432 PGUSER=postgres
trap 'for d in data restored; do "$bin/pg_ctl" -D "$work/$d" -m immediate stop >/dev/null 2>&1 || true; done; rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAILED: $*" >&2; exit 1; }
sql() { "$bin/psql" -XAtqc "$1" postgres; }
key=()
alone() { (cd alone && env -i "$python" -I pgark_reader.py "$@" "${key[@]}"); }
start() { "$bin/pg_ctl" -D "$1" -l "$1.log" -w -t 60 start >/dev/null || { tail -20 "$1.log"; fail "$1 does not start"; }; }

mkdir alone state tablespace
cp "$reader" alone/
cat > pgark.toml <<C
[cluster]
name = "main"
conninfo = "host=$work port=5432 user=postgres dbname=postgres"
[agent]
socket = "$work/state/agent.sock"
state_dir = "$work/state"
[repository.local]
kind = "posix"
path = "$work/repo"
C
chmod 600 pgark.toml
if [[ $encrypted ]]; then
    printf '[repository.local.encryption]\nmode = "key-file"\nkey_file = "%s"\n' "$work/local.key" >> pgark.toml
    "$pgark" --config pgark.toml init --recovery-kit "$work/local.kit"
    (umask 077 && echo 'correct horse battery staple' > passphrase)
    "$pgark" --config pgark.toml key add --name spoken --passphrase-file "$work/passphrase"
    key=(--key-file "$work/local.key")
else
    "$pgark" --config pgark.toml init --no-encryption
fi
"$bin/initdb" -k -D data -U postgres >/dev/null 2>&1
cat >> data/postgresql.conf <<C
listen_addresses = ''
unix_socket_directories = '$work'
archive_mode = on
archive_command = '"$pgark" --config "$work/pgark.toml" archive-push %p'
C
start data
sql "CREATE TABLESPACE side LOCATION '$work/tablespace'"
sql "CREATE TABLE a AS SELECT g, md5(g::text) FROM generate_series(1, 40000) g; CREATE INDEX ON a (md5)"
sql "CREATE TABLE b TABLESPACE side AS SELECT * FROM a LIMIT 5000; CREATE UNLOGGED TABLE u AS SELECT 1; CREATE TABLE empty ()"
printf x > "data/$(printf 'not\377utf8')"
: > data/empty_file
"$pgark" --config pgark.toml backup
sql "INSERT INTO a SELECT g, 'after the backup' FROM generate_series(1, 999) g"
sql "SELECT pg_create_restore_point('here')" >/dev/null
query="SELECT (SELECT md5(string_agg(a::text, ',' ORDER BY g, md5)) FROM a), (SELECT count(*) FROM b)"
expected=$(sql "$query")
last=$(sql "SELECT pg_walfile_name(pg_switch_wal())")
for _ in $(seq 100); do
    [[ $(sql "SELECT coalesce(last_archived_wal, '') >= '$last' FROM pg_stat_archiver") == t ]] && break
    sleep 0.1
done
"$bin/pg_ctl" -D data -m fast -w stop >/dev/null

IFS=$'\t' read -r component label system _ timeline _ _ first _ < <(alone list "$work/repo")
[[ $component == main && $timeline == 1 ]] || fail "list"
alone restore "$work/repo" main "$label" "$work/restored" --tablespace-map "$(basename data/pg_tblspc/*)=$work/side"

if [[ $encrypted ]]; then
    # Nothing is delivered without the key, or with another one; with the others, the same.
    grep -qa 'after the backup' -r repo && fail "rows in clear"
    mine=("${key[@]}")
    sed 's/^1 ..../1 0000/; t; ' local.key > slip.key
    "$python" -c 'import os, sys; from blake3 import blake3
for n in range(1, 5):
    part = os.urandom(8)
    print(n, part.hex(), blake3(b"pgark key line\0" + bytes([n]) + part).hexdigest()[:4])' > other.key
    echo 'correct horse battery' > other_passphrase
    for wrong in "" "--key-file $work/other.key" "--key-file $work/slip.key" "--passphrase-file $work/other_passphrase"; do
        read -ra key <<< "$wrong"
        status=0
        alone restore "$work/repo" main "$label" "$work/refused" 2>/dev/null || status=$?
        [[ $status == 30 && ! -e refused ]] || fail "restored with '$wrong': exit $status"
    done
    number=0
    for right in "--key-file $work/local.kit" "--passphrase-file $work/passphrase"; do
        read -ra key <<< "$right"
        number=$((number + 1))
        alone restore "$work/repo" main "$label" "$work/again$number" --tablespace-map "$(basename data/pg_tblspc/*)=$work/side$number"
        diff -r --exclude=pg_tblspc --exclude=tablespace_map restored "again$number" || fail "$right restores something else"
        diff -r side "side$number" || fail "$right restores something else"
    done
    key=("${mine[@]}")
fi

# The same bytes and modes as pgark's own restore, but for what that adds.
"$pgark" --config pgark.toml restore --target-dir "$work/other" --tablespace-map "$work/tablespace=$work/other_side" >/dev/null
added=(backup_manifest pgark_recovery.json recovery.signal postgresql.auto.conf tablespace_map)
diff -r "${added[@]/#/--exclude=}" --exclude=pg_tblspc restored other || fail "the two restores differ"
diff -r side other_side || fail "the two restores of the tablespace differ"
modes() { (cd "$1" && find . -printf '%p %m\n' | grep -avE "$(IFS='|'; echo "${added[*]}")" | sort); }
diff <(modes restored) <(modes other) || fail "modes differ"

# The last segment is among them: its number stands in the name.
for file in $(cd repo/wal/"$system"/00000001 && find . -type f -regextype posix-extended -regex '.*/[0-9A-F]{24}' -printf '%f\n'); do
    [[ $file < $first ]] || alone wal "$work/repo" "$system" "$file" "$work/wal/$file"
done
cat >> restored/postgresql.conf <<C
archive_mode = off
restore_command = 'cp "$work/wal/%f" "%p"'
recovery_target_name = 'here'
recovery_target_action = promote
C
touch restored/recovery.signal
start restored
for _ in $(seq 100); do [[ $(sql "SELECT pg_is_in_recovery()") == f ]] && break; sleep 0.1; done
[[ $(sql "$query") == "$expected" ]] || fail "the restored cluster answers differently"
sql "CREATE EXTENSION amcheck" && sql "SELECT bt_index_check('a_md5_idx', true)" >/dev/null
"$bin/pg_ctl" -D restored -m fast -w stop >/dev/null

# A flipped bit anywhere in what the backup needs: refused. The sessions of restores are not needed.
session=$(grep -l COMMIT repo/sessions/*/end | xargs -n1 dirname | xargs -n1 basename)
flips=0
keys=()
# The key epoch, and the data key of the session.
[[ $encrypted ]] && mapfile -t keys < <(printf '%s\n' repo/keys/epoch/*; grep -l "$session" repo/keys/dek/*)
[[ ! $encrypted || ${#keys[@]} -ge 2 ]] || fail "no keys to flip: ${keys[*]}"
for object in "${keys[@]}" repo/packs/*/* repo/meta/*/* "repo/components/main/backups/$label/manifest" "repo/sessions/$session/end" repo/repository.json; do
    size=$(stat -c %s "$object")
    cp "$object" saved
    chmod u+w "$object"
    "$python" - "$object" $(((RANDOM * 32768 + RANDOM) % size)) <<'P'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    byte = file.read(1)[0]
    file.seek(int(sys.argv[2]))
    file.write(bytes([byte ^ 4]))
P
    status=0
    alone restore "$work/repo" main "$label" "$work/refused" 2>/dev/null || status=$?
    [[ $status == 30 ]] || fail "a flip in $object: exit $status"
    [[ ! -e refused/global/pg_control ]] || fail "a flip in $object: a control file was written"
    rm -rf refused
    cat saved > "$object"
    flips=$((flips + 1))
done
echo "cases: flips for the reader $flips"
echo "ok"
