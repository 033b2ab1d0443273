// An upper into a layer's folder, by descriptors alone.
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <vector>

#include "base/copy.h"
#include "image/tree.h"

namespace lydian::image {
namespace {

// A layer's own attributes: what programs set, and what tells overlayfs that a folder hides what is below.
// Its notes on where a copy came from would be wrong in another layer.
bool Kept(const char* name) {
  return std::strncmp(name, "user.", 5) == 0 || std::strncmp(name, "system.posix_acl_", 17) == 0 ||
         std::strcmp(name, "security.capability") == 0 || std::strcmp(name, "trusted.overlay.opaque") == 0;
}

Status CopyAttributes(int from, int to, const std::string& shown) {
  std::vector<char> names(1024);
  ssize_t size;
  while ((size = ::flistxattr(from, names.data(), names.size())) < 0 && errno == ERANGE &&
         names.size() < 65536)
    names.resize(names.size() * 2);
  if (size < 0) return errno == EOPNOTSUPP ? OkStatus() : ErrnoStatus("attributes of " + shown);
  for (const char* name = names.data(); name < names.data() + size; name += std::strlen(name) + 1) {
    if (!Kept(name)) continue;
    std::vector<char> value(65536);
    ssize_t length = ::fgetxattr(from, name, value.data(), value.size());
    if (length < 0) return ErrnoStatus(std::string("attribute ") + name + " of " + shown);
    if (::fsetxattr(to, name, value.data(), static_cast<size_t>(length), 0) != 0)
      return ErrnoStatus(std::string("attribute ") + name + " of " + shown);
  }
  return OkStatus();
}

class UpperCopy : public TreeVisitor {
 public:
  explicit UpperCopy(const Tree& to) : to_(to) { targets_.push_back({to.root(), UniqueFd(), {}, ""}); }

  Status Enter(int, const std::string& name, const struct stat& info, int inside) override {
    const int parent = targets_.back().folder;
    if (::mkdirat(parent, name.c_str(), 0700) != 0) return ErrnoStatus("making " + name);
    UniqueFd folder(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!folder.valid()) return ErrnoStatus(name);
    RETURN_IF_ERROR(Own(folder.get(), info, name));
    RETURN_IF_ERROR(CopyAttributes(inside, folder.get(), name));
    const int number = folder.get();
    targets_.push_back({number, std::move(folder), info, name});
    return OkStatus();
  }

  Status Leave(int, const std::string&) override {
    const Target& target = targets_.back();
    struct timespec times[2] = {target.info.st_atim, target.info.st_mtim};
    ::futimens(target.folder, times);
    targets_.pop_back();
    return OkStatus();
  }

  Status File(int folder, const std::string& name, const struct stat& info) override {
    const int target = targets_.back().folder;
    if (S_ISLNK(info.st_mode)) return Link(folder, name, info, target);
    if (S_ISSOCK(info.st_mode)) return OkStatus();
    if (!S_ISREG(info.st_mode)) return Special(name, info, target);
    if (info.st_nlink > 1) {
      auto [first, fresh] = linked_.try_emplace(info.st_ino, Linked{PathOf(name), info.st_nlink});
      const bool last = --first->second.left == 0;
      const std::string path = first->second.path;
      if (last) linked_.erase(first);
      if (!fresh && HardLink(path, name, target).ok()) return OkStatus();
    }
    return Regular(folder, name, info, target);
  }

 private:
  struct Target {
    int folder;
    UniqueFd owned;
    struct stat info;
    std::string name;
  };
  // A file that has several names: where the first one went, and how many are still to come.
  struct Linked {
    std::string path;
    nlink_t left;
  };

  std::string PathOf(const std::string& name) const {
    std::string path;
    for (const auto& target : targets_)
      if (!target.name.empty()) path += "/" + target.name;
    return path + "/" + name;
  }

  static Status Own(int fd, const struct stat& info, const std::string& name) {
    if (::fchown(fd, info.st_uid, info.st_gid) != 0) return ErrnoStatus("owner of " + name);
    if (::fchmod(fd, info.st_mode & 07777) != 0) return ErrnoStatus("mode of " + name);
    return OkStatus();
  }

  static Status Regular(int folder, const std::string& name, const struct stat& info, int target) {
    UniqueFd from(::openat(folder, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!from.valid()) return ErrnoStatus(name);
    UniqueFd to(::openat(target, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!to.valid()) return ErrnoStatus("creating " + name);
    RETURN_IF_ERROR(CopyContent(from.get(), to.get(), [](uint64_t) { return OkStatus(); }).With(name));
    RETURN_IF_ERROR(Own(to.get(), info, name));
    RETURN_IF_ERROR(CopyAttributes(from.get(), to.get(), name));
    struct timespec times[2] = {info.st_atim, info.st_mtim};
    ::futimens(to.get(), times);
    return OkStatus();
  }

  static Status Link(int folder, const std::string& name, const struct stat& info, int target) {
    char text[4096];
    ssize_t size = ::readlinkat(folder, name.c_str(), text, sizeof text);
    if (size < 0) return ErrnoStatus(name);
    if (::symlinkat(std::string(text, static_cast<size_t>(size)).c_str(), target, name.c_str()) != 0)
      return ErrnoStatus("linking " + name);
    if (::fchownat(target, name.c_str(), info.st_uid, info.st_gid, AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus("owner of " + name);
    struct timespec times[2] = {info.st_atim, info.st_mtim};
    ::utimensat(target, name.c_str(), times, AT_SYMLINK_NOFOLLOW);
    return OkStatus();
  }

  // A whiteout is a device 0/0. A container can make no other device; one that is there all the same stays
  // out.
  static Status Special(const std::string& name, const struct stat& info, int target) {
    const bool whiteout = S_ISCHR(info.st_mode) && info.st_rdev == 0;
    if (!whiteout && !S_ISFIFO(info.st_mode)) return OkStatus();
    if (::mknodat(target, name.c_str(), info.st_mode & (S_IFMT | 07777), 0) != 0)
      return ErrnoStatus("making " + name);
    if (::fchownat(target, name.c_str(), info.st_uid, info.st_gid, AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus("owner of " + name);
    return OkStatus();
  }

  // Fails where a path is too long to be opened: then the file is copied once more.
  Status HardLink(const std::string& path, const std::string& name, int target) {
    ASSIGN_OR_RETURN(UniqueFd first, to_.OpenFile(path));
    const std::string self = "/proc/self/fd/" + std::to_string(first.get());
    if (::linkat(AT_FDCWD, self.c_str(), target, name.c_str(), AT_SYMLINK_FOLLOW) != 0)
      return ErrnoStatus("linking " + name);
    return OkStatus();
  }

  const Tree& to_;
  std::vector<Target> targets_;
  std::map<ino_t, Linked> linked_;
};

}  // namespace

Status CopyUpper(const Tree& from, const Tree& to, const WalkLimits& limits) {
  UpperCopy copy(to);
  return WalkTree(from.root(), copy, limits);
}

}  // namespace lydian::image
