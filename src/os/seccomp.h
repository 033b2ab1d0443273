// The system calls that a container may make: an allow-list, compiled once to a BPF program that is then
// loaded in each child. What isn't in the list answers ENOSYS, so that libraries fall back as on an older
// kernel; what is refused on purpose answers EPERM. Thread-safety: the program is read-only once built.
// docs/formats/job.md lists what is refused.
#pragma once

#include <linux/filter.h>

#include <vector>

#include "base/status.h"

namespace lydian::os {

Result<std::vector<sock_filter>> BuildSeccompFilter();
// Loads it for the calling thread and its children. 0 or -1 and errno; may be called between clone and exec.
int RawLoadSeccomp(const std::vector<sock_filter>& program);

}  // namespace lydian::os
