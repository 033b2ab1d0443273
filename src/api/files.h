// Contents of source and context files on their way into the blob store. Private to api/.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "api/services.h"

namespace lydian::api {

struct NewFile {
  std::string sha256, data;
};

// On the strand, when the bytes are stored: the workspace has them. UNAVAILABLE when they were collected just
// before, since nobody referred to them yet: the client brings them again.
Status NoteStored(Services& services, const std::string& workspace_id, const std::string& sha256,
                  uint64_t size);

// Stores contents on the files pool and notes on the strand that the workspace has them; `done` comes on the
// strand.
void StoreFiles(ServicesPtr services, const std::string& workspace_id, std::vector<NewFile> files,
                std::function<void(Status)> done);

}  // namespace lydian::api
