// What must be so before `lydian up` begins, told all at once and in words that say what to do.
#pragma once

#include <string>

#include "base/status.h"
#include "bin/up.h"

namespace lydian::bin {

// Root, address, memory, disk. `folder`: the state folder or the nearest parent that exists.
Status CheckMachine(const UpOptions& options);
// Kernel features that the runtime can't do without.
Status CheckKernel(const UpOptions& options, const cli::StatePaths& paths, const std::string& init_path);

}  // namespace lydian::bin
