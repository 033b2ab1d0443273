# Shared by the scripts in tools/: where things are, how to say things. Sourced, never run.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
build_dir="$root/build"
lydian="$build_dir/src/bin/lydian"
venv="$root/.venv"
# A checkout's place is not part of what it compiles to: clones share the compiler cache.
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-$root}" CCACHE_NOHASHDIR=1
# Nor is the language of this terminal.
export CCACHE_SLOPPINESS="${CCACHE_SLOPPINESS:-locale}"

say() { printf '%s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
need_root() { [ "$(id -u)" = 0 ] || die "run this as root, for example: sudo make ${1:-}"; }

# How many compilers at once: the largest file of the client's protocol takes 2.2 GB to compile.
jobs() {
  local cores kb
  cores="$(nproc)"
  kb="$(awk '/^MemAvailable/ {a=$2} /^SwapFree/ {s=$2} END {print a+s}' /proc/meminfo)"
  local by_memory=$((kb / 2300000))
  [ "$by_memory" -lt 1 ] && by_memory=1
  echo $((cores < by_memory ? cores : by_memory))
}

free_mb() { # of the file system that holds a path, which may not exist yet
  local at="$1"
  while [ ! -e "$at" ]; do at="$(dirname "$at")"; done
  df -Pm "$at" | awk 'NR==2 {print $4}'
}

# The pid of the `up` that holds a state directory, or nothing. The file stays after its end, so the process is looked at.
up_pid() {
  local file="$1/up.lock" pid
  [ -r "$file" ] || return 0
  pid="$(grep -oE '[0-9]+' "$file" | head -n1 || true)"
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 0
  tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q 'lydian.* up' && echo "$pid" || true
}

configure() {
  cmake --preset default || die "cmake could not configure the build; the lines above say why"
}

build() { # targets...
  [ -f "$build_dir/build.ninja" ] || configure
  ninja -C "$build_dir" -j "$(jobs)" "$@" || die "the build failed; the lines above say where"
}
