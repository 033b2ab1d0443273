#include "os/mount.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/caps.h"

namespace lydian::os {

Result<FsContext> FsContext::Open(const std::string& type) {
  UniqueFd fd(::fsopen(type.c_str(), FSOPEN_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("opening file system " + type);
  return FsContext(type, std::move(fd));
}

Status FsContext::Failed(std::string_view what, int error) {
  // The context's descriptor yields the kernel's messages, one a read: "e overlay: ...".
  std::string text = type_ + ": " + std::string(what);
  char line[512];
  while (true) {
    ssize_t n = ::read(fd_.get(), line, sizeof line);
    if (n <= 0) break;
    text += " (" + std::string(line, static_cast<size_t>(n));
    while (!text.empty() && text.back() == '\n') text.pop_back();
    text += ")";
  }
  return ErrnoStatus(text, error);
}

Status FsContext::Set(const std::string& key, const std::string& value) {
  if (::fsconfig(fd_.get(), FSCONFIG_SET_STRING, key.c_str(), value.c_str(), 0) == 0) return OkStatus();
  return Failed("setting " + key + "=" + value, errno);
}

Status FsContext::SetFlag(const std::string& key) {
  if (::fsconfig(fd_.get(), FSCONFIG_SET_FLAG, key.c_str(), nullptr, 0) == 0) return OkStatus();
  return Failed("setting " + key, errno);
}

Status FsContext::SetFd(const std::string& key, int fd) {
  if (::fsconfig(fd_.get(), FSCONFIG_SET_FD, key.c_str(), nullptr, fd) == 0) return OkStatus();
  return Failed("setting " + key + " to a descriptor", errno);
}

Result<UniqueFd> FsContext::Mount(unsigned attributes) {
  if (::fsconfig(fd_.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return Failed("creating", errno);
  UniqueFd mount(::fsmount(fd_.get(), FSMOUNT_CLOEXEC, attributes));
  if (!mount.valid()) return Failed("mounting", errno);
  return mount;
}

Result<UniqueFd> CloneTree(int dirfd, const std::string& path, bool recursive) {
  unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_NO_AUTOMOUNT;
  if (recursive) flags |= AT_RECURSIVE;
  if (path.empty()) flags |= AT_EMPTY_PATH;
  UniqueFd fd(::open_tree(dirfd, path.c_str(), flags));
  if (!fd.valid())
    return ErrnoStatus("opening tree " + (path.empty() ? "fd " + std::to_string(dirfd) : path));
  return fd;
}

Status ChangeMount(int mount_fd, uint64_t set, int user_ns, bool recursive) {
  struct mount_attr attr {};
  attr.attr_set = set;
  if (user_ns >= 0) {
    attr.attr_set |= MOUNT_ATTR_IDMAP;
    attr.userns_fd = static_cast<uint64_t>(user_ns);
  }
  if (::mount_setattr(mount_fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr, sizeof attr) ==
      0) {
    return OkStatus();
  }
  return ErrnoStatus(user_ns >= 0 ? "mapping the ids of a mount" : "changing a mount's attributes");
}

Status MoveMount(int mount_fd, int dirfd, const std::string& path) {
  unsigned flags = MOVE_MOUNT_F_EMPTY_PATH | (path.empty() ? MOVE_MOUNT_T_EMPTY_PATH : 0);
  if (::move_mount(mount_fd, "", dirfd, path.c_str(), flags) == 0) return OkStatus();
  return ErrnoStatus("moving a mount to " + path);
}

int RawOpenInRoot(int root, const char* path, uint64_t flags) {
  struct open_how how {};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  while (true) {
    long fd = ::syscall(SYS_openat2, root, path, &how, sizeof how);
    if (fd >= 0 || (errno != EINTR && errno != EAGAIN)) return static_cast<int>(fd);
  }
}

Result<UniqueFd> OpenInRoot(int root, const std::string& path, uint64_t flags) {
  UniqueFd fd(RawOpenInRoot(root, path.c_str(), flags));
  if (!fd.valid()) return ErrnoStatus("opening " + path + " inside the root");
  return fd;
}

Result<UniqueFd> MakeDirsInRoot(int root, const std::string& path, int mode) {
  UniqueFd found(RawOpenInRoot(root, path.c_str(), O_PATH | O_DIRECTORY));
  if (found.valid()) return found;
  if (errno != ENOENT) return ErrnoStatus("opening folder " + path + " inside the root");
  size_t slash = path.find_last_not_of('/');
  if (slash == std::string::npos) return ErrnoStatus("opening the root", ENOENT);
  std::string trimmed = path.substr(0, slash + 1);
  slash = trimmed.rfind('/');
  std::string parent = slash == std::string::npos || slash == 0 ? "/" : trimmed.substr(0, slash);
  std::string name = slash == std::string::npos ? trimmed : trimmed.substr(slash + 1);
  ASSIGN_OR_RETURN(UniqueFd above, MakeDirsInRoot(root, parent, mode));
  if (::mkdirat(above.get(), name.c_str(), static_cast<mode_t>(mode)) != 0 && errno != EEXIST) {
    return ErrnoStatus("creating folder " + path + " inside the root");
  }
  return OpenInRoot(root, path, O_PATH | O_DIRECTORY);
}

ScopedFsIds::ScopedFsIds(uint32_t uid, uint32_t gid) {
  ::setfsgid(gid);
  ::setfsuid(uid);
  // Leaving fsuid 0 takes the file capabilities out of the effective set; they are still permitted.
  (void)RaiseEffective();
}

ScopedFsIds::~ScopedFsIds() {
  ::setfsuid(0);
  ::setfsgid(0);
  (void)RaiseEffective();
}

}  // namespace lydian::os
