#include "build/archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::build {
namespace {

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

}  // namespace lydian::build
