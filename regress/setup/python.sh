#!/bin/sh
# Makes the Python that the independent reader of the format runs in, and prints its path.
#
# zstandard is Debian's, and so are the ciphers (cryptography, argon2); blake3 is in no Debian package, so
# it comes through pip, as the very files that regress/reader/requirements.txt names by their digests.
#
# usage: python.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

here=$(cd "$(dirname "$0")" && pwd)
name=reader
requirements="$here/../reader/requirements.txt"
modules='argon2, blake3, cryptography, zstandard'
recipe=2
options=--system-site-packages
packages='python3-venv python3-zstandard python3-cryptography python3-argon2'
. "$here/venv.sh"
