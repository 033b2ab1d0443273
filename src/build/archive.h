// Packs a tree of ours (a base's root, what was compiled for it) for the cache. Reading archives is
// lydian-stage's: docs/formats/stage.md. Thread-safety: pure function; blocks. Errors: what libarchive says,
// with the entry's name.
#pragma once

#include <string>

#include "base/status.h"
#include "build/cancel.h"

namespace lydian::build {

// All below `folder` as a pax archive, compressed by zstd, written under a temporary name and renamed.
Status PackArchive(const std::string& folder, const std::string& archive_path, CancelToken* cancel);

}  // namespace lydian::build
