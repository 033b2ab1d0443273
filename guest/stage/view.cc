#include "guest/stage/view.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/paths.h"

namespace lydian::stage {
namespace {

// The mode of a folder that nobody gave one.
unsigned UsualMode(const std::string& path) {
  if (path == "/tmp" || path == "/var/tmp") return 01777;
  return path == "/root" ? 0700 : 0755;
}

}  // namespace

Status Budget::Bytes(uint64_t count) {
  bytes_ += count;
  if (bytes_ <= most_bytes_) return OkStatus();
  return ResourceExhausted("more than " + std::to_string(most_bytes_ >> 20) +
                           " MiB are written, the limit of one step's files");
}

Status Budget::Entry() {
  if (++entries_ <= most_entries_) return OkStatus();
  return ResourceExhausted("more than " + std::to_string(most_entries_) +
                           " files and folders are made, the limit of one step");
}

Result<UniqueFd> View::Open(const std::string& path, int flags) const {
  struct open_how how {};
  how.flags = static_cast<unsigned>(flags) | O_CLOEXEC;
  if ((flags & O_PATH) == 0) how.flags |= O_DIRECTORY;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  const std::string name = path.empty() ? "/" : path;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, root_.get(), name.c_str(), &how, sizeof how)));
  if (!fd.valid()) return ErrnoStatus(name);
  return fd;
}

Result<struct stat> View::Stat(const std::string& path) const {
  ASSIGN_OR_RETURN(UniqueFd fd, Open(path, O_PATH));
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus(path);
  return st;
}

Result<UniqueFd> ReopenFile(int path, const std::string& shown) {
  struct stat st;
  if (::fstat(path, &st) != 0) return ErrnoStatus(shown);
  if (!S_ISREG(st.st_mode)) return InvalidArgument(shown + " is not a regular file");
  const std::string self = "/proc/self/fd/" + std::to_string(path);
  UniqueFd fd(::open(self.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(shown);
  return fd;
}

Result<UniqueFd> View::OpenFile(const std::string& path) const {
  ASSIGN_OR_RETURN(UniqueFd fd, Open(path, O_PATH));
  return ReopenFile(fd.get(), path);
}

Result<std::string> View::Read(const std::string& path, size_t limit) const {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path));
  return ReadFile("/proc/self/fd/" + std::to_string(fd.get()), limit).With(path);
}

Result<UniqueFd> View::MakeFolder(const std::string& wanted, Ids ids, Budget& budget) const {
  const std::string path = JoinPath("/", wanted);
  auto found = Open(path, O_PATH | O_DIRECTORY);
  if (found.ok() || found.status().error() != ENOENT) return found;
  ASSIGN_OR_RETURN(UniqueFd folder, Open("/", O_PATH | O_DIRECTORY));
  std::string at;
  for (const auto& name : PathParts(path)) {
    at += "/" + name;
    auto next = Open(at, O_PATH | O_DIRECTORY);
    if (!next.ok() && next.status().error() == ENOENT) {
      RETURN_IF_ERROR(budget.Entry());
      if (::mkdirat(folder.get(), name.c_str(), 0700) != 0) {
        if (errno == EEXIST) return FailedPrecondition(at + " is a link that leads nowhere");
        return ErrnoStatus("making " + at);
      }
      if (::fchownat(folder.get(), name.c_str(), ids.uid, ids.gid, AT_SYMLINK_NOFOLLOW) != 0)
        return ErrnoStatus("owner of " + at);
      if (::fchmodat(folder.get(), name.c_str(), UsualMode(at), 0) != 0) return ErrnoStatus("mode of " + at);
      next = Open(at, O_PATH | O_DIRECTORY);
    }
    if (!next.ok()) return next;
    folder = std::move(*next);
  }
  return folder;
}

Status ClearName(int folder, const std::string& name) {
  if (::unlinkat(folder, name.c_str(), 0) == 0 || errno == ENOENT) return OkStatus();
  if (errno == EISDIR) return FailedPrecondition(name + " is a folder there, and a file here");
  return ErrnoStatus("replacing " + name);
}

Result<UniqueFd> NewFile(int folder, const std::string& name, unsigned mode, Budget& budget) {
  RETURN_IF_ERROR(budget.Entry());
  for (bool again : {true, false}) {
    UniqueFd fd(
        ::openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode & 0777));
    if (fd.valid()) return fd;
    if (errno != EEXIST || !again) break;
    RETURN_IF_ERROR(ClearName(folder, name));
  }
  return ErrnoStatus("creating " + name);
}

Status SetOwnerAndMode(int fd, Ids ids, unsigned mode, const std::string& name) {
  if ((ids.uid != 0 || ids.gid != 0) && ::fchown(fd, ids.uid, ids.gid) != 0)
    return ErrnoStatus("owner of " + name);
  if (::fchmod(fd, mode & 07777) != 0) return ErrnoStatus("mode of " + name);
  return OkStatus();
}

}  // namespace lydian::stage
