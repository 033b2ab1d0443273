// Archives (tar in its forms, plain or compressed by gzip, bzip2, xz or zstd) into a view. Nothing of an
// archive leads out of the view, no device, FIFO or socket is made of one, and no program is run to read one.
// Thread-safety: none. Errors: what libarchive says, with the entry's name; RESOURCE_EXHAUSTED beyond a
// limit.
#pragma once

#include <string>

#include "base/status.h"
#include "guest/stage/copier.h"
#include "guest/stage/view.h"

namespace lydian::stage {

struct UnpackOptions {
  std::string path = "/";  // where its root goes
  bool whiteouts = false;  // OCI's names that stand for something removed
  unsigned max_depth = 0;
};

// Whether the file is such an archive. Reading begins at its start.
bool IsArchive(int archive);
Status Unpack(const View& view, int archive, const UnpackOptions& options, Budget& budget);

}  // namespace lydian::stage
