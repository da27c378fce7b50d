#!/bin/sh
# Makes the Python environment that holds a real Chroma server, and prints the path of its python.
#
# The wheel alone: the server is a shared library in it, and none of its 80 dependencies is needed to run
# it (`chromadb_rust_bindings.cli`). As the very file that chroma-requirements.txt names by its digest.
#
# usage: chroma.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

here=$(cd "$(dirname "$0")" && pwd)
name=chroma
requirements="$here/chroma-requirements.txt"
modules=chromadb_rust_bindings
recipe=1
packages=python3-venv
. "$here/venv.sh"
