#!/usr/bin/env bash
# Runs what has a test: unit and integration tests by ctest, the fuzz targets for a while, then the official client against a Lydian of its own.
#   tools/test.sh [unit|integration|fuzz|client]... [-- pytest arguments]       default: all four
# FUZZ_SECONDS: of each fuzz target; default 10, with CI=true 60
# Uses state, ports and names of its own: a Lydian that is up stays untouched.
set -euo pipefail
. "$(dirname "$0")/common.sh"
need_root test
kinds=()
while [ "$#" -gt 0 ] && [ "$1" != -- ]; do kinds+=("$1") && shift; done
[ "${1:-}" = -- ] && shift
[ "${#kinds[@]}" = 0 ] && kinds=(unit integration fuzz client)

bad=""
run_ctest() {
  if [ "$(ctest --test-dir "$build_dir" -N -L "^$1\$" | grep -oE 'Total Tests: [0-9]+' | grep -oE '[0-9]+')" = 0 ]; then
    say "$1: no tests"
    return
  fi
  ctest --test-dir "$build_dir" -L "^$1\$" --output-on-failure --no-tests=error ${2:-} || bad="$bad $1"
}

tools/setup.sh build run test
build
for kind in "${kinds[@]}"; do
  started=$SECONDS
  printf '\n== %s\n' "$kind"
  case "$kind" in
    unit)
      run_ctest unit "-j$(nproc)"
      "$venv/bin/python" tools/field_coverage.py || bad="$bad fields" ;;
    integration) run_ctest integration ;;
    fuzz) tools/fuzz.sh "${FUZZ_SECONDS:-$([ "${CI:-}" = true ] && echo 60 || echo 10)}" || bad="$bad fuzz" ;;
    client) ;;
    *) die "no kind of test is called '$kind'" ;;
  esac
  [ "$kind" = client ] || say "$kind took $((SECONDS - started)) s"
done
code=0
case " ${kinds[*]} " in
  *" client "*) # last, so that its summary is the last line
    LYDIAN_FAILED_BEFORE="$bad" LYDIAN_BINARY="$lydian" "$venv/bin/python" -m pytest tests/client "$@" </dev/null || code=$? ;;
  *) [ -z "$bad" ] || say "FAILED:$bad" ;;
esac
[ -z "$bad" ] || code=1
exit "$code"
