// Layers as one tree, for files that are put in or read without a container: an overlay that is mounted
// nowhere, reached by descriptor alone, so that a kill leaves no mount. Paths are resolved inside it
// (symbolic links too). Thread-safety: const methods from any thread. Needs CAP_SYS_ADMIN in the initial user
// namespace. Errors: the errno with the path.
#pragma once

#include <sys/stat.h>

#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::build {

class OverlayView {
 public:
  // Writes go to `transaction_dir`/upper (with its sibling `work`).
  static Result<OverlayView> Writable(const std::vector<std::string>& lowers,
                                      const std::string& transaction_dir);
  static Result<OverlayView> ReadOnly(const std::vector<std::string>& lowers);

  int root() const { return root_.get(); }
  // Never leaves the tree; O_PATH and the like in `flags`.
  Result<UniqueFd> Open(const std::string& path, int flags, int mode = 0) const;
  Result<struct stat> Stat(const std::string& path) const;  // follows links
  // The folder, made with its parents if missing (0755, or as /tmp and /root are usually), as an O_PATH
  // descriptor.
  Result<UniqueFd> MakeDir(const std::string& path, unsigned uid = 0, unsigned gid = 0) const;
  Result<std::string> Read(const std::string& path, size_t limit = size_t{1} << 20) const;

 private:
  explicit OverlayView(UniqueFd root) : root_(std::move(root)) {}
  UniqueFd root_;
};

// The mode of a folder that nobody gave one.
int UsualMode(const std::string& path);

}  // namespace lydian::build
