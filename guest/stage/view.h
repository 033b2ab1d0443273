// A file tree as the stage tool sees it: paths are resolved inside it, also by the symbolic links that it
// holds, and nothing but a regular file is ever opened for reading. Thread-safety: none. Errors: the errno
// with the path as the tree's owner would write it.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::stage {

// What may still be written.
class Budget {
 public:
  void Set(uint64_t bytes, uint64_t entries) { most_bytes_ = bytes, most_entries_ = entries; }
  Status Bytes(uint64_t count);
  Status Entry();
  uint64_t bytes() const { return bytes_; }
  uint64_t entries() const { return entries_; }

 private:
  uint64_t most_bytes_ = 0, most_entries_ = 0;
  uint64_t bytes_ = 0, entries_ = 0;
};

struct Ids {
  unsigned uid = 0, gid = 0;
};

class View {
 public:
  explicit View(UniqueFd root) : root_(std::move(root)) {}

  int root() const { return root_.get(); }
  // `flags` without O_PATH open folders alone; files are opened by OpenFile.
  Result<UniqueFd> Open(const std::string& path, int flags) const;
  Result<struct stat> Stat(const std::string& path) const;  // follows links
  // A regular file, for reading. Anything else, a FIFO or a device, is refused without being opened.
  Result<UniqueFd> OpenFile(const std::string& path) const;
  Result<std::string> Read(const std::string& path, size_t limit) const;
  // The folder, made with its parents if missing (0755, or as /tmp and /root are usually), as an O_PATH
  // descriptor.
  Result<UniqueFd> MakeFolder(const std::string& path, Ids ids, Budget& budget) const;

 private:
  UniqueFd root_;
};

// Opens what `path` (O_PATH) stands for again for reading, if it is a regular file.
Result<UniqueFd> ReopenFile(int path, const std::string& shown);

// An empty new file; what has the name goes, unless it is a folder.
Result<UniqueFd> NewFile(int folder, const std::string& name, unsigned mode, Budget& budget);
// Makes room for `name`: a file or link goes, a folder in the place of a file is an error.
Status ClearName(int folder, const std::string& name);
// Owner first: a change of owner takes set-user-id bits away.
Status SetOwnerAndMode(int fd, Ids ids, unsigned mode, const std::string& name);

}  // namespace lydian::stage
