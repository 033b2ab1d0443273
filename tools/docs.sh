#!/usr/bin/env bash
# Writes the pages that are made from other files: docs/dependencies.md, docs/compatibility.md.
set -euo pipefail
. "$(dirname "$0")/common.sh"
python3 tools/dependencies.py
build lydian_all
"$venv/bin/python" tools/compatibility.py
