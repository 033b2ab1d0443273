// The listening sockets that `up` owns: made here, or taken from a daemon that lived on when an earlier `up`
// was killed. Not thread-safe. Errors: a busy port says who holds it, where that can be found out.
#pragma once

#include <map>
#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "cli/lock_file.h"

namespace lydian::bin {

struct HostPort {
  std::string host;  // without brackets
  int port = 0;
};
// "127.0.0.1:7070", "[::1]:7070", "localhost:7070".
Result<HostPort> ParseHostPort(const std::string& text);
bool IsLoopback(const std::string& host);

Result<UniqueFd> ListenTcp(const HostPort& address);
// Replaces what lies at the path. 0600, of root.
Result<UniqueFd> ListenUnix(const std::string& path);
// "127.0.0.1:7070", or the path of a unix socket.
Result<std::string> LocalAddress(int fd);

// A copy of descriptor `fd` of process `pid`, if it is a socket that listens.
Result<UniqueFd> TakeFromProcess(int pid, int fd);

}  // namespace lydian::bin
