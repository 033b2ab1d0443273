#include "build/archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "build/overlay_view.h"
#include "image/stage.h"

namespace lydian::build {
namespace {

using image::JoinPath;

struct Closer {
  void operator()(archive* handle) const { archive_read_free(handle); }
};
using Reader = std::unique_ptr<archive, Closer>;
struct WriteCloser {
  void operator()(archive* handle) const { archive_write_free(handle); }
};
using Writer = std::unique_ptr<archive, WriteCloser>;

Status ArchiveError(archive* handle, const std::string& what) {
  int error = archive_errno(handle);
  const char* text = archive_error_string(handle);
  if (error == ENOSPC || error == EDQUOT) return ErrnoStatus(what, error);
  return InvalidArgument(what + ": " + (text != nullptr ? text : "cannot be read as an archive"));
}

Result<Reader> OpenReader(const std::string& path) {
  Reader reader(archive_read_new());
  archive_read_support_filter_all(reader.get());
  archive_read_support_format_tar(reader.get());
  archive_read_support_format_gnutar(reader.get());
  if (archive_read_open_filename(reader.get(), path.c_str(), 1 << 18) != ARCHIVE_OK)
    return ArchiveError(reader.get(), path);
  return reader;
}

// The next entry; null at the end.
Result<archive_entry*> Next(archive* reader, const std::string& path) {
  archive_entry* entry = nullptr;
  int got = archive_read_next_header(reader, &entry);
  if (got == ARCHIVE_EOF) return static_cast<archive_entry*>(nullptr);
  if (got < ARCHIVE_WARN) return ArchiveError(reader, path);
  return entry;
}

Status WriteData(archive* reader, int fd, const std::string& name) {
  const void* block;
  size_t size;
  la_int64_t offset;
  for (;;) {
    int got = archive_read_data_block(reader, &block, &size, &offset);
    if (got == ARCHIVE_EOF) return OkStatus();
    if (got < ARCHIVE_WARN) return ArchiveError(reader, name);
    const char* data = static_cast<const char*>(block);
    while (size > 0) {
      ssize_t wrote = ::pwrite(fd, data, size, offset);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return ErrnoStatus("writing " + name);
      data += wrote, offset += wrote, size -= static_cast<size_t>(wrote);
    }
  }
}

// Puts entries below one folder.
class Extractor {
 public:
  Extractor(const OverlayView& root, const ExtractOptions& options) : root_(root), options_(options) {}

  Status Entry(archive* reader, archive_entry* entry) {
    const char* raw = archive_entry_pathname(entry);
    if (raw == nullptr) return InvalidArgument("an entry without a name");
    std::string path = JoinPath("/", raw);
    if (path == "/") return Attributes(root_.root(), ".", entry, path);
    size_t slash = path.rfind('/');
    std::string name = path.substr(slash + 1), parent = slash == 0 ? "/" : path.substr(0, slash);
    auto folder = root_.MakeDir(parent);
    if (!folder.ok()) return folder.status();
    if (options_.layer_whiteouts && name.starts_with(".wh.")) return Whiteout(folder->get(), name);
    return Place(reader, entry, folder->get(), name, path);
  }

  // Times of folders, which later entries have touched.
  Status Finish() {
    for (const auto& [path, time] : folder_times_) {
      auto fd = root_.Open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (!fd.ok()) continue;
      struct timespec times[2] = {{0, UTIME_OMIT}, time};
      ::futimens(fd->get(), times);
    }
    return OkStatus();
  }

 private:
  Status Whiteout(int folder, const std::string& name) {
    if (name == ".wh..wh..opq") {
      std::string self = "/proc/self/fd/" + std::to_string(folder);
      if (::setxattr(self.c_str(), "trusted.overlay.opaque", "y", 1, 0) != 0)
        return ErrnoStatus("an opaque folder");
      return OkStatus();
    }
    std::string hidden = name.substr(4);
    if (hidden.empty() || hidden == "." || hidden == ".." || hidden.starts_with(".wh.")) return OkStatus();
    RETURN_IF_ERROR(Clear(folder, hidden));
    if (::mknodat(folder, hidden.c_str(), S_IFCHR, 0) != 0) return ErrnoStatus("a whiteout of " + hidden);
    return OkStatus();
  }

  Status Clear(int folder, const std::string& name) {
    if (::unlinkat(folder, name.c_str(), 0) == 0 || errno == ENOENT) return OkStatus();
    if (errno != EISDIR) return ErrnoStatus("replacing " + name);
    std::string path = "/proc/self/fd/" + std::to_string(folder) + "/" + name;
    return RemoveTree(path);
  }

  Status Place(archive* reader, archive_entry* entry, int folder, const std::string& name,
               const std::string& path) {
    mode_t type = archive_entry_filetype(entry);
    if (const char* target = archive_entry_hardlink(entry)) {
      RETURN_IF_ERROR(Clear(folder, name));
      std::string source = JoinPath("/", target);
      auto from = root_.Open(source.substr(0, source.rfind('/') + 1), O_PATH | O_DIRECTORY);
      if (!from.ok()) return from.status();
      if (::linkat(from->get(), source.substr(source.rfind('/') + 1).c_str(), folder, name.c_str(), 0) != 0)
        return ErrnoStatus("linking " + path + " to " + source);
      return OkStatus();
    }
    if (type == AE_IFDIR) {
      if (::mkdirat(folder, name.c_str(), 0700) != 0) {
        if (errno != EEXIST) return ErrnoStatus("making " + path);
        struct stat st;
        if (::fstatat(folder, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) return ErrnoStatus(path);
        if (!S_ISDIR(st.st_mode)) {
          RETURN_IF_ERROR(Clear(folder, name));
          if (::mkdirat(folder, name.c_str(), 0700) != 0) return ErrnoStatus("making " + path);
        }
      }
      folder_times_.emplace_back(path, timespec{archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)});
      return Attributes(folder, name, entry, path);
    }
    RETURN_IF_ERROR(Clear(folder, name));
    if (type == AE_IFREG) {
      UniqueFd fd(::openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
      if (!fd.valid()) return ErrnoStatus("creating " + path);
      RETURN_IF_ERROR(WriteData(reader, fd.get(), path));
    } else if (type == AE_IFLNK) {
      const char* target = archive_entry_symlink(entry);
      if (target == nullptr || ::symlinkat(target, folder, name.c_str()) != 0)
        return ErrnoStatus("linking " + path);
    } else if (type == AE_IFIFO ||
               ((type == AE_IFCHR || type == AE_IFBLK) && archive_entry_rdev(entry) != 0)) {
      if (::mknodat(folder, name.c_str(), type | 0600, archive_entry_rdev(entry)) != 0)
        return ErrnoStatus("making " + path);
    } else {
      return OkStatus();  // a socket; or a device 0/0, which would be a whiteout that nobody asked for
    }
    return Attributes(folder, name, entry, path);
  }

  Status Attributes(int folder, const std::string& name, archive_entry* entry, const std::string& path) {
    auto uid = static_cast<uid_t>(archive_entry_uid(entry));
    auto gid = static_cast<gid_t>(archive_entry_gid(entry));
    if (::fchownat(folder, name.c_str(), uid, gid, AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus("owner of " + path);
    bool link = archive_entry_filetype(entry) == AE_IFLNK;
    if (!link && ::fchmodat(folder, name.c_str(), archive_entry_perm(entry), 0) != 0)
      return ErrnoStatus("mode of " + path);
    std::string self = "/proc/self/fd/" + std::to_string(folder) + "/" + name;
    const char* key;
    const void* value;
    size_t size;
    archive_entry_xattr_reset(entry);
    while (archive_entry_xattr_next(entry, &key, &value, &size) == ARCHIVE_OK) {
      std::string text = key;
      // overlayfs's own would change what the layer means; labels belong to the machine that wrote them.
      if (text.starts_with("trusted.") || text == "security.selinux") continue;
      if (::lsetxattr(self.c_str(), key, value, size, 0) != 0 && errno != EOPNOTSUPP && errno != EPERM)
        return ErrnoStatus("attribute " + text + " of " + path);
    }
    struct timespec times[2] = {{0, UTIME_OMIT},
                                {archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)}};
    ::utimensat(folder, name.c_str(), times, AT_SYMLINK_NOFOLLOW);
    return OkStatus();
  }

  const OverlayView& root_;
  ExtractOptions options_;
  std::vector<std::pair<std::string, timespec>> folder_times_;
};

Status PackEntry(archive* disk, archive* writer, archive_entry* entry, const std::string& folder) {
  std::string path = archive_entry_pathname(entry);
  std::string relative = path.size() > folder.size() ? path.substr(folder.size() + 1) : "";
  if (relative.empty()) return OkStatus();
  archive_entry_set_pathname(entry, relative.c_str());
  if (archive_entry_filetype(entry) == AE_IFSOCK) return OkStatus();
  if (archive_write_header(writer, entry) < ARCHIVE_WARN) return ArchiveError(writer, "packing " + relative);
  if (archive_entry_filetype(entry) != AE_IFREG || archive_entry_size(entry) == 0) return OkStatus();
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(path);
  std::vector<char> buffer(size_t{1} << 18);
  for (;;) {
    ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus("reading " + path);
    if (got == 0) return OkStatus();
    if (archive_write_data(writer, buffer.data(), static_cast<size_t>(got)) < 0)
      return ArchiveError(writer, "packing " + relative);
  }
  (void)disk;
}

// Hard links are told from files by the resolver, which hands over what is ready to be written.
Status PackAll(archive* disk, archive* writer, const std::string& folder, CancelToken* cancel) {
  std::unique_ptr<archive_entry_linkresolver, void (*)(archive_entry_linkresolver*)> links(
      archive_entry_linkresolver_new(), archive_entry_linkresolver_free);
  archive_entry_linkresolver_set_strategy(links.get(), ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE);
  for (;;) {
    if (cancel) RETURN_IF_ERROR(cancel->Check());
    archive_entry* entry = archive_entry_new();
    std::unique_ptr<archive_entry, void (*)(archive_entry*)> owned(entry, archive_entry_free);
    int got = archive_read_next_header2(disk, entry);
    if (got == ARCHIVE_EOF) return OkStatus();
    if (got < ARCHIVE_WARN) return ArchiveError(disk, "reading " + folder);
    archive_read_disk_descend(disk);
    archive_entry *ready = entry, *spare = nullptr;
    // The link's target must be stored by the same relative name.
    archive_entry_linkify(links.get(), &ready, &spare);
    if (ready == nullptr) continue;
    if (const char* target = archive_entry_hardlink(ready)) {
      std::string to = target;
      if (to.starts_with(folder + "/"))
        archive_entry_set_hardlink(ready, to.substr(folder.size() + 1).c_str());
      archive_entry_set_size(ready, 0);
    }
    RETURN_IF_ERROR(PackEntry(disk, writer, ready, folder));
  }
}

}  // namespace

Status ExtractArchive(const std::string& archive_path, const std::string& folder,
                      const ExtractOptions& options) {
  ASSIGN_OR_RETURN(Reader reader, OpenReader(archive_path));
  ASSIGN_OR_RETURN(OverlayView root, OverlayView::ReadOnly({folder}));
  Extractor extractor(root, options);
  for (;;) {
    if (options.cancel) RETURN_IF_ERROR(options.cancel->Check());
    ASSIGN_OR_RETURN(archive_entry * entry, Next(reader.get(), archive_path));
    if (entry == nullptr) return extractor.Finish();
    RETURN_IF_ERROR(extractor.Entry(reader.get(), entry).With("unpacking " + archive_path));
  }
}

Status PackArchive(const std::string& folder, const std::string& archive_path, CancelToken* cancel) {
  Reader disk(archive_read_disk_new());
  archive_read_disk_set_symlink_physical(disk.get());
  archive_read_disk_set_behavior(disk.get(), ARCHIVE_READDISK_NO_FFLAGS);
  if (archive_read_disk_open(disk.get(), folder.c_str()) != ARCHIVE_OK)
    return ArchiveError(disk.get(), folder);
  std::string temporary = archive_path + ".part-" + RandomHex(4);
  Status packed;
  {
    Writer writer(archive_write_new());
    archive_write_set_format_pax_restricted(writer.get());
    archive_write_add_filter_zstd(writer.get());
    archive_write_set_filter_option(writer.get(), "zstd", "compression-level", "3");
    if (archive_write_open_filename(writer.get(), temporary.c_str()) != ARCHIVE_OK)
      return ArchiveError(writer.get(), temporary);
    packed = PackAll(disk.get(), writer.get(), folder, cancel);
    if (packed.ok() && archive_write_close(writer.get()) != ARCHIVE_OK)
      packed = ArchiveError(writer.get(), archive_path);
  }
  if (packed.ok() && ::rename(temporary.c_str(), archive_path.c_str()) != 0)
    packed = ErrnoStatus("renaming to " + archive_path);
  if (!packed.ok()) ::unlink(temporary.c_str());
  return packed;
}

bool IsArchive(const std::string& path) {
  auto reader = OpenReader(path);
  archive_entry* entry = nullptr;
  return reader.ok() && archive_read_next_header(reader->get(), &entry) >= ARCHIVE_WARN;
}

Result<std::string> ReadFromArchive(const std::string& archive_path, const std::string& name, size_t limit) {
  ASSIGN_OR_RETURN(Reader reader, OpenReader(archive_path));
  for (;;) {
    ASSIGN_OR_RETURN(archive_entry * entry, Next(reader.get(), archive_path));
    if (entry == nullptr) return NotFound("no " + name + " in " + archive_path);
    const char* path = archive_entry_pathname(entry);
    if (path == nullptr || JoinPath("/", path) != JoinPath("/", name)) continue;
    std::string text;
    char buffer[65536];
    for (;;) {
      la_ssize_t got = archive_read_data(reader.get(), buffer, sizeof buffer);
      if (got < 0) return ArchiveError(reader.get(), archive_path);
      if (got == 0) return text;
      text.append(buffer, static_cast<size_t>(got));
      if (text.size() > limit) return ResourceExhausted(name + " in " + archive_path + " is too large");
    }
  }
}

Status UnpackEntries(const std::string& archive_path,
                     const std::function<std::string(const std::string&)>& wanted) {
  ASSIGN_OR_RETURN(Reader reader, OpenReader(archive_path));
  for (;;) {
    ASSIGN_OR_RETURN(archive_entry * entry, Next(reader.get(), archive_path));
    if (entry == nullptr) return OkStatus();
    const char* path = archive_entry_pathname(entry);
    if (path == nullptr || archive_entry_filetype(entry) != AE_IFREG) continue;
    std::string target = wanted(JoinPath("/", path));
    if (target.empty()) continue;
    UniqueFd fd(::open(target.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd.valid()) return ErrnoStatus("creating " + target);
    RETURN_IF_ERROR(WriteData(reader.get(), fd.get(), target));
  }
}

}  // namespace lydian::build
