#!/usr/bin/env bash
# From a clean clone to a Modal script that has run on this machine. Each step is skipped when it is done already, so a
# second run takes seconds and one that was cut goes on where it was.
#   tools/demo.sh up | stop | clean
# LYDIAN_STATE and LYDIAN_LISTEN choose another state directory or address.
set -euo pipefail
. "$(dirname "$0")/common.sh"
state="${LYDIAN_STATE:-/var/lib/lydian}"
listen="${LYDIAN_LISTEN:-127.0.0.1:7070}"
python_minor=3.11 # of the .venv: the default image follows the caller's Python
base="python:${python_minor}-slim-bookworm"
need_build_mb=3000 need_state_mb=3500 need_memory_mb=3500

port_is_busy() { (exec 3<>"/dev/tcp/${listen%:*}/${listen##*:}") 2>/dev/null; }

port_owner() {
  command -v ss >/dev/null || return 0
  ss -Hltnp "sport = :${listen##*:}" 2>/dev/null | grep -oE 'users:\(\("[^"]+",pid=[0-9]+' |
    sed 's/users:(("/ by /; s/",pid=/, pid /' | head -n1
}

# Whatever can be known to stand in the way is said now, not after a long build.
check_machine() {
  need_root demo
  [ "$(uname -m)" = x86_64 ] || die "Lydian runs on x86_64; this machine is $(uname -m)"
  [ -d "$state" ] && running="$(up_pid "$state")" || running=""
  if [ -n "$running" ]; then
    say "Lydian is up already (pid $running, state $state)."
  elif port_is_busy; then
    die "$listen is taken$(port_owner). Stop that, or choose another: LYDIAN_LISTEN=127.0.0.1:7071 make demo"
  fi
  local free memory
  if [ ! -x "$lydian" ]; then
    free="$(free_mb "$root")"
    [ "$free" -ge "$need_build_mb" ] || die "the build needs $need_build_mb MB of disk at $root; $free MB are free"
    memory="$(awk '/^MemAvailable/ {a=$2} /^SwapFree/ {s=$2} END {print int((a+s)/1024)}' /proc/meminfo)"
    [ "$memory" -ge "$need_memory_mb" ] || die "the build needs $need_memory_mb MB of memory; $memory MB are available"
  fi
  if [ ! -e "$state/demo-done" ]; then
    free="$(free_mb "$state")"
    [ "$free" -ge "$need_state_mb" ] || die "images need $need_state_mb MB of disk at $state; $free MB are free"
  fi
  local name
  for name in MODAL_SERVER_URL MODAL_TOKEN_ID MODAL_TOKEN_SECRET MODAL_ENVIRONMENT; do
    if [ -n "${!name:-}" ]; then
      say "note: $name is set in your environment and goes before every profile; it is left out here"
      unset "$name"
    fi
  done
}

announce() {
  local cores build_minutes=$((20 / $(nproc) + 2))
  cores="$(nproc)"
  if [ -e "$state/demo-done" ] && [ -x "$lydian" ]; then
    say "This takes a few seconds: everything was made before."
  elif [ -x "$lydian" ]; then
    say "This takes about 11 minutes (base and default image) and 2 GB of disk in $state. Ctrl-C is safe: run it again to go on."
  else
    say "This takes about $((build_minutes + 13)) minutes on $cores cores the first time (build $build_minutes, images 11), seconds after that;"
    say "2 GB of disk here, 2 GB in $state. Ctrl-C is safe: run it again to go on."
  fi
}

step() { printf '\n[%s/6 %s] %s\n' "$1" "$(date +%H:%M:%S)" "$2"; }

start_lydian() {
  if [ -n "$running" ] && [ "$(readlink "/proc/$running/exe" 2>/dev/null)" != "$(readlink -f "$lydian")" ]; then
    say "It runs an older build: starting the new one instead."
    stop_lydian
    running=""
  fi
  if [ -n "$running" ]; then
    say "up already"
    return
  fi
  # Whoever tries it out builds his own images: they may use the indexes and proxies that this machine is set to.
  "$lydian" up --background --lend-host-settings --state "$state" --listen "$listen"
}

# The address that the running one listens at: a Lydian that was up before need not have the default.
pages_url() {
  "$lydian" status --json --state "$state" | "$venv/bin/python" -c '
import json, sys
found = [x for x in json.load(sys.stdin).get("listeners", []) if not x.startswith("unix")]
print(found[0] if found else "")' | sed -E 's#^(https?://)?#http://#'
}

finish() {
  local code="$1" url
  url="$(pages_url || true)"
  say ""
  if [ "$code" = 0 ]; then
    say "examples/hello.py ran in a container of this machine. Lydian stays up, past your logout but not past a reboot."
  else
    say "examples/hello.py ended with exit code $code; its own words are above. Lydian stays up."
  fi
  cat <<END
  pages       ${url:-http://$listen}
  logs        $state/log/
  go on       . .venv/bin/activate      (puts lydian and modal on your PATH, and the client's profile to lydian)
              edit examples/hello.py, then: modal run examples/hello.py
  again       lydian up --background${LYDIAN_STATE:+ --state $state}      (after a reboot)
  stop        make demo-stop            (make demo-clean also removes what it made: state, networks, cgroups)
END
}

up() {
  check_machine
  announce
  trap 'printf "\nStopped. Run \"make demo\" again: it goes on from here.\n"; exit 130' INT
  step 1 "Debian packages and the official client"
  tools/setup.sh build run
  step 2 "Build"
  build lydian_all
  step 3 "Start Lydian"
  start_lydian
  step 4 "Base image $base"
  "$lydian" image base "$base" --state "$state"
  step 5 "The client's profile"
  "$lydian" login --state "$state"
  step 6 "modal run examples/hello.py (its image is built the first time)"
  local code=0
  MODAL_PROFILE=lydian "$venv/bin/modal" run examples/hello.py || code=$?
  [ "$code" = 0 ] && : >"$state/demo-done"
  trap - INT
  finish "$code"
  exit "$code"
}

# SIGINT to `up` stops everything that belongs to it; we wait for its end.
stop_lydian() {
  local pid
  pid="$(up_pid "$state")"
  if [ -z "$pid" ]; then
    say "Lydian is not up (state $state)."
    return
  fi
  kill -INT "$pid"
  timeout 60 tail --pid="$pid" -f /dev/null || die "pid $pid did not end within 60 s; see $state/log/up.log"
  say "Lydian (pid $pid) has stopped. State stays in $state."
}

clean() {
  need_root demo-clean
  local instance=""
  [ -f "$state/instance" ] && instance="$(head -c 64 "$state/instance" | tr -d '[:space:]')"
  stop_lydian
  tools/remove_instance.sh "$state" "$instance"
  say "Removed $state, and the networks and cgroups of ${instance:-that instance}. The build stays: make clean removes it."
}

case "${1:-up}" in
  up) up ;;
  stop) need_root demo-stop && stop_lydian ;;
  clean) clean ;;
  *) die "usage: tools/demo.sh up | stop | clean" ;;
esac
