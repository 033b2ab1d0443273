// Starts one daemon: a session of its own, stdin /dev/null, stdout and stderr in its log file, sockets by
// inheritance. control loses all rights: user `lydian`, no capabilities, in a mount namespace in which its
// state is bound at kControlState.
//
// Not thread-safe; the caller has no other thread. Errors: the step that failed, with its errno.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::bin {

inline constexpr char kControlState[] = "/run/lydian-state";

struct LaunchSpec {
  std::string role;
  int executable = -1;            // open; executed as it is, wherever it lies
  std::vector<std::string> args;  // from argv[1] on
  std::string log_path;
  int oom_score_adj = 0;           // as far as this process may set it
  std::map<std::string, int> fds;  // by the name under which the daemon gets it
  // Set for a daemon without rights.
  uid_t uid = 0;
  gid_t gid = 0;
  std::string private_state;  // bound at kControlState
};

// The child's pid, once it executes the daemon.
Result<pid_t> LaunchDaemon(const LaunchSpec& spec);

}  // namespace lydian::bin
