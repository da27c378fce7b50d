#!/bin/sh
# Makes the Python environment that qdrant_fake.py runs in, and prints the path of its python.
#
# No package holds a Qdrant server. Its storage engine is one (`qdrant-edge-py`): so the snapshots of the
# fake are genuine. As the very file that qdrant-requirements.txt names by its digest.
#
# usage: qdrant-edge.sh [--path]     --path prints where it is (exit 1: not made yet) and makes nothing
set -eu

here=$(cd "$(dirname "$0")" && pwd)
name=qdrant-edge
requirements="$here/qdrant-requirements.txt"
modules=qdrant_edge
recipe=1
packages=python3-venv
. "$here/venv.sh"
