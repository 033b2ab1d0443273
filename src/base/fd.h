// Owned file descriptors, and whole-file reads and writes.
// Thread-safety: none beyond the kernel's. Errors: the errno with the path.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace lydian {

// Owns one descriptor; closes it when it goes.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

// A copy of `fd` with close-on-exec.
Result<UniqueFd> Duplicate(int fd);

// The whole of a file. Fails with RESOURCE_EXHAUSTED beyond `limit` bytes.
Result<std::string> ReadFile(const std::string& path, size_t limit = size_t{1} << 30);
// Writes to an existing file such as those of /proc and cgroups: one write, no creation.
Status WriteExisting(const std::string& path, std::string_view data);
// Creates or replaces a file so that a reader sees the old or the new content, never a part: temporary name,
// rename. With `durable`, fsync of file and directory.
Status WriteFileAtomic(const std::string& path, std::string_view data, int mode = 0644, bool durable = false);
// All bytes, through short writes and EINTR.
Status WriteAll(int fd, std::string_view data);
// mkdir -p.
Status MakeDirs(const std::string& path, int mode = 0755);
// rm -rf; a path that isn't there is fine. Follows no symlink, crosses no mount, whatever the depth
// (base/tree.h).
Status RemoveTree(const std::string& path);
bool Exists(const std::string& path);

}  // namespace lydian
