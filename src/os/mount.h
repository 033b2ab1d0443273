// The kernel's mount API by file descriptor: a mount is made detached, changed, and only then moved to its
// place. Thread-safety: none beyond the kernel's; the calls act on the calling thread's mount namespace.
// Ownership: UniqueFd. Errors: the errno with what was tried, and the kernel's own message for a file system
// context.
#pragma once

#include <sys/mount.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::os {

// A file system that is being configured (fsopen).
class FsContext {
 public:
  static Result<FsContext> Open(const std::string& type);
  Status Set(const std::string& key, const std::string& value);
  Status SetFlag(const std::string& key);
  // The value is a descriptor (overlay layers: Linux 6.13).
  Status SetFd(const std::string& key, int fd);
  // Creates the super block and a detached mount of it with MOUNT_ATTR_* `attributes`.
  Result<UniqueFd> Mount(unsigned attributes);

 private:
  explicit FsContext(std::string type, UniqueFd fd) : type_(std::move(type)), fd_(std::move(fd)) {}
  Status Failed(std::string_view what, int error);

  std::string type_;
  UniqueFd fd_;
};

// A detached copy of the mount at `path` (below `dirfd`, which may be the mount itself with an empty path).
Result<UniqueFd> CloneTree(int dirfd, const std::string& path, bool recursive = false);
// Sets MOUNT_ATTR_* `set`; with `user_ns` >= 0 also the id mapping of that user namespace. The mount must be
// detached for that.
Status ChangeMount(int mount_fd, uint64_t set, int user_ns = -1, bool recursive = false);
// Moves a detached mount onto `path` below `dirfd`.
Status MoveMount(int mount_fd, int dirfd, const std::string& path);
// open with resolution that never leaves `root` (openat2, RESOLVE_IN_ROOT): symlinks of an image are followed
// inside it.
Result<UniqueFd> OpenInRoot(int root, const std::string& path, uint64_t flags);
// mkdir -p below `root`, with the same rule; gives the folder.
Result<UniqueFd> MakeDirsInRoot(int root, const std::string& path, int mode = 0755);

// Raw calls for code between clone and exec, where nothing may allocate. -1 and errno.
int RawOpenInRoot(int root, const char* path, uint64_t flags);

// Files that this thread makes belong to host ids `uid`:`gid` while the object lives, with all capabilities
// kept.
class ScopedFsIds {
 public:
  ScopedFsIds(uint32_t uid, uint32_t gid);
  ~ScopedFsIds();
  ScopedFsIds(const ScopedFsIds&) = delete;
  ScopedFsIds& operator=(const ScopedFsIds&) = delete;
};

}  // namespace lydian::os
