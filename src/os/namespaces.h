// User namespaces with a mapped range, and a network namespace that belongs to one.
// Thread-safety: any thread of a process. Ownership: descriptors keep the namespaces. Errors: errno with the
// step.
#pragma once

#include <cstdint>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::os {

struct UserAndNet {
  UniqueFd user, net;
};

// A user namespace in which ids 0..count-1 are the host's base..base+count-1, and a network namespace owned
// by it. It belongs to the host's user `base`, so that the kernel's counts per user are those of this range
// alone. The calling thread is that user for a moment, with all its rights.
Result<UserAndNet> MakeUserAndNet(uint32_t base, uint32_t count);

}  // namespace lydian::os
