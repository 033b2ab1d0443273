#!/usr/bin/env bash
# Format, layers, clang-tidy.   tools/lint.sh [--all] [files...]     default: C++ files that differ from main
# tools/lint.sh --quick leaves clang-tidy out; tools/lint.sh --fix formats in place and checks nothing.
set -euo pipefail
. "$(dirname "$0")/common.sh"
mode="${1:-}"
all_files() { git ls-files -co --exclude-standard -- 'src/*.cc' 'src/*.h' 'guest/*.cc' 'guest/*.h' 'tests/*.cc' 'tests/*.h'; }
mapfile -t every < <(all_files | while read -r f; do [ -f "$f" ] && echo "$f"; done)
for tool in clang-format-16 clang-tidy-16; do
  command -v "$tool" >/dev/null || tools/setup.sh lint
done
if [ "$mode" = --fix ]; then
  clang-format-16 -i "${every[@]}"
  exit
fi
bad=0
clang-format-16 --dry-run --Werror "${every[@]}" || { say "format: run make fmt" && bad=1; }
python3 tools/check_layers.py || bad=1
if [ "$mode" != --quick ]; then
  [ -f "$build_dir/compile_commands.json" ] || cmake --preset default >/dev/null
  case "$mode" in
    --all) files=("${every[@]}") ;;
    '') mapfile -t files < <({ git diff --name-only --diff-filter=d "$(git merge-base main HEAD 2>/dev/null || echo HEAD)"
                               git ls-files -o --exclude-standard; } | sort -u) ;;
    *) files=("$@") ;;
  esac
  printf '%s\n' "${files[@]}" | grep -E '^(src|guest)/.*\.cc$' | xargs -r -P "$(nproc)" -n 1 clang-tidy-16 -p "$build_dir" --quiet || bad=1
fi
[ "$bad" = 0 ] && say "lint: ok"
exit "$bad"
