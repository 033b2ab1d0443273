// What a COPY takes out of the build context: names only, no file is touched.
// Thread-safety: pure functions. Errors: what is missing, by the name that the Dockerfile gave it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "lydian/worker.pb.h"

namespace lydian::build {

// The local path of a file's content, by SHA-256.
using Fetcher = std::function<Result<std::string>(const std::string& sha256)>;

// Path below the destination -> file. A pure function of the list, so that its digest can be part of the
// step's.
struct ContextMatch {
  const ContextFile* file = nullptr;
  std::string source;    // the pattern it came from
  std::string relative;  // below the source when that is a folder, else empty: the source is the file itself
  bool in_folder = false;
};
Result<std::vector<ContextMatch>> MatchContext(const std::vector<const ContextFile*>& context,
                                               const std::vector<std::string>& sources);
// Names, contents and modes of what was matched.
std::string ContextDigest(const std::vector<ContextMatch>& matches);

}  // namespace lydian::build
