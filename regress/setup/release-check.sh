#!/bin/sh
# Builds the release binary and asserts that it holds no trace of the fault switches.
set -eu

cd "$(dirname "$0")/../.."
cargo build --locked --release -p pgark-archiver
binary="${CARGO_TARGET_DIR:-$PWD/target}/release/pgark"
if grep -q -a PGARK_FAULT "$binary"; then
    echo "release-check: $binary holds fault switches (PGARK_FAULT…)" >&2
    exit 1
fi
echo "release-check: no fault switch in $binary"
