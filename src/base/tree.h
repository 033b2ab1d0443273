// Walks and removes file trees of any depth and width with a bounded number of descriptors: also trees that
// somebody made in order to break whoever walks them. No link is followed, no mount is crossed, and nothing
// recurses: a tree of 40,000 levels costs as much stack as one of two.
// Thread-safety: pure functions; block. Errors: the errno with the entry's name.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace lydian {

// What a walk meets. `folder` is an open descriptor of the folder that holds `name`.
class TreeVisitor {
 public:
  virtual ~TreeVisitor() = default;
  // Everything that is no folder.
  virtual Status File(int folder, const std::string& name, const struct stat& info) = 0;
  // Before what is inside a folder (open as `inside`), and after it.
  virtual Status Enter(int folder, const std::string& name, const struct stat& info, int inside) = 0;
  virtual Status Leave(int folder, const std::string& name) = 0;
};

struct WalkLimits {
  uint64_t depth = UINT64_MAX;    // of folders below the root
  uint64_t entries = UINT64_MAX;  // of all kinds
  std::function<Status()> check;  // asked at every entry: a reason to stop, or OK
};

// All below `root` (an open folder), which is itself not visited. Names may be added or removed by the
// visitor in folders that it is told about; a folder that somebody moves meanwhile ends the walk with an
// error.
Status WalkTree(int root, TreeVisitor& visitor, const WalkLimits& limits = {});

struct TreeSize {
  uint64_t bytes = 0;  // on disk; a file with several names counts once a name
  uint64_t entries = 0;
  uint64_t depth = 0;
};
Result<TreeSize> MeasureTree(int root, const WalkLimits& limits = {});

// RemoveTree (base/fd.h) of `name` in `folder`.
Status RemoveTreeAt(int folder, const std::string& name);

}  // namespace lydian
