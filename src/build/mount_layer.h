// A mount's files as a layer: what goes over an image when a container starts, nothing copied then.
// Thread-safety: pure function; blocks.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "build/context_match.h"
#include "image/layer_store.h"
#include "lydian/worker.pb.h"

namespace lydian::build {

Result<std::string> MakeMountLayer(image::LayerStore& layers, const std::string& mount_id,
                                   const std::vector<ContextFile>& files, const Fetcher& fetch);

}  // namespace lydian::build
