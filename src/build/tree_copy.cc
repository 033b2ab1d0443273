#include "build/tree_copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <sys/sendfile.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "base/ids.h"
#include "build/archive.h"

namespace lydian::build {
namespace {

using image::JoinPath;

bool HasWildcard(const std::string& text) { return text.find_first_of("*?[") != std::string::npos; }

std::vector<std::string> Parts(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t start = 0; start < path.size();) {
    size_t end = std::min(path.find('/', start), path.size());
    if (end > start) parts.push_back(path.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

std::string BaseName(const std::string& path) { return path.substr(path.rfind('/') + 1); }
std::string ParentPath(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos || slash == 0 ? "/" : path.substr(0, slash);
}

Status CopyBytes(int from, int to, const std::string& what) {
  for (;;) {
    ssize_t moved = ::copy_file_range(from, nullptr, to, nullptr, size_t{1} << 30, 0);
    if (moved == 0) return OkStatus();
    if (moved > 0) continue;
    if (errno == EINTR) continue;
    if (errno != EXDEV && errno != EINVAL && errno != EOPNOTSUPP && errno != ENOSYS)
      return ErrnoStatus("copying " + what);
    break;
  }
  for (;;) {
    ssize_t moved = ::sendfile(to, from, nullptr, size_t{1} << 30);
    if (moved == 0) return OkStatus();
    if (moved < 0 && errno != EINTR) return ErrnoStatus("copying " + what);
  }
}

// Makes room for `name`: a file or link goes, a folder in the place of a file is an error.
Status ClearName(int folder, const std::string& name) {
  if (::unlinkat(folder, name.c_str(), 0) == 0 || errno == ENOENT) return OkStatus();
  if (errno == EISDIR) return FailedPrecondition(name + " is a folder there, and a file here");
  return ErrnoStatus("replacing " + name);
}

Result<UniqueFd> NewFile(int folder, const std::string& name) {
  RETURN_IF_ERROR(ClearName(folder, name));
  UniqueFd fd(::openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus("creating " + name);
  return fd;
}

Status SetOwnerAndMode(int fd, unsigned uid, unsigned gid, unsigned mode, const std::string& name) {
  if (::fchown(fd, uid, gid) != 0) return ErrnoStatus("owner of " + name);
  if (::fchmod(fd, mode & 07777) != 0) return ErrnoStatus("mode of " + name);
  return OkStatus();
}

// Is there something below `source` (a path with leading slash, "/" = all)?
bool Below(const std::string& path, const std::string& source) {
  return source == "/" || path.starts_with(source + "/");
}

// A wildcard's matches among the files and folders of the context.
std::set<std::string> Glob(const std::vector<const ContextFile*>& context, const std::string& pattern) {
  auto wanted = Parts(pattern);
  std::set<std::string> found;
  for (const auto* file : context) {
    auto parts = Parts(JoinPath("/", file->path()));
    if (parts.size() < wanted.size()) continue;
    std::string path;
    bool match = true;
    for (size_t i = 0; i < wanted.size() && match; ++i) {
      match = ::fnmatch(wanted[i].c_str(), parts[i].c_str(), FNM_PATHNAME) == 0;
      path += "/" + parts[i];
    }
    if (match) found.insert(path);
  }
  return found;
}

void MatchOne(const std::vector<const ContextFile*>& context, const std::string& source,
              std::vector<ContextMatch>& out) {
  for (const auto* file : context) {
    std::string path = JoinPath("/", file->path());
    if (path == source) {
      out.push_back({file, source, "", false});
    } else if (Below(path, source)) {
      out.push_back({file, source, source == "/" ? path.substr(1) : path.substr(source.size() + 1), true});
    }
  }
}

// Where one source goes: its folder and, for a single file, its name.
struct Target {
  UniqueFd folder;
  std::string path, name;
};

class Copier {
 public:
  Copier(const OverlayView& view, const image::Step& step) : view_(view), step_(step) {}

  Status Prepare() {
    if (!step_.chown.empty()) {
      ASSIGN_OR_RETURN(owner_, ResolveOwner(view_, step_.chown));
    }
    return OkStatus();
  }

  Result<Target> FileTarget(const std::string& source_name) {
    std::string path = step_.destination;
    bool folder = path.ends_with("/");
    if (!folder)
      if (auto st = view_.Stat(path); st.ok() && S_ISDIR(st->st_mode)) folder = true;
    if (folder) path = JoinPath(path, source_name);
    return At(path);
  }

  Result<Target> At(const std::string& path) {
    Target target{.path = path, .name = BaseName(path)};
    ASSIGN_OR_RETURN(target.folder, view_.MakeDir(ParentPath(path), owner_.uid, owner_.gid));
    return target;
  }

  Status Place(const Target& target, const std::string& host_path, unsigned mode) {
    return PlaceFile(target.folder.get(), target.name, host_path, Mode(mode), owner_.uid, owner_.gid)
        .With(target.path);
  }

  // ADD of a tar: its content, into the destination as a folder.
  Status Unpack(const std::string& archive) {
    ASSIGN_OR_RETURN(UniqueFd folder, view_.MakeDir(step_.destination, owner_.uid, owner_.gid));
    return ExtractArchive(archive, "/proc/self/fd/" + std::to_string(folder.get()), {});
  }

  Status PlaceText(const Target& target, const std::string& text) {
    ASSIGN_OR_RETURN(UniqueFd fd, NewFile(target.folder.get(), target.name));
    RETURN_IF_ERROR(WriteAll(fd.get(), text));
    return SetOwnerAndMode(fd.get(), owner_.uid, owner_.gid, static_cast<unsigned>(Mode(0644)), target.path);
  }

  // One entry of another view, with all below it. `target_folder`/`name` is its new place.
  Status Entry(int source_folder, const std::string& source_name, int target_folder, const std::string& name,
               int depth) {
    if (depth > 200) return InvalidArgument("folders are nested too deeply");
    struct stat st;
    if (::fstatat(source_folder, source_name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus(source_name);
    bool keep = step_.chown.empty();
    unsigned uid = keep ? st.st_uid : owner_.uid, gid = keep ? st.st_gid : owner_.gid;
    if (S_ISLNK(st.st_mode)) return Link(source_folder, source_name, target_folder, name, uid, gid);
    if (S_ISDIR(st.st_mode)) {
      UniqueFd from(
          ::openat(source_folder, source_name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (!from.valid()) return ErrnoStatus(source_name);
      if (::mkdirat(target_folder, name.c_str(), 0700) != 0 && errno != EEXIST)
        return ErrnoStatus("making " + name);
      UniqueFd to(::openat(target_folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!to.valid()) return ErrnoStatus(name);
      RETURN_IF_ERROR(SetOwnerAndMode(to.get(), uid, gid, static_cast<unsigned>(Mode(st.st_mode)), name));
      return Contents(std::move(from), to.get(), depth);
    }
    if (!S_ISREG(st.st_mode)) return OkStatus();  // sockets and devices mean nothing in a layer
    UniqueFd from(::openat(source_folder, source_name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!from.valid()) return ErrnoStatus(source_name);
    ASSIGN_OR_RETURN(UniqueFd to, NewFile(target_folder, name));
    RETURN_IF_ERROR(CopyBytes(from.get(), to.get(), name));
    RETURN_IF_ERROR(SetOwnerAndMode(to.get(), uid, gid, static_cast<unsigned>(Mode(st.st_mode)), name));
    char capability[64];
    if (ssize_t size = ::fgetxattr(from.get(), "security.capability", capability, sizeof capability);
        size > 0)
      if (::fsetxattr(to.get(), "security.capability", capability, static_cast<size_t>(size), 0) != 0)
        return ErrnoStatus("capabilities of " + name);
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    ::futimens(to.get(), times);
    return OkStatus();
  }

  Status Contents(UniqueFd from, int to, int depth) {
    UniqueFd again(::openat(from.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR* dir = again.valid() ? ::fdopendir(again.get()) : nullptr;
    if (dir == nullptr) return ErrnoStatus("reading a folder");
    (void)again.release();
    std::vector<std::string> names;
    while (dirent* entry = ::readdir(dir))
      if (std::string name = entry->d_name; name != "." && name != "..") names.push_back(name);
    ::closedir(dir);
    for (const auto& name : names) RETURN_IF_ERROR(Entry(from.get(), name, to, name, depth + 1));
    return OkStatus();
  }

 private:
  int Mode(unsigned mode) const { return step_.chmod >= 0 ? step_.chmod : static_cast<int>(mode & 07777); }

  Status Link(int source_folder, const std::string& source_name, int target_folder, const std::string& name,
              unsigned uid, unsigned gid) {
    char text[4096];
    ssize_t size = ::readlinkat(source_folder, source_name.c_str(), text, sizeof text);
    if (size < 0) return ErrnoStatus(source_name);
    RETURN_IF_ERROR(ClearName(target_folder, name));
    if (::symlinkat(std::string(text, static_cast<size_t>(size)).c_str(), target_folder, name.c_str()) != 0)
      return ErrnoStatus("linking " + name);
    if (::fchownat(target_folder, name.c_str(), uid, gid, AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus("owner of " + name);
    return OkStatus();
  }

  const OverlayView& view_;
  const image::Step& step_;
  Owner owner_;
};

// The lines of a passwd or group file, split at colons.
std::vector<std::vector<std::string>> Table(const OverlayView& view, const std::string& path) {
  std::vector<std::vector<std::string>> rows;
  auto text = view.Read(path);
  if (!text.ok()) return rows;
  for (size_t start = 0; start < text->size();) {
    size_t end = std::min(text->find('\n', start), text->size());
    std::vector<std::string> row;
    std::string line = text->substr(start, end - start);
    for (size_t at = 0; at <= line.size();) {
      size_t colon = std::min(line.find(':', at), line.size());
      row.push_back(line.substr(at, colon - at));
      at = colon + 1;
    }
    if (row.size() >= 3) rows.push_back(std::move(row));
    start = end + 1;
  }
  return rows;
}

bool Number(const std::string& text, unsigned& value) {
  if (text.empty() || text.size() > 9 ||
      !std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); }))
    return false;
  value = static_cast<unsigned>(std::stoul(text));
  return true;
}

// Every path of a view that a pattern matches.
Status GlobView(const OverlayView& view, const std::string& pattern, std::vector<std::string>& out) {
  std::vector<std::string> level = {"/"};
  for (const auto& part : Parts(pattern)) {
    std::vector<std::string> next;
    for (const auto& path : level) {
      if (!HasWildcard(part)) {
        if (view.Stat(JoinPath(path, part)).ok()) next.push_back(JoinPath(path, part));
        continue;
      }
      auto folder = view.Open(path, O_RDONLY | O_DIRECTORY);
      if (!folder.ok()) continue;
      DIR* dir = ::fdopendir(folder->get());
      if (dir == nullptr) return ErrnoStatus("reading " + path);
      (void)folder->release();
      while (dirent* entry = ::readdir(dir)) {
        std::string name = entry->d_name;
        if (name != "." && name != ".." && ::fnmatch(part.c_str(), name.c_str(), 0) == 0)
          next.push_back(JoinPath(path, name));
      }
      ::closedir(dir);
    }
    level = std::move(next);
  }
  std::sort(level.begin(), level.end());
  out = std::move(level);
  return OkStatus();
}

}  // namespace

Status PlaceFile(int folder, const std::string& name, const std::string& host_path, int mode, unsigned uid,
                 unsigned gid) {
  UniqueFd from(::open(host_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from.valid()) return ErrnoStatus("opening the content of " + name);
  ASSIGN_OR_RETURN(UniqueFd to, NewFile(folder, name));
  RETURN_IF_ERROR(CopyBytes(from.get(), to.get(), name));
  return SetOwnerAndMode(to.get(), uid, gid, static_cast<unsigned>(mode), name);
}

Result<std::vector<ContextMatch>> MatchContext(const std::vector<const ContextFile*>& context,
                                               const std::vector<std::string>& sources) {
  std::vector<ContextMatch> matches;
  for (const auto& source : sources) {
    std::string path = JoinPath("/", source);
    size_t before = matches.size();
    if (HasWildcard(path)) {
      for (const auto& found : Glob(context, path)) MatchOne(context, found, matches);
    } else {
      MatchOne(context, path, matches);
    }
    // "COPY . /" of an empty context is a copy of nothing, and no mistake.
    if (matches.size() == before && path != "/")
      return NotFound("\"" + source + "\" is not in the build context");
  }
  return matches;
}

std::string ContextDigest(const std::vector<ContextMatch>& matches) {
  std::vector<std::string> lines;
  for (const auto& match : matches)
    lines.push_back(match.source + "\n" + match.relative + "\n" + match.file->sha256() + "\n" +
                    std::to_string(match.file->mode()));
  std::string all;
  for (const auto& line : lines) all += std::to_string(line.size()) + ":" + line;
  return Sha256Hex(all);
}

Status CopyFromContext(const OverlayView& view, const image::Step& step,
                       const std::vector<ContextMatch>& matches, const Fetcher& fetch) {
  Copier copier(view, step);
  RETURN_IF_ERROR(copier.Prepare());
  for (const auto& match : matches) {
    ASSIGN_OR_RETURN(std::string content, fetch(match.file->sha256()));
    unsigned mode = match.file->mode() == 0 ? 0644 : match.file->mode();
    if (match.in_folder) {
      ASSIGN_OR_RETURN(Target target, copier.At(JoinPath(step.destination, match.relative)));
      RETURN_IF_ERROR(copier.Place(target, content, mode));
    } else if (step.unpack && IsArchive(content)) {
      RETURN_IF_ERROR(copier.Unpack(content));
    } else {
      ASSIGN_OR_RETURN(Target target, copier.FileTarget(BaseName(match.source)));
      RETURN_IF_ERROR(copier.Place(target, content, mode));
    }
  }
  for (const auto& file : step.files) {
    ASSIGN_OR_RETURN(Target target, copier.FileTarget(file.name));
    RETURN_IF_ERROR(copier.PlaceText(target, file.content));
  }
  return OkStatus();
}

Status CopyFromView(const OverlayView& view, const image::Step& step, const OverlayView& source) {
  Copier copier(view, step);
  RETURN_IF_ERROR(copier.Prepare());
  for (const auto& pattern : step.sources) {
    std::vector<std::string> paths;
    RETURN_IF_ERROR(GlobView(source, JoinPath("/", pattern), paths));
    if (paths.empty()) return NotFound("\"" + pattern + "\" is not in " + step.from);
    for (const auto& path : paths) {
      ASSIGN_OR_RETURN(struct stat st, source.Stat(path));
      if (S_ISDIR(st.st_mode)) {
        ASSIGN_OR_RETURN(UniqueFd from, source.Open(path, O_RDONLY | O_DIRECTORY));
        ASSIGN_OR_RETURN(UniqueFd to, view.MakeDir(step.destination));
        RETURN_IF_ERROR(copier.Contents(std::move(from), to.get(), 0));
        continue;
      }
      // A link that is named itself stands for what it leads to.
      ASSIGN_OR_RETURN(UniqueFd file, source.Open(path, O_RDONLY));
      ASSIGN_OR_RETURN(Target target, copier.FileTarget(BaseName(path)));
      RETURN_IF_ERROR(copier.Place(target, "/proc/self/fd/" + std::to_string(file.get()), st.st_mode));
    }
  }
  return OkStatus();
}

Result<Owner> ResolveOwner(const OverlayView& view, const std::string& text) {
  Owner owner;
  if (text.empty()) return owner;
  size_t colon = text.find(':');
  std::string user = text.substr(0, colon), group = colon == std::string::npos ? "" : text.substr(colon + 1);
  bool known = false, number = Number(user, owner.uid);
  for (const auto& row : Table(view, "/etc/passwd")) {
    unsigned uid = 0, gid = 0;
    if (row.size() < 6 || !Number(row[2], uid) || !Number(row[3], gid)) continue;
    if (number ? uid != owner.uid : row[0] != user) continue;
    owner = {uid, gid, row[5].empty() ? "/" : row[5], row[0]};
    known = true;
    break;
  }
  if (!known && !number && user != "root") return InvalidArgument("no user " + user + " in /etc/passwd");
  if (!known && number && owner.uid != 0) owner.home = "/", owner.name = user;
  if (group.empty()) return owner;
  if (Number(group, owner.gid)) return owner;
  for (const auto& row : Table(view, "/etc/group"))
    if (row[0] == group && Number(row[2], owner.gid)) return owner;
  if (group == "root") return owner.gid = 0, owner;
  return InvalidArgument("no group " + group + " in /etc/group");
}

}  // namespace lydian::build
