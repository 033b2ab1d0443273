// Processes by clone3 and pidfd, in the form that a spawner needs: the child runs a function on a stack of
// its own and the parent sleeps until it has called exec or exited (CLONE_VFORK), or, without that flag, goes
// on at once. Thread-safety: as the kernel's; Clone may be called from a thread of a process with more
// threads, but the child's function must then not allocate unless memory is shared. Errors: errno with the
// text.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::os {

// Memory for a child's stack, with a guard page below.
class Stack {
 public:
  explicit Stack(size_t size = 256 << 10);
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  void* base() const { return base_; }
  size_t size() const { return size_; }

 private:
  void* mapping_ = nullptr;
  void* base_ = nullptr;
  size_t size_ = 0;
};

struct CloneSpec {
  uint64_t flags = 0;    // CLONE_*; may hold the 64-bit ones
  int exit_signal = 0;   // 0: a wait for just any child does not see it (until it calls exec)
  int* pidfd = nullptr;  // with CLONE_PIDFD
  int cgroup_fd = -1;    // with CLONE_INTO_CGROUP
  pid_t set_tid = 0;     // the pid in the innermost namespace; 0 = any
  const Stack* stack = nullptr;
  int (*run)(void*) = nullptr;  // its result is the child's exit code
  void* argument = nullptr;
};

// The child's pid as the caller sees it, or -1 and errno. Does not allocate: may be called in a child.
pid_t RawClone(const CloneSpec& spec);

Result<UniqueFd> OpenPidfd(pid_t pid);
Status SignalPidfd(int pidfd, int signal);
// Waits for a child by its pidfd, at most `timeout_ms` (-1 = for ever); the status as from waitpid.
// DEADLINE_EXCEEDED.
Result<int> WaitPidfd(int pidfd, int timeout_ms);
// Whether the process has ended (without reaping it), or does within `timeout_ms`.
bool PidfdEnded(int pidfd, int timeout_ms = 0);

// Closes `fd` in a process of its own, whose pidfd it gives: the last use of a mount or device can take
// seconds to end. The caller reaps it when it has ended.
Result<UniqueFd> CloseElsewhere(UniqueFd fd, const Stack& stack);

struct ProgramOutput {
  int status = 0;      // as from waitpid
  std::string output;  // stdout and stderr, at most 64 KiB
};
// Runs a program of the host and waits for it; for rare, short helpers such as mkfs. Not seen by a wait for
// any child.
Result<ProgramOutput> RunProgram(const std::vector<std::string>& argv);
// A program on the PATH of system tools, or "".
std::string FindProgram(const std::string& name);

}  // namespace lydian::os
