#include "base/executor.h"

#include <pthread.h>

#include <cstdlib>
#include <exception>

#include "base/log.h"

namespace lydian {
namespace {

// Who calls may catch exceptions for its own sake (a handler of an RPC): what ran here must not be passed
// over with it.
void RunOrDie(const Task& task, const std::string& name) noexcept {
  try {
    task();
  } catch (const std::exception& e) {
    LOG_ERROR("a task threw an exception, which ends this process",
              {{"executor", name}, {"error", e.what()}});
    std::abort();
  } catch (...) {
    LOG_ERROR("a task threw what is no exception, which ends this process", {{"executor", name}});
    std::abort();
  }
}

void NameThread(const std::string& name) { pthread_setname_np(pthread_self(), name.substr(0, 15).c_str()); }
}  // namespace

Strand::Strand(std::string name) : name_(std::move(name)), thread_([this] { Loop(); }) {}
Strand::~Strand() { Stop(); }

void Strand::Post(Task task) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  ready_.push_back({std::move(task), false});
  // Who runs looks again. Told under the mutex: a strand that ends waits for it, and is gone afterwards.
  if (!busy_) changed_.notify_one();
}

void Strand::Run(Task task) {
  std::unique_lock lock(mutex_);
  if (stopping_) return;
  if (busy_ || !ready_.empty()) {
    ready_.push_back({std::move(task), true});
    return;  // somebody runs, or has been woken for what was there before
  }
  RunHere(lock, std::move(task));
  constexpr int kMost = 64;  // then the caller gets its thread back
  for (int i = 0; i < kMost && !stopping_ && !ready_.empty() && ready_.front().light; ++i) {
    Task next = std::move(ready_.front().task);
    ready_.pop_front();
    RunHere(lock, std::move(next));
  }
  const bool earlier = !timers_.empty() && timers_.begin()->first.first < wakes_at_;
  const bool wake = stopping_ || blocked_ || earlier || !ready_.empty();
  lock.unlock();
  if (wake) changed_.notify_one();
}

// The lock is held before and after, and busy_ is false then.
void Strand::RunHere(std::unique_lock<std::mutex>& lock, Task task) {
  busy_ = true;
  runner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  lock.unlock();
  RunOrDie(task, name_);
  task = nullptr;
  lock.lock();
  runner_.store({}, std::memory_order_relaxed);
  busy_ = false;
}

bool Strand::Quiet() const {
  std::lock_guard lock(mutex_);
  return ready_.empty();
}

void Strand::Dispatch(Task task) {
  if (OnStrand()) {
    RunOrDie(task, name_);
  } else {
    Post(std::move(task));
  }
}

Strand::TimerId Strand::PostAt(SteadyTime when, Task task) {
  std::lock_guard lock(mutex_);
  const TimerId id = {when, next_timer_++};
  if (stopping_) return id;
  timers_.emplace(id, std::move(task));
  if (when < wakes_at_ && !busy_) changed_.notify_one();  // who runs looks at the timers at its end
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
  std::deque<Ready> batch;
  std::unique_lock lock(mutex_);
  while (!stopping_ || busy_) {
    if (busy_) {  // on a caller's thread, which wakes us at its end
      blocked_ = true;
      changed_.wait(lock);
      blocked_ = false;
      continue;
    }
    const SteadyTime now = timers_.empty() ? SteadyTime() : std::chrono::steady_clock::now();
    while (!timers_.empty() && timers_.begin()->first.first <= now) {
      ready_.push_back({std::move(timers_.begin()->second), false});
      timers_.erase(timers_.begin());
    }
    if (ready_.empty()) {
      wakes_at_ = timers_.empty() ? SteadyTime::max() : timers_.begin()->first.first;
      const SteadyTime next = wakes_at_;  // a copy: the timer may be cancelled during the wait
      if (next == SteadyTime::max()) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, next);
      }
      wakes_at_ = SteadyTime::min();  // awake: it looks at the timers before it sleeps again
      continue;
    }
    batch.swap(ready_);
    busy_ = true;
    runner_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    lock.unlock();
    for (Ready& ready : batch) {
      RunOrDie(ready.task, name_);
      ready.task = nullptr;
    }
    batch.clear();
    lock.lock();
    runner_.store({}, std::memory_order_relaxed);
    busy_ = false;
  }
  // What is left is destroyed unlocked: it may own things that cancel timers here when they go.
  std::deque<Ready> unrun = std::move(ready_);
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
    RunOrDie(task, name_);
    task = nullptr;
    lock.lock();
  }
}

}  // namespace lydian
