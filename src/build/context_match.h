// What a COPY takes out of the build context: names only, no file is touched.
// Thread-safety: const methods from any thread. Ownership: matches point into the context that gave them, and
// that into the list it was made of. Errors: what is missing, by the name that the Dockerfile gave it;
// RESOURCE_EXHAUSTED; why it was cancelled.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "build/cancel.h"
#include "lydian/worker.pb.h"

namespace lydian::build {

// The local path of a file's content, by SHA-256.
using Fetcher = std::function<Result<std::string>(const std::string& sha256)>;

// Path below the destination -> file. Views only: there may be millions.
struct ContextMatch {
  const ContextFile* file = nullptr;
  std::string_view source;    // the pattern it came from
  std::string_view relative;  // below the source when that is a folder, else empty: the source is the file
  bool in_folder = false;
};

struct MatchLimits {
  size_t sources = 1000;
  size_t matches = 2'000'000;  // as many entries as the stage tool makes
};

// The files of a context, in the order of their folders: what lies below a name is a range.
class BuildContext {
 public:
  template <typename Files>
  explicit BuildContext(const Files& files) {
    for (const ContextFile& file : files) Add(file);
    Sort();
  }
  // Of each source in turn, files in the order of the list. A function of the list and the sources alone, so
  // that its digest can be part of the step's.
  Result<std::vector<ContextMatch>> Match(const std::vector<std::string>& sources, const CancelToken* cancel,
                                          const MatchLimits& limits = {}) const;

 private:
  struct Entry {
    std::string path;  // with leading slash
    const ContextFile* file = nullptr;
    size_t place = 0;  // in the list
  };
  // What is called `name` or lies below it.
  struct Range {
    size_t begin = 0, end = 0;
    size_t name = 0;  // length of the name, the same in all their paths
  };
  void Add(const ContextFile& file);
  void Sort();
  Range Under(std::string_view name) const;
  Result<std::vector<Range>> Glob(const std::string& pattern, const CancelToken* cancel) const;
  Status Take(const Range& range, const MatchLimits& limits, std::vector<ContextMatch>& out) const;

  std::vector<Entry> entries_;
};

// Names, contents and modes of what was matched.
std::string ContextDigest(const std::vector<ContextMatch>& matches);

}  // namespace lydian::build
