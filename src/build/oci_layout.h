// What an image's archive says of itself: where its config and its layers are, and the config. OCI's layout
// and docker's own form. Whoever made the archive is not trusted: nesting is cut, and only so many manifests
// are looked at. Thread-safety: pure functions. Errors: INVALID_ARGUMENT; NOT_FOUND for an archive that is no
// image.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "lydian/worker.pb.h"

namespace lydian::build {

// A file of the archive by its name.
using OciReader = std::function<Result<std::string>(const std::string& name)>;

// Names within the archive, from its root ("/blobs/sha256/...").
struct OciLayout {
  std::string config;               // "" or a name that may be absent: none
  std::vector<std::string> layers;  // bottom first
};

Result<OciLayout> ReadOciLayout(const OciReader& read);
// Of what isn't a config, an empty one.
ImageConfig ReadOciConfig(std::string_view json_text);

}  // namespace lydian::build
