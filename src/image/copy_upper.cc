// An upper into a layer's folder, by descriptors alone.
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
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

using Charge = std::function<Status(uint64_t)>;

Status CopyAttributes(int from, int to, const std::string& shown, const Charge& charge) {
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
    RETURN_IF_ERROR(charge(static_cast<uint64_t>(length)));
    if (::fsetxattr(to, name, value.data(), static_cast<size_t>(length), 0) != 0)
      return ErrnoStatus(std::string("attribute ") + name + " of " + shown);
  }
  return OkStatus();
}

class UpperCopy : public TreeVisitor {
 public:
  UpperCopy(const Tree& to, int links, const CopyLimits& limits)
      : links_(links), limits_(limits), charge_([this](uint64_t bytes) { return Charged(bytes); }) {
    targets_.push_back({to.root(), UniqueFd(), {}});
  }

  Status Enter(int, const std::string& name, const struct stat& info, int inside) override {
    const int parent = targets_.back().folder;
    if (::mkdirat(parent, name.c_str(), 0700) != 0) return ErrnoStatus("making " + name);
    UniqueFd folder(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!folder.valid()) return ErrnoStatus(name);
    RETURN_IF_ERROR(Own(folder.get(), info, name));
    RETURN_IF_ERROR(CopyAttributes(inside, folder.get(), name, charge_));
    const int number = folder.get();
    targets_.push_back({number, std::move(folder), info});
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
    if (info.st_nlink > 1) return Shared(folder, name, info, target);
    return Regular(folder, name, info, target);
  }

 private:
  struct Target {
    int folder;
    UniqueFd owned;
    struct stat info;
  };

  Status Charged(uint64_t bytes) {
    if (bytes > limits_.bytes - bytes_)
      return ResourceExhausted("more than " + std::to_string(limits_.bytes) + " bytes are to be copied");
    bytes_ += bytes;
    return limits_.walk.check ? limits_.walk.check() : OkStatus();
  }

  // A file that has several names: its copy gets one more, in links_, by which the other names find it
  // wherever they are.
  Status Shared(int folder, const std::string& name, const struct stat& info, int target) {
    const std::string copied = std::to_string(info.st_ino);
    if (::linkat(links_, copied.c_str(), target, name.c_str(), 0) == 0) return OkStatus();
    if (errno != ENOENT && errno != EMLINK) return ErrnoStatus("linking " + name);
    // EMLINK: the file system gives the copy no more names. The others are of a second one.
    const bool first = errno == ENOENT;
    if (!first && ::unlinkat(links_, copied.c_str(), 0) != 0) return ErrnoStatus("forgetting " + name);
    if (first && ++shared_ > limits_.shared)
      return ResourceExhausted("more than " + std::to_string(limits_.shared) +
                               " files have several names each");
    RETURN_IF_ERROR(Regular(folder, name, info, target));
    if (::linkat(target, name.c_str(), links_, copied.c_str(), 0) != 0) return ErrnoStatus("linking " + name);
    return OkStatus();
  }

  static Status Own(int fd, const struct stat& info, const std::string& name) {
    if (::fchown(fd, info.st_uid, info.st_gid) != 0) return ErrnoStatus("owner of " + name);
    if (::fchmod(fd, info.st_mode & 07777) != 0) return ErrnoStatus("mode of " + name);
    return OkStatus();
  }

  Status Regular(int folder, const std::string& name, const struct stat& info, int target) {
    UniqueFd from(::openat(folder, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!from.valid()) return ErrnoStatus(name);
    UniqueFd to(::openat(target, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!to.valid()) return ErrnoStatus("creating " + name);
    RETURN_IF_ERROR(CopyContent(from.get(), to.get(), charge_).With(name));
    RETURN_IF_ERROR(Own(to.get(), info, name));
    RETURN_IF_ERROR(CopyAttributes(from.get(), to.get(), name, charge_));
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

  const int links_;  // by number of the file that was copied
  const CopyLimits& limits_;
  const Charge charge_;
  std::vector<Target> targets_;
  uint64_t bytes_ = 0, shared_ = 0;
};

}  // namespace

Status CopyUpper(const Tree& from, const Tree& to, int links, const CopyLimits& limits) {
  UpperCopy copy(to, links, limits);
  return WalkTree(from.root(), copy, limits.walk);
}

}  // namespace lydian::image
