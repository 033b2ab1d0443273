// Who runs: each process of Lydian holds the lock of a file of its own, in which its pid and start time
// stand. The lock is a POSIX record lock: it goes with its process, however it ends, and no child inherits
// it.
//
// Thread-safety: none. A process must not open the file in another way while it holds the lock (closing that
// would release it). Errors: FAILED_PRECONDITION when somebody else holds it, with who; else the errno with
// the path.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::cli {

struct Holder {
  int pid = 0;
  uint64_t start_time = 0;  // of /proc/<pid>/stat: with the pid it names one process
  double since = 0;         // unix time
  std::string listen;       // up only: "127.0.0.1:7070"
  std::string url;          // up only: what clients of this machine use
  std::string fds;          // a daemon's listening sockets: "api=5,link=6"
};

class LockFile {
 public:
  LockFile() = default;
  // Takes the lock and writes this process, with `listen` and `fds` of `what`. On FAILED_PRECONDITION `other`
  // says who has it.
  static Result<LockFile> Take(const std::string& path, const Holder& what,
                               std::optional<Holder>* other = nullptr);
  Status Update(const Holder& what);

 private:
  std::string path_;
  UniqueFd fd_;
};

// The process that holds the lock now; none when nobody does or the file isn't there.
Result<std::optional<Holder>> ReadHolder(const std::string& path);

// Field 22 of /proc/<pid>/stat, 0 when there is no such process.
uint64_t ProcessStartTime(int pid);

// "api=5,link=6": names and descriptor numbers (the variable LYDIAN_FDS).
Result<std::map<std::string, int>> ParseFds(const std::string& text);
std::string FormatFds(const std::map<std::string, int>& fds);

}  // namespace lydian::cli
