#include "base/tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace lydian {
namespace {

// Folders whose names are held at once: of one folder, and in bytes of all that the walk stands in.
constexpr size_t kNamesAtOnce = 256;
constexpr size_t kNameBytes = size_t{16} << 20;

Result<UniqueFd> OpenFolder(int parent, const std::string& name) {
  struct open_how how {};
  how.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, parent, name.c_str(), &how, sizeof how)));
  if (fd.valid()) return fd;
  if (errno == EXDEV) return FailedPrecondition(name + ": something is mounted there");
  return ErrnoStatus(name);
}

// A folder that the walk stands in.
struct Level {
  std::string name;  // in its parent; empty for the root
  dev_t device = 0;
  ino_t inode = 0;
  std::vector<std::string> folders;  // met, to be entered; last first
  off_t position = 0;                // where reading goes on
  bool read = false;                 // to its end
};

class Walk {
 public:
  Walk(int root, TreeVisitor& visitor, const WalkLimits& limits)
      : root_(root), visitor_(visitor), limits_(limits) {}

  Status Run() {
    // A descriptor of its own: positions of reading are shared between copies of one.
    at_.reset(::openat(root_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!at_.valid()) return ErrnoStatus("opening a folder");
    RETURN_IF_ERROR(Push(""));
    for (;;) {
      Level& level = levels_.back();
      if (level.folders.empty() && !level.read) RETURN_IF_ERROR(Read(level));
      if (!level.folders.empty()) {
        RETURN_IF_ERROR(Descend(level));
      } else if (level.read) {
        if (levels_.size() == 1) return OkStatus();
        RETURN_IF_ERROR(Ascend());
      }
    }
  }

 private:
  Status Push(std::string name) {
    struct stat info {};
    if (::fstat(at_.get(), &info) != 0) return ErrnoStatus(name);
    Level level;
    level.name = std::move(name);
    level.device = info.st_dev;
    level.inode = info.st_ino;
    levels_.push_back(std::move(level));
    return OkStatus();
  }

  // Visits files and gathers folders, until there are enough of these or all is read.
  Status Read(Level& level) {
    UniqueFd copy(::openat(at_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR* dir = copy.valid() ? ::fdopendir(copy.get()) : nullptr;
    if (dir == nullptr) return ErrnoStatus("reading " + Shown());
    (void)copy.release();
    if (level.position != 0) ::seekdir(dir, level.position);
    const size_t most = held_ < kNameBytes ? kNamesAtOnce : 1;
    Status status;
    while (status.ok() && level.folders.size() < most) {
      errno = 0;
      dirent* entry = ::readdir(dir);
      if (entry == nullptr) {
        if (errno != 0) status = ErrnoStatus("reading " + Shown());
        level.read = true;
        break;
      }
      std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      status = One(level, std::move(name));
    }
    level.position = ::telldir(dir);
    ::closedir(dir);
    return status;
  }

  Status One(Level& level, std::string name) {
    if (++entries_ > limits_.entries)
      return ResourceExhausted("more than " + std::to_string(limits_.entries) + " files and folders");
    if (limits_.check) RETURN_IF_ERROR(limits_.check());
    struct stat info {};
    if (::fstatat(at_.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0)
      return errno == ENOENT ? OkStatus() : ErrnoStatus(name);
    if (!S_ISDIR(info.st_mode)) return visitor_.File(at_.get(), name, info);
    held_ += name.size();
    level.folders.push_back(std::move(name));
    return OkStatus();
  }

  Status Descend(Level& level) {
    std::string name = std::move(level.folders.back());
    level.folders.pop_back();
    held_ -= name.size();
    if (levels_.size() > limits_.depth)
      return ResourceExhausted("folders are nested more than " + std::to_string(limits_.depth) + " deep");
    auto inside = OpenFolder(at_.get(), name);
    if (!inside.ok()) return inside.status().error() == ENOENT ? OkStatus() : inside.status();
    struct stat info {};
    if (::fstat(inside->get(), &info) != 0) return ErrnoStatus(name);
    RETURN_IF_ERROR(visitor_.Enter(at_.get(), name, info, inside->get()));
    at_ = std::move(*inside);
    return Push(std::move(name));
  }

  Status Ascend() {
    const std::string name = std::move(levels_.back().name);
    levels_.pop_back();
    UniqueFd parent(::openat(at_.get(), "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat info {};
    if (!parent.valid() || ::fstat(parent.get(), &info) != 0) return ErrnoStatus("leaving " + name);
    if (info.st_dev != levels_.back().device || info.st_ino != levels_.back().inode)
      return FailedPrecondition(name + " was moved while its tree was walked");
    at_ = std::move(parent);
    return visitor_.Leave(at_.get(), name);
  }

  std::string Shown() const { return levels_.back().name.empty() ? "a folder" : levels_.back().name; }

  int root_;
  TreeVisitor& visitor_;
  const WalkLimits& limits_;
  UniqueFd at_;  // the last level's folder
  std::vector<Level> levels_;
  size_t held_ = 0;  // bytes of names that wait
  uint64_t entries_ = 0;
};

class Measure : public TreeVisitor {
 public:
  Status File(int, const std::string&, const struct stat& info) override {
    Count(info);
    return OkStatus();
  }
  Status Enter(int, const std::string&, const struct stat& info, int) override {
    Count(info);
    size.depth = std::max(size.depth, ++depth_);
    return OkStatus();
  }
  Status Leave(int, const std::string&) override {
    --depth_;
    return OkStatus();
  }
  TreeSize size;

 private:
  void Count(const struct stat& info) {
    ++size.entries;
    size.bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  uint64_t depth_ = 0;
};

class Remover : public TreeVisitor {
 public:
  Status File(int folder, const std::string& name, const struct stat&) override {
    if (::unlinkat(folder, name.c_str(), 0) == 0) {
      ++removed;
    } else if (errno != ENOENT) {
      return ErrnoStatus("removing " + name);
    }
    return OkStatus();
  }
  Status Enter(int, const std::string&, const struct stat&, int) override { return OkStatus(); }
  Status Leave(int folder, const std::string& name) override {
    if (::unlinkat(folder, name.c_str(), AT_REMOVEDIR) == 0) {
      ++removed;
    } else if (errno == ENOTEMPTY) {
      again = true;
    } else if (errno != ENOENT) {
      return ErrnoStatus("removing " + name);
    }
    return OkStatus();
  }
  uint64_t removed = 0;
  bool again = false;  // a file system whose positions move when names go has hidden some from the walk
};

}  // namespace

Status WalkTree(int root, TreeVisitor& visitor, const WalkLimits& limits) {
  return Walk(root, visitor, limits).Run();
}

Result<TreeSize> MeasureTree(int root, const WalkLimits& limits) {
  Measure measure;
  RETURN_IF_ERROR(WalkTree(root, measure, limits));
  return measure.size;
}

Status RemoveTreeAt(int folder, const std::string& name) {
  struct stat info {};
  if (::fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0)
    return errno == ENOENT ? OkStatus() : ErrnoStatus("removing " + name);
  if (!S_ISDIR(info.st_mode)) {
    if (::unlinkat(folder, name.c_str(), 0) != 0 && errno != ENOENT) return ErrnoStatus("removing " + name);
    return OkStatus();
  }
  UniqueFd root(::openat(folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!root.valid()) return ErrnoStatus("removing " + name);
  struct stat opened {};
  if (::fstat(root.get(), &opened) != 0) return ErrnoStatus("removing " + name);
  if (opened.st_dev != info.st_dev)
    return FailedPrecondition("removing " + name + ": something is mounted there");
  for (;;) {
    Remover remover;
    RETURN_IF_ERROR(WalkTree(root.get(), remover).With("removing " + name));
    if (!remover.again) break;
    if (remover.removed == 0) return ErrnoStatus("removing " + name, ENOTEMPTY);
  }
  if (::unlinkat(folder, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT)
    return ErrnoStatus("removing " + name);
  return OkStatus();
}

Status RemoveTree(const std::string& path) { return RemoveTreeAt(AT_FDCWD, path); }

}  // namespace lydian
