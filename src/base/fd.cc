#include "base/fd.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>

namespace lydian {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0 && fd_ != fd) ::close(fd_);
  fd_ = fd;
}

Result<UniqueFd> Duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!copy.valid()) return ErrnoStatus("duplicating fd " + std::to_string(fd));
  return copy;
}

Result<std::string> ReadFile(const std::string& path, size_t limit) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("opening " + path);
  struct stat info {};
  std::string out;
  if (::fstat(fd.get(), &info) == 0 && info.st_size > 0) out.reserve(static_cast<size_t>(info.st_size) + 1);
  char buffer[65536];
  while (true) {
    ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("reading " + path);
    if (n == 0) return out;
    out.append(buffer, static_cast<size_t>(n));
    if (out.size() > limit)
      return ResourceExhausted(path + " is larger than " + std::to_string(limit) + " bytes");
  }
}

Status WriteExisting(const std::string& path, std::string_view data) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("opening " + path);
  if (::write(fd.get(), data.data(), data.size()) < 0) return ErrnoStatus("writing " + path);
  return OkStatus();
}

Status WriteAll(int fd, std::string_view data) {
  while (!data.empty()) {
    ssize_t n = ::write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("writing fd " + std::to_string(fd));
    data.remove_prefix(static_cast<size_t>(n));
  }
  return OkStatus();
}

Status WriteFileAtomic(const std::string& path, std::string_view data, int mode, bool durable) {
  static std::atomic<unsigned> counter{0};
  std::string temporary = path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  if (!fd.valid()) return ErrnoStatus("creating " + temporary);
  Status status = WriteAll(fd.get(), data);
  if (status.ok() && durable && ::fsync(fd.get()) != 0) status = ErrnoStatus("syncing " + temporary);
  if (status.ok() && ::rename(temporary.c_str(), path.c_str()) != 0)
    status = ErrnoStatus("renaming to " + path);
  if (!status.ok()) {
    ::unlink(temporary.c_str());
    return std::move(status).With("writing " + path);
  }
  if (durable) {
    auto slash = path.rfind('/');
    UniqueFd dir(::open(slash == std::string::npos ? "." : path.substr(0, slash + 1).c_str(),
                        O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir.valid() || ::fsync(dir.get()) != 0) return ErrnoStatus("syncing the folder of " + path);
  }
  return OkStatus();
}

Status MakeDirs(const std::string& path, int mode) {
  for (size_t at = 1; at <= path.size(); ++at) {
    if (at != path.size() && path[at] != '/') continue;
    std::string part = path.substr(0, at);
    if (::mkdir(part.c_str(), mode) != 0 && errno != EEXIST && errno != EROFS && errno != EACCES) {
      return ErrnoStatus("creating folder " + part);
    }
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return ErrnoStatus("creating folder " + path);
  if (!S_ISDIR(info.st_mode)) return ErrnoStatus("creating folder " + path, ENOTDIR);
  return OkStatus();
}

bool Exists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

}  // namespace lydian
