#include "os/caps.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>

namespace lydian::os {
namespace {

constexpr std::array<const char*, CAP_LAST_CAP + 1> kNames = {"CHOWN",
                                                              "DAC_OVERRIDE",
                                                              "DAC_READ_SEARCH",
                                                              "FOWNER",
                                                              "FSETID",
                                                              "KILL",
                                                              "SETGID",
                                                              "SETUID",
                                                              "SETPCAP",
                                                              "LINUX_IMMUTABLE",
                                                              "NET_BIND_SERVICE",
                                                              "NET_BROADCAST",
                                                              "NET_ADMIN",
                                                              "NET_RAW",
                                                              "IPC_LOCK",
                                                              "IPC_OWNER",
                                                              "SYS_MODULE",
                                                              "SYS_RAWIO",
                                                              "SYS_CHROOT",
                                                              "SYS_PTRACE",
                                                              "SYS_PACCT",
                                                              "SYS_ADMIN",
                                                              "SYS_BOOT",
                                                              "SYS_NICE",
                                                              "SYS_RESOURCE",
                                                              "SYS_TIME",
                                                              "SYS_TTY_CONFIG",
                                                              "MKNOD",
                                                              "LEASE",
                                                              "AUDIT_WRITE",
                                                              "AUDIT_CONTROL",
                                                              "SETFCAP",
                                                              "MAC_OVERRIDE",
                                                              "MAC_ADMIN",
                                                              "SYSLOG",
                                                              "WAKE_ALARM",
                                                              "BLOCK_SUSPEND",
                                                              "AUDIT_READ",
                                                              "PERFMON",
                                                              "BPF",
                                                              "CHECKPOINT_RESTORE"};

constexpr CapSet Bit(int cap) { return CapSet{1} << cap; }

}  // namespace

CapSet ContainerCaps() {
  // Without NET_RAW and MKNOD: no packet can be forged from inside, no device made; both are what a short
  // list is for.
  return Bit(CAP_CHOWN) | Bit(CAP_DAC_OVERRIDE) | Bit(CAP_FOWNER) | Bit(CAP_FSETID) | Bit(CAP_KILL) |
         Bit(CAP_SETGID) | Bit(CAP_SETUID) | Bit(CAP_SETPCAP) | Bit(CAP_NET_BIND_SERVICE) |
         Bit(CAP_SYS_CHROOT) | Bit(CAP_SETFCAP);
}

std::vector<std::string> CapNames(CapSet set) {
  std::vector<std::string> names;
  for (int cap = 0; cap < 64; ++cap) {
    if ((set & Bit(cap)) == 0) continue;
    names.push_back(static_cast<size_t>(cap) < kNames.size()
                        ? std::string("CAP_") + kNames[static_cast<size_t>(cap)]
                        : std::to_string(cap));
  }
  return names;
}

Result<CapState> GetCaps() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return ErrnoStatus("reading capabilities");
  auto join = [](uint32_t low, uint32_t high) { return CapSet{low} | (CapSet{high} << 32); };
  return CapState{join(data[0].effective, data[1].effective), join(data[0].permitted, data[1].permitted),
                  join(data[0].inheritable, data[1].inheritable)};
}

Status RaiseEffective() {
  ASSIGN_OR_RETURN(CapState caps, GetCaps());
  if (RawSetCaps(caps.permitted, caps.permitted, caps.inheritable) != 0)
    return ErrnoStatus("raising capabilities");
  return OkStatus();
}

int RawDropBounding(CapSet keep) {
  for (int cap = 0; cap < 64; ++cap) {
    if ((keep & Bit(cap)) != 0) continue;
    if (::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
      return errno == EINVAL ? 0 : -1;  // EINVAL: past the last one
  }
  return 0;
}

int RawSetCaps(CapSet effective, CapSet permitted, CapSet inheritable) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  data[0] = {static_cast<uint32_t>(effective), static_cast<uint32_t>(permitted),
             static_cast<uint32_t>(inheritable)};
  data[1] = {static_cast<uint32_t>(effective >> 32), static_cast<uint32_t>(permitted >> 32),
             static_cast<uint32_t>(inheritable >> 32)};
  return static_cast<int>(::syscall(SYS_capset, &header, data));
}

}  // namespace lydian::os
