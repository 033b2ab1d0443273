// Capabilities of the calling thread.
// Thread-safety: each call acts on the calling thread alone. Raw* may be called between clone and exec.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace lydian::os {

// A set of capabilities, bit n for capability n.
using CapSet = uint64_t;

// What root of a container keeps: enough for package managers, servers and setuid programs, nothing that
// reaches past it.
CapSet ContainerCaps();
// "CAP_CHOWN", ...; unknown bits as numbers.
std::vector<std::string> CapNames(CapSet set);

struct CapState {
  CapSet effective = 0, permitted = 0, inheritable = 0;
};
Result<CapState> GetCaps();
// effective = permitted.
Status RaiseEffective();

// 0 or -1 and errno.
int RawDropBounding(CapSet keep);
int RawSetCaps(CapSet effective, CapSet permitted, CapSet inheritable);

}  // namespace lydian::os
