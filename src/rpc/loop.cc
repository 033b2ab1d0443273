#include "rpc/loop.h"

#include <pthread.h>
#include <sys/epoll.h>

#include <thread>

#include "base/log.h"

namespace lydian::rpc {
namespace {

constexpr uint64_t kIsMailbox = 0;
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

Loop::Loop() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  CHECK(epoll_.valid());
  Control(epoll_.get(), EPOLL_CTL_ADD, mailbox_.fd(), kIsMailbox, false);
  std::thread([this] { Run(); }).detach();
}

bool Loop::OnThread() const { return t_is_loop; }

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
  if (id == kIsMailbox) return mailbox_.Run();
  std::shared_ptr<Watched> watched;
  {
    std::lock_guard lock(mutex_);
    auto it = watched_.find(id);
    if (it == watched_.end()) return;  // removed by what was handled before it
    watched = it->second;
  }
  watched->Ready(events);
}

void Loop::FlushDirty() {
  while (!dirty_.empty()) {  // what a flush tells may write elsewhere
    std::vector<std::shared_ptr<Watched>> dirty;
    dirty.swap(dirty_);
    for (const auto& watched : dirty) watched->Flush();
  }
}

}  // namespace lydian::rpc
