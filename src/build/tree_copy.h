// COPY and ADD: files of the build context or of other layers into a view.
// Thread-safety: pure functions; block. Errors: what is missing, by the name that the Dockerfile gave it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "build/overlay_view.h"
#include "image/stage.h"
#include "lydian/worker.pb.h"

namespace lydian::build {

// The local path of a file's content, by SHA-256.
using Fetcher = std::function<Result<std::string>(const std::string& sha256)>;

// What a COPY takes out of the context: path below the destination -> file. A pure function of the list, so
// that its digest can be part of the step's.
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

Status CopyFromContext(const OverlayView& view, const image::Step& step,
                       const std::vector<ContextMatch>& matches, const Fetcher& fetch);
Status CopyFromView(const OverlayView& view, const image::Step& step, const OverlayView& source);

// A name or number of /etc/passwd and /etc/group in `view`, "user[:group]".
struct Owner {
  unsigned uid = 0, gid = 0;
  std::string home = "/root";
  std::string name = "root";
};
Result<Owner> ResolveOwner(const OverlayView& view, const std::string& text);

// The bytes of a host file into a new file of a folder; replaces what has the name.
Status PlaceFile(int folder, const std::string& name, const std::string& host_path, int mode, unsigned uid,
                 unsigned gid);

}  // namespace lydian::build
