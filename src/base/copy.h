// The content of one file into another. Thread-safety: pure function; blocks. Errors: the errno, or what
// `charge` says.
#pragma once

#include <cstdint>
#include <functional>

#include "base/status.h"

namespace lydian {

// From the beginning of `from` (a regular file) to its end, into the empty file `to`. Holes stay holes: a
// file costs what it takes on the disk, not what it claims. `charge` is told of bytes before they are
// written, of some MiB at a time.
Status CopyContent(int from, int to, const std::function<Status(uint64_t)>& charge);

}  // namespace lydian
