#!/usr/bin/env bash
# Fuzzes what reads hostile bytes: each target of tests/fuzz for some seconds, two at a time.
#   tools/fuzz.sh [SECONDS] [target...]       default: 60 seconds of every target
# Starts from tests/fuzz/corpus/<target> and what earlier runs have gathered in build-fuzz/corpus/<target>. An input that
# fails is saved in build-fuzz/findings/<target>-...; when it is mended, it is kept as tests/fuzz/corpus/<target>/found-<what>.
set -euo pipefail
. "$(dirname "$0")/common.sh"
seconds="${1:-60}"
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "usage: tools/fuzz.sh [SECONDS] [target...]; $seconds is not a number of seconds"
shift || true
fuzz_dir="$root/build-fuzz"
# Containers' devices, owners and trusted attributes are the archive target's subject.
need_root fuzz

command -v clang++-16 >/dev/null && compgen -G '/usr/lib/llvm-16/lib/clang/16/lib/linux/libclang_rt.fuzzer-*.a' >/dev/null ||
  tools/setup.sh fuzz
[ -f "$fuzz_dir/build.ninja" ] || cmake --preset fuzz || die "cmake could not configure the fuzz build; the lines above say why"
ninja -C "$fuzz_dir" -j "$(jobs)" fuzz_targets || die "the fuzz build failed; the lines above say where"

targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
  for file in tests/fuzz/*_fuzz.cc; do targets+=("$(basename "$file" _fuzz.cc)"); done
fi
for target in "${targets[@]}"; do
  [ -f "tests/fuzz/${target}_fuzz.cc" ] || die "no fuzz target is called '$target'"
done
mkdir -p "$fuzz_dir/findings" "$fuzz_dir/logs" "$fuzz_dir/results"
rm -f "$fuzz_dir/results"/*

fuzz_one() {
  local target="$1" log="$fuzz_dir/logs/$1.log" dict=() code=0
  mkdir -p "$fuzz_dir/corpus/$target"
  [ -f "tests/fuzz/$target.dict" ] && dict=("-dict=tests/fuzz/$target.dict")
  # Beyond the time limit plus one slow input something hangs that libFuzzer can't see.
  nice timeout -k 10 $((seconds + 60)) "$fuzz_dir/tests/fuzz/${target}_fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
    -max_len=8192 -print_final_stats=1 -artifact_prefix="$fuzz_dir/findings/$target-" "${dict[@]}" \
    "$fuzz_dir/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1 </dev/null || code=$?
  local last rate
  last="$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -n1 || true)"
  rate="$(awk '/stat::average_exec_per_sec/ {print $2}' "$log" || true)"
  if [ "$code" = 0 ]; then
    say "$target: passed, ${rate:-?} executions/s, ${last:-no coverage}"
    echo passed >"$fuzz_dir/results/$target"
  else
    say "$target: FAILED (exit code $code, ${last:-no coverage}); $log says:"
    grep -E 'ERROR: |SUMMARY|runtime error|broken invariant|Test unit written' "$log" | head -n 8 | sed 's/^/    /' || true
    echo failed >"$fuzz_dir/results/$target"
  fi
}

running=0
for target in "${targets[@]}"; do
  if [ "$running" = 2 ]; then
    wait -n
    running=1
  fi
  fuzz_one "$target" &
  running=$((running + 1))
done
wait
passed="$(grep -lx passed "$fuzz_dir/results"/* 2>/dev/null | wc -l || true)"
failed=$((${#targets[@]} - passed))
say "$passed passed, $failed failed"
[ "$failed" = 0 ]
