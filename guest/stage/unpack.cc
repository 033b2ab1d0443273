#include "guest/stage/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include "base/paths.h"
#include "base/tree.h"

namespace lydian::stage {
namespace {

constexpr size_t kBlock = 256 << 10;
// A file of nothing but zeros shrinks a thousandfold; more than a little of what grows like that is meant to
// fill a disk.
constexpr uint64_t kFreeBytes = uint64_t{1} << 30;
constexpr uint64_t kMostRatio = 500;
constexpr size_t kMostNameBytes = 4096;
constexpr size_t kMostAttributes = 64;
constexpr unsigned kNobody = 65534;

struct Closer {
  void operator()(archive* handle) const { archive_read_free(handle); }
};
using Reader = std::unique_ptr<archive, Closer>;

Status ArchiveError(archive* handle, const std::string& what) {
  int error = archive_errno(handle);
  const char* text = archive_error_string(handle);
  if (error == ENOSPC || error == EDQUOT) return ErrnoStatus(what, error);
  return InvalidArgument(what + ": " + (text != nullptr ? text : "cannot be read as an archive"));
}

Result<Reader> OpenReader(int fd) {
  if (::lseek(fd, 0, SEEK_SET) < 0) return ErrnoStatus("reading an archive");
  Reader reader(archive_read_new());
  // By name: "all" would also run programs that happen to be installed.
  archive_read_support_filter_gzip(reader.get());
  archive_read_support_filter_bzip2(reader.get());
  archive_read_support_filter_xz(reader.get());
  archive_read_support_filter_zstd(reader.get());
  archive_read_support_format_tar(reader.get());
  archive_read_support_format_gnutar(reader.get());
  if (archive_read_open_fd(reader.get(), fd, kBlock) != ARCHIVE_OK)
    return ArchiveError(reader.get(), "opening it");
  return reader;
}

class Unpacker {
 public:
  Unpacker(const View& view, const UnpackOptions& options, Budget& budget, uint64_t archive_bytes)
      : view_(view), options_(options), budget_(budget), archive_bytes_(archive_bytes) {}

  Status Entry(archive* reader, archive_entry* entry) {
    const char* raw = archive_entry_pathname(entry);
    if (raw == nullptr) return InvalidArgument("an entry without a name");
    if (::strnlen(raw, kMostNameBytes + 1) > kMostNameBytes)
      return InvalidArgument("a name of over 4,096 bytes");
    const std::string inside = JoinPath("/", raw);
    if (PathParts(inside).size() > options_.max_depth)
      return ResourceExhausted("folders are nested more than " + std::to_string(options_.max_depth) +
                               " deep");
    const std::string path = JoinPath(options_.path, inside.substr(1));
    if (inside == "/") return Root(entry, path);
    const std::string name = BaseName(path);
    ASSIGN_OR_RETURN(UniqueFd folder, view_.MakeFolder(ParentPath(path), {}, budget_));
    if (options_.whiteouts && name.starts_with(".wh.")) return Whiteout(folder.get(), name, ParentPath(path));
    return Place(reader, entry, folder.get(), name, path);
  }

  // Times of folders, which later entries have touched.
  void Finish() {
    for (const auto& [path, time] : folder_times_) {
      auto fd = view_.Open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (!fd.ok()) continue;
      struct timespec times[2] = {{0, UTIME_OMIT}, time};
      ::futimens(fd->get(), times);
    }
  }

 private:
  Status Root(archive_entry* entry, const std::string& path) {
    ASSIGN_OR_RETURN(UniqueFd folder, view_.MakeFolder(path, {}, budget_));
    return Attributes(folder.get(), ".", entry, path);
  }

  // The view is an overlay on what the archive's layer stands on: what is removed here becomes the overlay's
  // own form of whiteout below.
  Status Whiteout(int folder, const std::string& name, const std::string& parent) {
    if (name != ".wh..wh..opq") {
      const std::string hidden = name.substr(4);
      if (hidden.empty() || hidden == "." || hidden == ".." || hidden.starts_with(".wh.")) return OkStatus();
      return RemoveTreeAt(folder, hidden);
    }
    UniqueFd again(::openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR* dir = again.valid() ? ::fdopendir(again.get()) : nullptr;
    if (dir == nullptr) return ErrnoStatus("reading " + parent);
    (void)again.release();
    std::vector<std::string> names;
    while (dirent* entry = ::readdir(dir)) {
      std::string old = entry->d_name;
      if (old != "." && old != ".." && !placed_.contains(JoinPath(parent, old)))
        names.push_back(std::move(old));
    }
    ::closedir(dir);
    for (const auto& old : names) RETURN_IF_ERROR(RemoveTreeAt(folder, old));
    return OkStatus();
  }

  Status Clear(int folder, const std::string& name) {
    if (::unlinkat(folder, name.c_str(), 0) == 0 || errno == ENOENT) return OkStatus();
    if (errno != EISDIR) return ErrnoStatus("replacing " + name);
    return RemoveTreeAt(folder, name);
  }

  Status Place(archive* reader, archive_entry* entry, int folder, const std::string& name,
               const std::string& path) {
    if (options_.whiteouts) placed_.insert(path);
    if (const char* target = archive_entry_hardlink(entry)) return HardLink(target, folder, name, path);
    const mode_t type = archive_entry_filetype(entry);
    if (type == AE_IFDIR) return Folder(entry, folder, name, path);
    if (type == AE_IFREG) {
      RETURN_IF_ERROR(Clear(folder, name));
      ASSIGN_OR_RETURN(UniqueFd fd, NewFile(folder, name, 0600, budget_));
      RETURN_IF_ERROR(WriteData(reader, fd.get(), path));
      struct stat st;
      if (::fstat(fd.get(), &st) != 0) return ErrnoStatus(path);
      written_files_.emplace(st.st_dev, st.st_ino);
    } else if (type == AE_IFLNK) {
      RETURN_IF_ERROR(Clear(folder, name));
      RETURN_IF_ERROR(budget_.Entry());
      const char* target = archive_entry_symlink(entry);
      if (target == nullptr || ::symlinkat(target, folder, name.c_str()) != 0)
        return ErrnoStatus("linking " + path);
    } else {
      return OkStatus();  // devices, FIFOs and sockets mean nothing in a layer
    }
    return Attributes(folder, name, entry, path);
  }

  Status HardLink(const char* target, int folder, const std::string& name, const std::string& path) {
    const std::string source = JoinPath(options_.path, JoinPath("/", target).substr(1));
    if (source == path) return OkStatus();
    RETURN_IF_ERROR(Clear(folder, name));
    RETURN_IF_ERROR(budget_.Entry());
    ASSIGN_OR_RETURN(UniqueFd from, view_.Open(ParentPath(source), O_PATH | O_DIRECTORY));
    RETURN_IF_ERROR(ChargeLink(from.get(), BaseName(source), source));
    if (::linkat(from.get(), BaseName(source).c_str(), folder, name.c_str(), 0) != 0)
      return ErrnoStatus("linking " + path + " to " + source);
    return OkStatus();
  }

  // A file of a layer below is copied when it gets another name.
  Status ChargeLink(int folder, const std::string& name, const std::string& path) {
    struct stat st;
    if (::fstatat(folder, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) return ErrnoStatus(path);
    if (!S_ISREG(st.st_mode) || written_files_.contains({st.st_dev, st.st_ino})) return OkStatus();
    return Charge(static_cast<uint64_t>(st.st_size));
  }

  Status Charge(uint64_t bytes) {
    RETURN_IF_ERROR(budget_.Bytes(bytes));
    written_ += bytes;
    if (written_ > kFreeBytes && written_ / kMostRatio > archive_bytes_)
      return ResourceExhausted("it grows more than " + std::to_string(kMostRatio) + "-fold");
    return OkStatus();
  }

  Status Folder(archive_entry* entry, int folder, const std::string& name, const std::string& path) {
    if (::mkdirat(folder, name.c_str(), 0700) == 0) {
      RETURN_IF_ERROR(budget_.Entry());
    } else {
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

  Status WriteData(archive* reader, int fd, const std::string& name) {
    const void* block;
    size_t size;
    la_int64_t offset;
    for (;;) {
      int got = archive_read_data_block(reader, &block, &size, &offset);
      if (got == ARCHIVE_EOF) return OkStatus();
      if (got < ARCHIVE_WARN) return ArchiveError(reader, name);
      RETURN_IF_ERROR(Charge(size));
      const char* data = static_cast<const char*>(block);
      while (size > 0) {
        ssize_t wrote = ::pwrite(fd, data, size, offset);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return ErrnoStatus("writing " + name);
        data += wrote, offset += wrote, size -= static_cast<size_t>(wrote);
      }
    }
  }

  Status Attributes(int folder, const std::string& name, archive_entry* entry, const std::string& path) {
    auto id = [](la_int64_t number) {
      return number >= 0 && number < 65536 ? static_cast<unsigned>(number) : kNobody;
    };
    if (::fchownat(folder, name.c_str(), id(archive_entry_uid(entry)), id(archive_entry_gid(entry)),
                   AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus("owner of " + path);
    const bool link = archive_entry_filetype(entry) == AE_IFLNK;
    if (!link && ::fchmodat(folder, name.c_str(), archive_entry_perm(entry), 0) != 0)
      return ErrnoStatus("mode of " + path);
    const std::string self = "/proc/self/fd/" + std::to_string(folder) + "/" + name;
    const char* key;
    const void* value;
    size_t size, count = 0;
    archive_entry_xattr_reset(entry);
    while (archive_entry_xattr_next(entry, &key, &value, &size) == ARCHIVE_OK && ++count <= kMostAttributes) {
      const std::string text = key;
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

  const View& view_;
  const UnpackOptions& options_;
  Budget& budget_;
  uint64_t archive_bytes_, written_ = 0;
  std::set<std::pair<dev_t, ino_t>> written_files_;  // of this archive
  std::vector<std::pair<std::string, timespec>> folder_times_;
  std::set<std::string> placed_;  // of this archive, when whiteouts must tell them from what lies below
};

}  // namespace

bool IsArchive(int archive) {
  auto reader = OpenReader(archive);
  archive_entry* entry = nullptr;
  return reader.ok() && archive_read_next_header(reader->get(), &entry) >= ARCHIVE_WARN;
}

Status Unpack(const View& view, int archive, const UnpackOptions& options, Budget& budget) {
  struct stat info;
  if (::fstat(archive, &info) != 0) return ErrnoStatus("looking at an archive");
  ASSIGN_OR_RETURN(Reader reader, OpenReader(archive));
  Unpacker unpacker(view, options, budget, static_cast<uint64_t>(std::max<off_t>(1, info.st_size)));
  for (;;) {
    archive_entry* entry = nullptr;
    int got = archive_read_next_header(reader.get(), &entry);
    if (got == ARCHIVE_EOF) break;
    if (got < ARCHIVE_WARN) return ArchiveError(reader.get(), "reading it");
    RETURN_IF_ERROR(unpacker.Entry(reader.get(), entry));
  }
  unpacker.Finish();
  return OkStatus();
}

}  // namespace lydian::stage
