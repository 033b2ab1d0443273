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

// Stores contents on the files pool and notes on the strand that the workspace has them; `done` comes on the
// strand.
void StoreFiles(ServicesPtr services, const std::string& workspace_id, std::vector<NewFile> files,
                std::function<void(Status)> done);

}  // namespace lydian::api
