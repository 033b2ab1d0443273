#!/usr/bin/env bash
# Measures against floors and peers (tests/perf/bench.py); arguments are passed on: --quick, --only warm,hello, --keep-state DIR.
set -euo pipefail
. "$(dirname "$0")/common.sh"
need_root bench
tools/setup.sh build run test bench
configure # a build before these packages were there left out what is compared with
build lydian_all echo_baseline
exec "$venv/bin/python" tests/perf/bench.py "$@"
