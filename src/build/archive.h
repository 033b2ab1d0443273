// Archives of file trees (tar in its forms, compressed or not): read into a folder, written from one. Layers,
// base images, images that somebody saved. Thread-safety: pure functions; block. Errors: what libarchive
// says, with the entry's name. A path or link never leads out of the folder: each entry is put in place
// relative to descriptors, no link on the way is followed out of the root.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "build/cancel.h"

namespace lydian::build {

struct ExtractOptions {
  bool layer_whiteouts = false;  // OCI's ".wh.name" and ".wh..wh..opq" become overlayfs's
  CancelToken* cancel = nullptr;
};

// Into `folder` (an existing host folder): owners by number, modes, times, hard links, extended attributes.
Status ExtractArchive(const std::string& archive_path, const std::string& folder,
                      const ExtractOptions& options);
// All below `folder` as a pax archive, compressed by zstd, written under a temporary name and renamed.
Status PackArchive(const std::string& folder, const std::string& archive_path, CancelToken* cancel);
// Whether a file is a tar, compressed or not.
bool IsArchive(const std::string& path);
// One file of an archive by its exact name; NOT_FOUND.
Result<std::string> ReadFromArchive(const std::string& archive_path, const std::string& name, size_t limit);
// The names of an archive's entries, and where `wanted` says so, the entry as a file at the path that it
// gives.
Status UnpackEntries(const std::string& archive_path,
                     const std::function<std::string(const std::string& name)>& wanted);

}  // namespace lydian::build
