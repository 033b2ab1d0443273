#!/usr/bin/env bash
# Makes the machine ready: Debian packages of the wanted groups (tools/packages.txt), and .venv with the pinned client.
#   tools/setup.sh [build] [run] [test] [bench] [lint] [fuzz]       default: build run
# Asks nothing; takes a second when there is nothing to do; goes on where it was cut.
set -euo pipefail
. "$(dirname "$0")/common.sh"
need_root setup
groups="${*:-build run}"

debian_packages() {
  local wanted=() missing=() name in_groups group
  while IFS='|' read -r name in_groups _; do
    name="${name//[[:space:]]/}"
    case "$name" in '' | '#'*) continue ;; esac
    for group in $groups; do
      case " $in_groups " in *" $group "*) wanted+=("$name") && break ;; esac
    done
  done <tools/packages.txt
  if [ "${#wanted[@]}" = 0 ]; then return; fi
  for name in "${wanted[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
  done
  if [ "${#missing[@]}" = 0 ]; then return; fi
  say "Installing ${#missing[@]} Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  dpkg --configure -a >/dev/null # an installation that was cut before
  apt-get update -q -o Acquire::Retries=3 || die "apt-get update failed: is there a network, and are the sources right?"
  apt-get install -y -q --no-install-recommends -o Acquire::Retries=3 "${missing[@]}" </dev/null ||
    die "apt-get could not install them; the lines above say why"
}

# `activate` also points the client at Lydian, and `deactivate` takes that back: whoever uses the hosted service too
# must not change target without knowing.
patch_activate() {
  local file="$venv/bin/activate"
  grep -q LYDIAN_OLD_PROFILE "$file" && return
  sed -i '/^deactivate () {/a\
    if [ -n "${LYDIAN_OLD_PROFILE+set}" ] ; then\
        if [ -n "$LYDIAN_OLD_PROFILE" ] ; then MODAL_PROFILE="$LYDIAN_OLD_PROFILE" ; export MODAL_PROFILE\
        else unset MODAL_PROFILE ; fi\
        unset LYDIAN_OLD_PROFILE\
    fi' "$file"
  cat >>"$file" <<'END'

# Lydian: the profile that `lydian login` writes, while this environment is active.
LYDIAN_OLD_PROFILE="${MODAL_PROFILE:-}"
MODAL_PROFILE=lydian
export MODAL_PROFILE
END
}

python_environment() {
  local files=(tools/requirements.txt) stamp want
  case " $groups " in *" test "* | *" bench "*) files+=(tools/requirements-test.txt) ;; esac
  stamp="$venv/.lydian-setup"
  want="$(cat "${files[@]}" tools/setup.sh | sha256sum | cut -d' ' -f1)"
  if [ -f "$stamp" ] && grep -qx "$want" "$stamp"; then return; fi
  if [ ! -x "$venv/bin/pip" ]; then
    say "Making .venv with $(/usr/bin/python3 --version)"
    /usr/bin/python3 -m venv --clear "$venv"
  fi
  say "Installing the pinned client into .venv"
  local args=()
  for file in "${files[@]}"; do args+=(-r "$file"); done
  "$venv/bin/pip" install --disable-pip-version-check --no-input -q "${args[@]}" ||
    die "pip could not install the client; the lines above say why"
  patch_activate
  ln -sfn ../../build/src/bin/lydian "$venv/bin/lydian"
  echo "$want" >>"$stamp"
}

grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release ||
  say "note: this is not Debian 12; package names and versions may differ"
debian_packages
python_environment
