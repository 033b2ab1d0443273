// What is done when the disk under a database fails: a sync that was refused, an I/O error, a damaged page
// met while writing. The kernel tells of a failed write once and then forgets it with the pages, so nothing
// that this process believes to be stored can be trusted any more: it ends, and its successor starts from
// what is there. A full disk isn't a failure. Thread-safety: all, from any thread.
#pragma once

#include <functional>

#include "base/status.h"

namespace lydian::store {

// Logs the error and ends the process, or calls the handler that was set.
void DiskFailed(const Status& error);

// For tests: called instead of ending the process. Null: the process ends.
void SetDiskFailureHandler(std::function<void(const Status& error)> handler);

}  // namespace lydian::store
