#include "rpc/mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "base/log.h"

namespace lydian::rpc {

Mailbox::Mailbox() : wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { CHECK(wake_.valid()); }

void Mailbox::Post(Task task) {
  bool wake = false;
  {
    std::lock_guard lock(mutex_);
    posted_.push_back(std::move(task));
    wake = !std::exchange(woken_, true);
  }
  if (!wake) return;
  const uint64_t one = 1;
  CHECK(write(wake_.get(), &one, sizeof one) == sizeof one);
}

void Mailbox::Run() {
  uint64_t count = 0;
  (void)!read(wake_.get(), &count, sizeof count);
  std::vector<Task> tasks;
  {
    std::lock_guard lock(mutex_);
    tasks.swap(posted_);
    woken_ = false;
  }
  for (Task& task : tasks) task();
}

}  // namespace lydian::rpc
