#include "worker/exit_text.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>

#include "base/text.h"

namespace lydian::worker {

std::string SignalName(int signal) {
  const char* name = sigabbrev_np(signal);
  return name == nullptr ? "" : std::string("SIG") + name;
}

namespace {

// "used 256 MiB of 256 MiB"; the kernel may also have taken a container that was within its limit.
std::string MemoryText(const ExitEvent& event) {
  const uint64_t limit = event.memory_limit_bytes(), peak = event.memory_peak_bytes();
  if (limit == 0) return "used " + BytesText(peak) + ", more than the machine had left for containers";
  // The peak may be a page or two over the limit, or read before the last allocation: it was full.
  if (peak >= limit - limit / 16) return "used " + BytesText(limit) + " of " + BytesText(limit);
  return "used " + BytesText(peak) + ", within its limit of " + BytesText(limit) +
         ", when the machine had no more memory for containers";
}

}  // namespace

TaskExit DescribeExit(const ExitEvent& event, bool stopped_by_us) {
  TaskExit exit;
  exit.set_stopped_by_us(stopped_by_us);
  exit.set_memory_used_bytes(event.memory_peak_bytes());
  exit.set_memory_limit_bytes(event.memory_limit_bytes());
  const int status = event.status();
  std::string text;
  bool killed = false;
  if (WIFSIGNALED(status)) {
    exit.set_signal(WTERMSIG(status));
    killed = WTERMSIG(status) == SIGKILL;
    const std::string name = SignalName(WTERMSIG(status));
    text = "killed by signal " + std::to_string(WTERMSIG(status)) + (name.empty() ? "" : " (" + name + ")");
    if (WTERMSIG(status) == SIGSYS) text += ": it made a system call that containers may not make";
  } else {
    exit.set_exit_code(WEXITSTATUS(status));
    killed = WEXITSTATUS(status) == 128 + SIGKILL;  // a shell says so of its child
    text = "exit code " + std::to_string(WEXITSTATUS(status));
  }
  if (event.oom_killed()) {
    const std::string memory = "out of memory: " + MemoryText(event);
    if (killed && !stopped_by_us) {
      exit.set_oom(true);
      text = memory;
    } else if (status != 0 && !stopped_by_us) {
      text += " (a process in it was killed: " + memory + ")";
    }
  }
  exit.set_text(text);
  return exit;
}

TaskExit LostExit(const std::string& why) {
  TaskExit exit;
  exit.set_lost(true);
  exit.set_text("lost: " + why);
  return exit;
}

}  // namespace lydian::worker
