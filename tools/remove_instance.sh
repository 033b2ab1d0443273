#!/usr/bin/env bash
# Removes what one instance has left on the machine: mounts below its state, bridge and veths, nftables tables, cgroups,
# network namespaces, loop devices, then the state itself. Only for an instance that has stopped.
#   tools/remove_instance.sh STATE_DIR [INSTANCE_NAME]
set -euo pipefail
state="$(readlink -f "$1")"
instance="${2:-}"
[ "$(id -u)" = 0 ] || { echo "error: run this as root" >&2; exit 1; }
case "$state" in
  / | /var | /var/lib | /home | /root | /tmp | /usr | /etc | '') echo "error: '$state' is no state directory" >&2; exit 1 ;;
esac
if [ -d "$state" ] && [ ! -e "$state/instance" ] && [ -n "$(ls -A "$state")" ]; then
  echo "error: $state has no file 'instance': not a state directory of Lydian" >&2
  exit 1
fi

awk -v at="$state/" 'index($5 "/", at) == 1 {print $5}' /proc/self/mountinfo | tac |
  while read -r mount; do umount -l "$(printf '%b' "$mount")" || true; done
if command -v losetup >/dev/null; then
  losetup -l -n -O NAME,BACK-FILE | awk -v at="$state/" 'index($2, at) == 1 {print $1}' |
    while read -r device; do losetup -d "$device" || true; done
fi
if [[ "$instance" =~ ^ly[0-9a-f]{4,}$ ]]; then
  ip -o link show 2>/dev/null | awk -F': ' '{print $2}' | sed 's/@.*//' | grep -E "^$instance" |
    while read -r link; do ip link del "$link" 2>/dev/null || true; done || true
  nft list tables 2>/dev/null | awk -v n="$instance" 'index($3, n) == 1 {print $2, $3}' |
    while read -r family table; do nft delete table "$family" "$table" || true; done || true
  ip netns list 2>/dev/null | awk -v n="$instance" 'index($1, n) == 1 {print $1}' |
    while read -r netns; do ip netns del "$netns" || true; done || true
  find /sys/fs/cgroup -depth -type d \( -path "*/$instance" -o -path "*/$instance/*" -o -path "*/$instance.*" \) 2>/dev/null |
    while read -r cgroup; do rmdir "$cgroup" 2>/dev/null || true; done
fi
rm -rf --one-file-system "$state"
