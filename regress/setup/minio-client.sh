#!/bin/sh
# Makes the Python environment that holds MinIO's own client library, and prints the path of its python. The
# library is the judge of what pgark sends to MinIO's admin API (minio_server.py).
#
# As the very files that minio-requirements.txt names by their digests.
#
# usage: minio-client.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

here=$(cd "$(dirname "$0")" && pwd)
name=minio-client
requirements="$here/minio-requirements.txt"
modules='minio.crypto, minio.minioadmin'
recipe=1
packages=python3-venv
. "$here/venv.sh"
