#include "rpc/loop.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <thread>

#include "base/log.h"

namespace lydian::rpc {
namespace {

constexpr uint64_t kIsWake = 0;
constexpr int kEventsAtOnce = 64;
thread_local bool t_is_loop = false;

void Control(int epoll, int operation, int fd, uint64_t id, bool write) {
  epoll_event event{};
  event.events = EPOLLIN | (write ? static_cast<uint32_t>(EPOLLOUT) : 0);
  event.data.u64 = id;
  if (epoll_ctl(epoll, operation, fd, &event) != 0) {
    LOG_ERROR("a connection can't be watched", {{"fd", fd}, {"error", ErrnoStatus("epoll_ctl")}});
  }
}

}  // namespace

Loop& Loop::Get() {
  static Loop* const loop = new Loop();
  return *loop;
}

Loop::Loop() : epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CHECK(epoll_.valid() && wake_.valid());
  Control(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), kIsWake, false);
  std::thread([this] { Run(); }).detach();
}

bool Loop::OnThread() const { return t_is_loop; }

void Loop::Post(Task task) {
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

uint64_t Loop::Add(int fd, std::shared_ptr<Watched> watched, bool write) {
  uint64_t id = 0;
  {
    std::lock_guard lock(mutex_);
    id = next_id_++;
    watched_.emplace(id, std::move(watched));
  }
  Control(epoll_.get(), EPOLL_CTL_ADD, fd, id, write);
  return id;
}

void Loop::WantWrite(int fd, uint64_t id, bool write) { Control(epoll_.get(), EPOLL_CTL_MOD, fd, id, write); }

void Loop::Remove(int fd, uint64_t id) {
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  std::shared_ptr<Watched> last;  // may be destroyed with it, outside the lock
  std::lock_guard lock(mutex_);
  auto it = watched_.find(id);
  if (it == watched_.end()) return;
  last = std::move(it->second);
  watched_.erase(it);
}

void Loop::Run() {
  pthread_setname_np(pthread_self(), "rpc-loop");
  t_is_loop = true;
  epoll_event events[kEventsAtOnce];
  for (;;) {
    const int count = epoll_wait(epoll_.get(), events, kEventsAtOnce, -1);
    if (count < 0 && errno != EINTR) CHECK(false);
    for (int i = 0; i < count; ++i) Handle(events[i].data.u64, events[i].events);
    FlushDirty();
  }
}

void Loop::Handle(uint64_t id, uint32_t events) {
  if (id == kIsWake) return RunPosted();
  std::shared_ptr<Watched> watched;
  {
    std::lock_guard lock(mutex_);
    auto it = watched_.find(id);
    if (it == watched_.end()) return;  // removed by what was handled before it
    watched = it->second;
  }
  watched->Ready(events);
}

void Loop::RunPosted() {
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

void Loop::FlushDirty() {
  while (!dirty_.empty()) {  // what a flush tells may write elsewhere
    std::vector<std::shared_ptr<Watched>> dirty;
    dirty.swap(dirty_);
    for (const auto& watched : dirty) watched->Flush();
  }
}

}  // namespace lydian::rpc
