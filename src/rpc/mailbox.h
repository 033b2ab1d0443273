// Tasks for a thread that waits in epoll: posted from anywhere, run there when fd() is readable. One write to
// the descriptor however many are posted meanwhile.
// Thread-safety: Post from any thread; Run on the thread that waits. Ownership: it owns the tasks.
#pragma once

#include <mutex>
#include <vector>

#include "base/executor.h"
#include "base/fd.h"

namespace lydian::rpc {

class Mailbox {
 public:
  Mailbox();
  int fd() const { return wake_.get(); }
  void Post(Task task);
  void Run();

 private:
  UniqueFd wake_;
  std::mutex mutex_;  // guards the two below
  std::vector<Task> posted_;
  bool woken_ = false;
};

}  // namespace lydian::rpc
