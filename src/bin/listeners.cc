#include "bin/listeners.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>

namespace lydian::bin {
namespace {

constexpr int kBacklog = 4096;

// Inodes of sockets that listen on this TCP port.
std::set<std::string> ListenersOf(int port) {
  std::set<std::string> inodes;
  for (const char* file : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream lines(file);
    std::string line;
    std::getline(lines, line);
    while (std::getline(lines, line)) {
      std::istringstream fields(line);
      std::string slot, local, remote, state, skip, inode;
      fields >> slot >> local >> remote >> state >> skip >> skip >> skip >> skip >> skip >> inode;
      size_t colon = local.rfind(':');
      if (state != "0A" || colon == std::string::npos) continue;
      if (std::strtol(local.c_str() + colon + 1, nullptr, 16) == port)
        inodes.insert("socket:[" + inode + "]");
    }
  }
  return inodes;
}

bool HoldsOne(const std::string& fd_dir, const std::set<std::string>& links) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(fd_dir.c_str()), ::closedir);
  if (!dir) return false;
  while (dirent* entry = ::readdir(dir.get())) {
    char target[64];
    ssize_t n = ::readlink((fd_dir + "/" + entry->d_name).c_str(), target, sizeof target);
    if (n > 0 && links.contains(std::string(target, static_cast<size_t>(n)))) return true;
  }
  return false;
}

// "process 123 (nginx)", or "another process".
std::string HolderOf(int port) {
  std::set<std::string> links = ListenersOf(port);
  std::unique_ptr<DIR, int (*)(DIR*)> proc(::opendir("/proc"), ::closedir);
  while (proc && !links.empty()) {
    dirent* entry = ::readdir(proc.get());
    if (entry == nullptr) break;
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
    std::string folder = std::string("/proc/") + entry->d_name;
    if (!HoldsOne(folder + "/fd", links)) continue;
    std::string name = ReadFile(folder + "/comm", 4096).value_or("");
    if (!name.empty() && name.back() == '\n') name.pop_back();
    return std::string("process ") + entry->d_name + " (" + name + ")";
  }
  return "another process";
}

}  // namespace

Result<HostPort> ParseHostPort(const std::string& text) {
  size_t colon = text.rfind(':');
  HostPort address;
  if (colon == std::string::npos || colon == 0) return InvalidArgument("not HOST:PORT: " + text);
  auto [end, error] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), address.port);
  if (error != std::errc() || end != text.data() + text.size() || address.port < 0 || address.port > 65535) {
    return InvalidArgument("not HOST:PORT: " + text);
  }
  address.host = text.substr(0, colon);
  if (address.host.front() == '[' && address.host.back() == ']')
    address.host = address.host.substr(1, address.host.size() - 2);
  return address;
}

bool IsLoopback(const std::string& host) {
  in_addr v4{};
  in6_addr v6{};
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  if (::inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return host == "localhost";
}

Result<UniqueFd> ListenTcp(const HostPort& address) {
  std::string shown = address.host + ":" + std::to_string(address.port);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  if (int error = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
      error != 0) {
    return InvalidArgument("there is no address " + address.host + ": " + ::gai_strerror(error));
  }
  std::unique_ptr<addrinfo, void (*)(addrinfo*)> free_it(found, ::freeaddrinfo);
  UniqueFd fd(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus("making a socket");
  int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(fd.get(), kBacklog) != 0) {
    if (errno == EADDRINUSE) {
      return Status(Code::kFailedPrecondition,
                    "port " + std::to_string(address.port) + " is in use by " + HolderOf(address.port) +
                        ": stop it, or choose another with --listen HOST:PORT",
                    EADDRINUSE);
    }
    return ErrnoStatus("listening on " + shown);
  }
  return fd;
}

Result<UniqueFd> ListenUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return InvalidArgument("the state folder's path is too long: a unix socket's may have " +
                           std::to_string(sizeof address.sun_path - 1) + " bytes, " + path + " has " +
                           std::to_string(path.size()));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus("making a socket");
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus("removing " + path);
  mode_t before = ::umask(0177);
  int result = ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  int error = errno;
  ::umask(before);
  if (result != 0) return ErrnoStatus("binding " + path, error);
  if (::listen(fd.get(), kBacklog) != 0) return ErrnoStatus("listening on " + path);
  return fd;
}

Result<std::string> LocalAddress(int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0)
    return ErrnoStatus("asking for a socket's address");
  char text[INET6_ADDRSTRLEN] = "";
  if (storage.ss_family == AF_UNIX) return std::string(reinterpret_cast<sockaddr_un*>(&storage)->sun_path);
  if (storage.ss_family == AF_INET) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
    ::inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
    return std::string(text) + ":" + std::to_string(ntohs(v4->sin_port));
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  ::inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
  return "[" + std::string(text) + "]:" + std::to_string(ntohs(v6->sin6_port));
}

Result<UniqueFd> TakeFromProcess(int pid, int fd) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) return ErrnoStatus("looking at process " + std::to_string(pid));
  UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0)));
  if (!copy.valid())
    return ErrnoStatus("taking descriptor " + std::to_string(fd) + " of process " + std::to_string(pid));
  int listens = 0;
  socklen_t size = sizeof listens;
  if (::getsockopt(copy.get(), SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0) {
    return FailedPrecondition("descriptor " + std::to_string(fd) + " of process " + std::to_string(pid) +
                              " does not listen");
  }
  return copy;
}

}  // namespace lydian::bin
