#!/bin/sh
# Builds pgark as it is shipped, without the feature fault-injection, and asserts that the binary
# holds no trace of the fault switches.
#
# usage: release-check.sh [PROFILE]     PROFILE is release (default) or dev, which is quicker to
#                                       build and has the same features
set -eu

profile=${1:-release}
cd "$(dirname "$0")/../.."
cargo build --locked --profile "$profile" -p pgark-archiver
case $profile in dev) built=debug ;; *) built=$profile ;; esac
binary="${CARGO_TARGET_DIR:-$PWD/target}/$built/pgark"
if grep -q -a PGARK_FAULT "$binary"; then
    echo "release-check: $binary holds fault switches (PGARK_FAULT…)" >&2
    exit 1
fi
echo "release-check: no fault switch in $binary"
