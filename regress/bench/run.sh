#!/bin/sh
# Builds what the bench measures, in release, and runs it. Options are environment variables; see
# regress/src/bench/settings.rs.
set -eu
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-$PWD/target}"

cargo build --locked --release -p pgark-archiver
regress/setup/build-extension.sh /usr/lib/postgresql/15/bin/pg_config release
cargo build --locked -p pgark-regress --bin bench
PGARK_BIN="$target/release/pgark"
PGARK_BENCH_COMMIT="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
if [ -n "$(git status --porcelain -- archiver extension Cargo.lock 2>/dev/null)" ]; then
    PGARK_BENCH_COMMIT="$PGARK_BENCH_COMMIT-dirty"
fi
export PGARK_BIN PGARK_BENCH_COMMIT
exec "$target/debug/bench" "$@"
