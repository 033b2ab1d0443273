#include "base/executor.h"

#include <pthread.h>

namespace lydian {
namespace {
void NameThread(const std::string& name) { pthread_setname_np(pthread_self(), name.substr(0, 15).c_str()); }
}  // namespace

Strand::Strand(std::string name) : name_(std::move(name)), thread_([this] { Loop(); }) {}
Strand::~Strand() { Stop(); }

void Strand::Post(Task task) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    ready_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void Strand::Dispatch(Task task) {
  if (OnStrand()) {
    task();
  } else {
    Post(std::move(task));
  }
}

Strand::TimerId Strand::PostAt(SteadyTime when, Task task) {
  TimerId id;
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    id = {when, next_timer_++};
    if (stopping_) return id;
    first = timers_.empty() || id < timers_.begin()->first;
    timers_.emplace(id, std::move(task));
  }
  if (first) changed_.notify_one();
  return id;
}

bool Strand::CancelTimer(TimerId id) {
  Task dropped;  // destroyed outside the lock
  std::lock_guard lock(mutex_);
  auto it = timers_.find(id);
  if (it == timers_.end()) return false;
  dropped = std::move(it->second);
  timers_.erase(it);
  return true;
}

void Strand::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Strand::Loop() {
  NameThread(name_);
  std::deque<Task> batch;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    SteadyTime now = timers_.empty() ? SteadyTime() : std::chrono::steady_clock::now();
    while (!timers_.empty() && timers_.begin()->first.first <= now) {
      ready_.push_back(std::move(timers_.begin()->second));
      timers_.erase(timers_.begin());
    }
    if (ready_.empty()) {
      if (timers_.empty()) {
        changed_.wait(lock);
      } else {
        const SteadyTime next = timers_.begin()->first.first;  // a copy: the timer may be cancelled during the wait
        changed_.wait_until(lock, next);
      }
      continue;
    }
    batch.swap(ready_);
    lock.unlock();
    for (Task& task : batch) {
      task();
      task = nullptr;
    }
    batch.clear();
    lock.lock();
  }
  // What is left is destroyed unlocked: it may own things that cancel timers here when they go.
  std::deque<Task> unrun = std::move(ready_);
  std::map<TimerId, Task> untimed = std::move(timers_);
  ready_.clear();
  timers_.clear();
  lock.unlock();
}

Pool::Pool(std::string name, size_t threads) : name_(std::move(name)) {
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}
Pool::~Pool() { Stop(); }

void Pool::Post(Task task) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    ready_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void Pool::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Pool::Loop() {
  NameThread(name_);
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (ready_.empty()) {
      changed_.wait(lock);
      continue;
    }
    Task task = std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
  }
}

}  // namespace lydian
