#include "base/copy.h"

#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/fd.h"

namespace lydian {
namespace {

constexpr size_t kSmall = 32 << 10;
constexpr uint64_t kPiece = uint64_t{8} << 20;

// Most files are small: one read and one write.
Status CopySmall(int from, int to, const std::function<Status(uint64_t)>& charge, bool* whole) {
  char buffer[kSmall + 1];
  ssize_t got;
  do {
    got = ::pread(from, buffer, sizeof buffer, 0);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return ErrnoStatus("reading");
  *whole = got <= static_cast<ssize_t>(kSmall);
  if (!*whole) return OkStatus();
  RETURN_IF_ERROR(charge(static_cast<uint64_t>(got)));
  return WriteAll(to, {buffer, static_cast<size_t>(got)});
}

Status CopyRange(int from, int to, off_t at, off_t end, const std::function<Status(uint64_t)>& charge) {
  if (::lseek(to, at, SEEK_SET) < 0) return ErrnoStatus("writing");
  while (at < end) {
    const uint64_t wanted = std::min(kPiece, static_cast<uint64_t>(end - at));
    RETURN_IF_ERROR(charge(wanted));
    for (uint64_t left = wanted; left > 0;) {
      ssize_t moved = ::sendfile(to, from, &at, left);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) return ErrnoStatus("copying");
      if (moved == 0) return OkStatus();  // it has become shorter
      left -= static_cast<uint64_t>(moved);
    }
  }
  return OkStatus();
}

}  // namespace

Status CopyContent(int from, int to, const std::function<Status(uint64_t)>& charge) {
  struct stat info {};
  if (::fstat(from, &info) != 0) return ErrnoStatus("looking at a file");
  if (!S_ISREG(info.st_mode)) return InvalidArgument("not a regular file");
  const bool holes = info.st_blocks * 512 < info.st_size;
  if (info.st_size <= static_cast<off_t>(kSmall) && !holes) {
    bool whole = false;
    RETURN_IF_ERROR(CopySmall(from, to, charge, &whole));
    if (whole) return OkStatus();
  }
  for (off_t at = 0; at < info.st_size;) {
    off_t data = ::lseek(from, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // a hole to the end
    off_t hole = data < 0 ? info.st_size : ::lseek(from, data, SEEK_HOLE);
    if (data < 0) data = at;  // a file system without holes
    if (hole < 0) return ErrnoStatus("looking for holes");
    RETURN_IF_ERROR(CopyRange(from, to, data, hole, charge));
    at = hole;
  }
  if (::ftruncate(to, info.st_size) != 0) return ErrnoStatus("writing");
  return OkStatus();
}

}  // namespace lydian
