#include "image/tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/copy.h"
#include "base/paths.h"

namespace lydian::image {
namespace {

mode_t UsualMode(const std::string& path) {
  if (path == "/tmp" || path == "/var/tmp") return 01777;
  return path == "/root" ? 0700 : 0755;
}

Status NoLimit(uint64_t) { return OkStatus(); }

}  // namespace

Result<Tree> Tree::Open(const std::string& root) { return At(AT_FDCWD, root); }

Result<Tree> Tree::At(int folder, const std::string& name) {
  UniqueFd root(::openat(folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!root.valid()) return ErrnoStatus("opening tree " + name);
  return Tree(std::move(root));
}

Result<UniqueFd> Tree::OpenBeneath(const std::string& path, int flags) const {
  // Beneath means: no ".." above the root either. Paths come with a leading slash, as inside the image.
  std::string name = JoinPath("/", path).substr(1);
  if (name.empty()) name = ".";
  struct open_how how {};
  how.flags = static_cast<unsigned>(flags) | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, root_.get(), name.c_str(), &how, sizeof how)));
  if (fd.valid()) return fd;
  if (errno == ELOOP)
    return FailedPrecondition(path + " is reached by a symbolic link, which is not followed");
  return ErrnoStatus(path);
}

Result<struct stat> Tree::Stat(const std::string& path) const {
  const std::string full = JoinPath("/", path);
  ASSIGN_OR_RETURN(UniqueFd parent, OpenBeneath(ParentPath(full), O_PATH | O_DIRECTORY));
  struct stat info;
  const std::string name = full == "/" ? "." : BaseName(full);
  if (::fstatat(parent.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return ErrnoStatus(path);
  return info;
}

Result<UniqueFd> Tree::OpenFile(const std::string& path) const {
  ASSIGN_OR_RETURN(UniqueFd place, OpenBeneath(path, O_PATH));
  struct stat info;
  if (::fstat(place.get(), &info) != 0) return ErrnoStatus(path);
  if (!S_ISREG(info.st_mode)) return FailedPrecondition(path + " is not a regular file");
  const std::string self = "/proc/self/fd/" + std::to_string(place.get());
  UniqueFd file(::open(self.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!file.valid()) return ErrnoStatus(path);
  return file;
}

Result<std::string> Tree::Read(const std::string& path, size_t limit) const {
  ASSIGN_OR_RETURN(UniqueFd file, OpenFile(path));
  return ReadFile("/proc/self/fd/" + std::to_string(file.get()), limit).With(path);
}

Result<Tree> Tree::Below(const std::string& path) const {
  ASSIGN_OR_RETURN(UniqueFd folder, OpenBeneath(path, O_RDONLY | O_DIRECTORY));
  return Tree(std::move(folder));
}

Result<bool> Tree::Empty() const {
  ASSIGN_OR_RETURN(auto names, Names());
  return names.empty();
}

Result<std::vector<std::string>> Tree::Names() const {
  UniqueFd again(::openat(root_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  DIR* dir = again.valid() ? ::fdopendir(again.get()) : nullptr;
  if (dir == nullptr) return ErrnoStatus("reading a tree");
  (void)again.release();
  std::vector<std::string> names;
  while (dirent* entry = ::readdir(dir))
    if (std::string name = entry->d_name; name != "." && name != "..") names.push_back(std::move(name));
  ::closedir(dir);
  return names;
}

Status Tree::Remove(const std::string& path) const {
  const std::string full = JoinPath("/", path);
  if (full == "/") return InvalidArgument("a tree's root is not removed");
  auto parent = OpenBeneath(ParentPath(full), O_PATH | O_DIRECTORY);
  if (!parent.ok()) return parent.status().error() == ENOENT ? OkStatus() : parent.status();
  return RemoveTreeAt(parent->get(), BaseName(full));
}

void Tree::RemoveEmptyFolder(const std::string& path) const {
  auto parent = OpenBeneath(ParentPath(JoinPath("/", path)), O_PATH | O_DIRECTORY);
  if (parent.ok()) ::unlinkat(parent->get(), BaseName(path).c_str(), AT_REMOVEDIR);
}

Result<UniqueFd> Tree::MakeFolder(const std::string& path) const {
  ASSIGN_OR_RETURN(UniqueFd folder, OpenBeneath("/", O_PATH | O_DIRECTORY));
  std::string at;
  for (const auto& name : PathParts(JoinPath("/", path))) {
    at += "/" + name;
    if (::mkdirat(folder.get(), name.c_str(), 0700) == 0) {
      if (::fchmodat(folder.get(), name.c_str(), UsualMode(at), 0) != 0) return ErrnoStatus("mode of " + at);
    } else if (errno != EEXIST) {
      return ErrnoStatus("making " + at);
    }
    ASSIGN_OR_RETURN(folder, OpenBeneath(at, O_PATH | O_DIRECTORY));
  }
  return folder;
}

// The folder of a file that is to be made; an older one of its name is gone.
Result<UniqueFd> Tree::FolderOf(const std::string& full) const {
  if (full == "/") return InvalidArgument("a file without a name");
  ASSIGN_OR_RETURN(UniqueFd folder, MakeFolder(ParentPath(full)));
  if (::unlinkat(folder.get(), BaseName(full).c_str(), 0) != 0 && errno != ENOENT) {
    if (errno == EISDIR) return FailedPrecondition(full + " is a folder and a file");
    return ErrnoStatus("replacing " + full);
  }
  return folder;
}

Status Tree::Link(const std::string& existing, const std::string& path) const {
  const std::string full = JoinPath("/", path), from = JoinPath("/", existing);
  ASSIGN_OR_RETURN(UniqueFd folder, FolderOf(full));
  ASSIGN_OR_RETURN(UniqueFd source, MakeFolder(ParentPath(from)));
  if (::linkat(source.get(), BaseName(from).c_str(), folder.get(), BaseName(full).c_str(), 0) != 0)
    return ErrnoStatus("linking " + full + " to " + from);
  return OkStatus();
}

Status Tree::Put(const std::string& path, int content, unsigned mode) const {
  const std::string full = JoinPath("/", path);
  ASSIGN_OR_RETURN(UniqueFd folder, FolderOf(full));
  const std::string name = BaseName(full);
  UniqueFd file(
      ::openat(folder.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.valid()) return ErrnoStatus("creating " + full);
  RETURN_IF_ERROR(CopyContent(content, file.get(), NoLimit).With(full));
  if (::fchmod(file.get(), mode & 07777) != 0) return ErrnoStatus("mode of " + full);
  return OkStatus();
}

}  // namespace lydian::image
