#include "guest/stage/copier.h"

#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>

#include "base/copy.h"
#include "base/paths.h"
#include "base/tree.h"

namespace lydian::stage {
namespace {

constexpr size_t kMostMatches = 100'000;

bool HasWildcard(const std::string& text) { return text.find_first_of("*?[") != std::string::npos; }

Status MatchingNames(const View& view, const std::string& path, const std::string& pattern,
                     std::vector<std::string>& out) {
  auto folder = view.Open(path, O_RDONLY | O_DIRECTORY);
  if (!folder.ok()) return OkStatus();
  DIR* dir = ::fdopendir(folder->get());
  if (dir == nullptr) return ErrnoStatus("reading " + path);
  (void)folder->release();
  while (dirent* entry = ::readdir(dir)) {
    std::string name = entry->d_name;
    if (name != "." && name != ".." && ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0)
      out.push_back(JoinPath(path, name));
    if (out.size() > kMostMatches) break;
  }
  ::closedir(dir);
  if (out.size() <= kMostMatches) return OkStatus();
  return ResourceExhausted("\"" + pattern + "\" matches more than " + std::to_string(kMostMatches) +
                           " paths");
}

// Every path of a view that a pattern matches.
Result<std::vector<std::string>> Glob(const View& view, const std::string& pattern) {
  std::vector<std::string> level = {"/"};
  for (const auto& part : PathParts(pattern)) {
    std::vector<std::string> next;
    for (const auto& path : level) {
      if (HasWildcard(part)) {
        RETURN_IF_ERROR(MatchingNames(view, path, part, next));
      } else if (view.Stat(JoinPath(path, part)).ok()) {
        next.push_back(JoinPath(path, part));
      }
    }
    level = std::move(next);
  }
  std::sort(level.begin(), level.end());
  return level;
}

// One tree into another, both by descriptors. A folder that is a link in the target stands for what the link
// leads to inside the target, as with other builders.
class TreeCopy : public TreeVisitor {
 public:
  TreeCopy(const View& view, const Terms& terms, Budget& budget, UniqueFd target, std::string path)
      : view_(view), terms_(terms), budget_(budget) {
    targets_.push_back({std::move(target), std::move(path)});
  }

  Status Enter(int, const std::string& name, const struct stat& info, int) override {
    const std::string path = JoinPath(targets_.back().path, name);
    const int parent = targets_.back().folder.get();
    bool made = ::mkdirat(parent, name.c_str(), 0700) == 0;
    if (made) {
      RETURN_IF_ERROR(budget_.Entry());
    } else if (errno != EEXIST) {
      return ErrnoStatus("making " + path);
    }
    ASSIGN_OR_RETURN(UniqueFd folder, OpenTarget(parent, name, path));
    RETURN_IF_ERROR(SetOwnerAndMode(folder.get(), OwnerOf(info), terms_.Mode(info.st_mode), path));
    targets_.push_back({std::move(folder), path});
    return OkStatus();
  }

  Status Leave(int, const std::string&) override {
    targets_.pop_back();
    return OkStatus();
  }

  Status File(int folder, const std::string& name, const struct stat& info) override {
    if (S_ISLNK(info.st_mode)) return Link(folder, name, info);
    if (!S_ISREG(info.st_mode)) return OkStatus();  // sockets, FIFOs and devices mean nothing in a layer
    UniqueFd path(::openat(folder, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!path.valid()) return ErrnoStatus(name);
    ASSIGN_OR_RETURN(UniqueFd from, ReopenFile(path.get(), name));
    const unsigned mode = terms_.Mode(info.st_mode);
    ASSIGN_OR_RETURN(UniqueFd to, NewFile(targets_.back().folder.get(), name, mode, budget_));
    RETURN_IF_ERROR(
        CopyContent(from.get(), to.get(), [&](uint64_t bytes) { return budget_.Bytes(bytes); }).With(name));
    RETURN_IF_ERROR(SetOwnerAndMode(to.get(), OwnerOf(info), mode, name));
    char capability[64];
    if (ssize_t size = ::fgetxattr(from.get(), "security.capability", capability, sizeof capability);
        size > 0)
      if (::fsetxattr(to.get(), "security.capability", capability, static_cast<size_t>(size), 0) != 0)
        return ErrnoStatus("capabilities of " + name);
    struct timespec times[2] = {info.st_atim, info.st_mtim};
    ::futimens(to.get(), times);
    return OkStatus();
  }

 private:
  struct Target {
    UniqueFd folder;
    std::string path;
  };

  Ids OwnerOf(const struct stat& info) const {
    return terms_.keep_owner ? Ids{info.st_uid, info.st_gid} : terms_.owner;
  }

  Result<UniqueFd> OpenTarget(int parent, const std::string& name, const std::string& path) const {
    struct open_how how {};
    how.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
    UniqueFd folder(static_cast<int>(::syscall(SYS_openat2, parent, name.c_str(), &how, sizeof how)));
    if (folder.valid()) return folder;
    if (errno != ELOOP && errno != ENOTDIR) return ErrnoStatus(path);
    auto behind = view_.Open(path, O_RDONLY | O_DIRECTORY);
    if (behind.ok()) return behind;
    return FailedPrecondition(path + " is a folder here, and there a file or a link that leads to no folder");
  }

  Status Link(int folder, const std::string& name, const struct stat& info) {
    char text[4096];
    ssize_t size = ::readlinkat(folder, name.c_str(), text, sizeof text);
    if (size < 0) return ErrnoStatus(name);
    RETURN_IF_ERROR(budget_.Entry());
    const int target = targets_.back().folder.get();
    RETURN_IF_ERROR(ClearName(target, name));
    if (::symlinkat(std::string(text, static_cast<size_t>(size)).c_str(), target, name.c_str()) != 0)
      return ErrnoStatus("linking " + name);
    const Ids ids = OwnerOf(info);
    if (::fchownat(target, name.c_str(), ids.uid, ids.gid, AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus("owner of " + name);
    return OkStatus();
  }

  const View& view_;
  const Terms& terms_;
  Budget& budget_;
  std::vector<Target> targets_;
};

}  // namespace

Result<int> Copier::Folder(const std::string& path) {
  if (!folder_.valid() || folder_path_ != path) {
    ASSIGN_OR_RETURN(folder_, view_.MakeFolder(path, terms_.owner, budget_));
    folder_path_ = path;
  }
  return folder_.get();
}

Result<std::string> Copier::FileTarget(const std::string& path, const std::string& name) const {
  bool folder = path.ends_with("/");
  if (!folder && !name.empty())
    if (auto st = view_.Stat(path); st.ok() && S_ISDIR(st->st_mode)) folder = true;
  if (folder && name.empty()) return InvalidArgument(path + " names no file");
  return JoinPath("/", folder ? path + "/" + name : path);
}

Status Copier::Put(const std::string& path, const std::string& name, unsigned mode, int content) {
  ASSIGN_OR_RETURN(std::string target, FileTarget(path, name));
  auto put = [&]() -> Status {
    ASSIGN_OR_RETURN(int folder, Folder(ParentPath(target)));
    const std::string base = BaseName(target);
    ASSIGN_OR_RETURN(UniqueFd to, NewFile(folder, base, terms_.Mode(mode), budget_));
    RETURN_IF_ERROR(CopyContent(content, to.get(), [&](uint64_t bytes) { return budget_.Bytes(bytes); }));
    return SetOwnerAndMode(to.get(), terms_.owner, terms_.Mode(mode), base);
  };
  return put().With(target);
}

Status Copier::CopyOne(const View& source, const std::string& path, const std::string& destination) {
  ASSIGN_OR_RETURN(struct stat st, source.Stat(path));
  if (S_ISDIR(st.st_mode)) {
    ASSIGN_OR_RETURN(UniqueFd from, source.Open(path, O_RDONLY | O_DIRECTORY));
    ASSIGN_OR_RETURN(UniqueFd to, view_.MakeFolder(destination, {}, budget_));
    TreeCopy copy(view_, terms_, budget_, std::move(to), JoinPath("/", destination));
    return WalkTree(from.get(), copy, {.depth = terms_.max_depth});
  }
  // A link that is named itself stands for what it leads to.
  ASSIGN_OR_RETURN(UniqueFd file, source.OpenFile(path));
  return Put(destination, BaseName(path), st.st_mode, file.get());
}

Status Copier::Copy(const View& source, const std::vector<std::string>& patterns,
                    const std::string& destination, const std::string& source_name) {
  for (const auto& pattern : patterns) {
    ASSIGN_OR_RETURN(std::vector<std::string> paths, Glob(source, JoinPath("/", pattern)));
    if (paths.empty()) return NotFound("\"" + pattern + "\" is not in " + source_name);
    for (const auto& path : paths) RETURN_IF_ERROR(CopyOne(source, path, destination));
  }
  return OkStatus();
}

}  // namespace lydian::stage
