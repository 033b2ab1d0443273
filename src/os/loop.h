// A file system of a fixed size in a sparse file, by way of a loop device: how a writable layer is kept to
// its quota. Thread-safety: any thread. Ownership: the mount holds everything; the file is unlinked at once
// and the device clears itself, so that a kill leaves neither. Errors: errno with the step.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::os {

// Writes an empty ext4 of `bytes` into a sparse file (mkfs.ext4: some 10 ms).
Status MakeImage(const std::string& path, uint64_t bytes);
// A sparse copy: only what is written is read.
Status CopySparse(const std::string& from, const std::string& to);
// Attaches the file to a loop device and mounts it twice, detached, so that one of the two can be given an id
// mapping; then unlinks it.
Result<std::pair<UniqueFd, UniqueFd>> MountImage(const std::string& path);

// Gives up what the file system has not written yet: it is about to be thrown away. `root`: an open folder of
// it.
void AbandonWrites(int root);

}  // namespace lydian::os
