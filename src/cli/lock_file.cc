#include "cli/lock_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/clock.h"

namespace lydian::cli {
namespace {

constexpr size_t kMaxBytes = 4096;

struct flock WholeFile() {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

std::optional<Holder> Parse(const std::string& text) {
  auto json = nlohmann::json::parse(text.substr(0, text.find('\n')), nullptr, false);
  if (!json.is_object()) return std::nullopt;
  Holder holder;
  auto number = [&](const char* key) {
    return json.contains(key) && json[key].is_number() ? json[key].get<double>() : 0.0;
  };
  auto string = [&](const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : std::string();
  };
  holder.pid = static_cast<int>(number("pid"));
  holder.start_time = static_cast<uint64_t>(number("start_time"));
  holder.since = number("since");
  holder.listen = string("listen");
  holder.url = string("url");
  holder.fds = string("fds");
  return holder;
}

Result<std::string> ReadAll(int fd, const std::string& path) {
  std::string text(kMaxBytes, '\0');
  ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  if (n < 0) return ErrnoStatus("reading " + path);
  text.resize(static_cast<size_t>(n));
  return text;
}

}  // namespace

Result<LockFile> LockFile::Take(const std::string& path, const Holder& what, std::optional<Holder>* other) {
  LockFile file;
  file.path_ = path;
  file.fd_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.fd_.valid()) return ErrnoStatus("opening " + path);
  // Who can open it can hold it; an earlier version let everybody. It may be another user's, who sees to it
  // himself.
  (void)!::fchmod(file.fd_.get(), 0600);
  struct flock lock = WholeFile();
  if (::fcntl(file.fd_.get(), F_SETLK, &lock) != 0) {
    if (errno != EACCES && errno != EAGAIN) return ErrnoStatus("locking " + path);
    ASSIGN_OR_RETURN(auto holder, ReadHolder(path));
    if (other != nullptr) *other = holder;
    return FailedPrecondition(path + " is held by process " +
                              (holder ? std::to_string(holder->pid) : "unknown"));
  }
  RETURN_IF_ERROR(file.Update(what));
  return file;
}

Status LockFile::Update(const Holder& what) {
  // The pid is the first number in the file: scripts read it.
  nlohmann::ordered_json json{{"pid", ::getpid()},
                              {"start_time", ProcessStartTime(::getpid())},
                              {"since", SystemClock().UnixSeconds()}};
  if (!what.listen.empty()) json["listen"] = what.listen;
  if (!what.url.empty()) json["url"] = what.url;
  if (!what.fds.empty()) json["fds"] = what.fds;
  std::string text = json.dump() + "\n";
  if (::pwrite(fd_.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      ::ftruncate(fd_.get(), static_cast<off_t>(text.size())) != 0) {
    return ErrnoStatus("writing " + path_);
  }
  return OkStatus();
}

Result<std::optional<Holder>> ReadHolder(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    if (errno == ENOENT) return std::optional<Holder>();
    return ErrnoStatus("opening " + path);
  }
  struct flock lock = WholeFile();
  if (::fcntl(fd.get(), F_GETLK, &lock) != 0) return ErrnoStatus("asking for the lock of " + path);
  if (lock.l_type == F_UNLCK) return std::optional<Holder>();
  ASSIGN_OR_RETURN(std::string text, ReadAll(fd.get(), path));
  // Between taking the lock and writing there may be nothing yet; the kernel knows the pid either way.
  Holder holder = Parse(text).value_or(Holder{});
  if (holder.pid != lock.l_pid)
    holder = Holder{.pid = lock.l_pid, .start_time = ProcessStartTime(lock.l_pid)};
  return std::optional<Holder>(holder);
}

uint64_t ProcessStartTime(int pid) {
  auto text = ReadFile("/proc/" + std::to_string(pid) + "/stat", 64 << 10);
  if (!text.ok()) return 0;
  // The name in parentheses may hold anything; the 20th field behind it is the start time.
  size_t at = text->rfind(')');
  if (at == std::string::npos) return 0;
  for (int field = 0; field < 20; ++field) {
    at = text->find(' ', at + 1);
    if (at == std::string::npos) return 0;
  }
  uint64_t value = 0;
  std::from_chars(text->data() + at + 1, text->data() + text->size(), value);
  return value;
}

Result<std::map<std::string, int>> ParseFds(const std::string& text) {
  std::map<std::string, int> fds;
  size_t at = 0;
  while (at < text.size()) {
    size_t end = std::min(text.find(',', at), text.size());
    size_t equals = text.find('=', at);
    int fd = -1;
    if (equals != std::string::npos && equals > at && equals < end) {
      auto [stop, error] = std::from_chars(text.data() + equals + 1, text.data() + end, fd);
      if (error != std::errc() || stop != text.data() + end) fd = -1;
    }
    if (fd < 0) return InvalidArgument("LYDIAN_FDS is not name=number,...: " + text.substr(at, end - at));
    std::string name = text.substr(at, equals - at);
    if (!fds.emplace(name, fd).second) return InvalidArgument("LYDIAN_FDS names " + name + " twice");
    at = end + 1;
  }
  return fds;
}

std::string FormatFds(const std::map<std::string, int>& fds) {
  std::string text;
  for (const auto& [name, fd] : fds) text += (text.empty() ? "" : ",") + name + "=" + std::to_string(fd);
  return text;
}

}  // namespace lydian::cli
