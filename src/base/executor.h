// Where work runs. A Strand runs functions one after the other, with timers: state that is only touched there
// needs no mutex. It has a thread of its own; short work may run on the thread that brings it (Run). A Pool
// runs blocking work (SQL, hashing, file trees) on several threads.
//
// Thread-safety: Post, PostAt and Cancel from any thread. Ownership: functions are owned until run; those
// left at Stop() are destroyed unrun. A name goes into thread names and metrics.
// Errors: functions throw nothing. An exception that one throws all the same has left something half done, so
// it ends the process, on whatever thread it runs; the line in the log has the executor's name.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"

namespace lydian {

using Task = std::function<void()>;

class Strand {
 public:
  using TimerId = std::pair<SteadyTime, uint64_t>;

  explicit Strand(std::string name);
  ~Strand();  // stops
  Strand(const Strand&) = delete;
  Strand& operator=(const Strand&) = delete;

  void Post(Task task);
  // For short work on a hot path: runs it before it returns, on the calling thread, when nothing else runs or
  // waits here; else posts it. A wake-up of another thread costs more than most of what is done here. The
  // caller holds no lock that `task` takes. Order is kept with everything posted.
  void Run(Task task);
  // Runs now when called on the strand, else posts.
  void Dispatch(Task task);
  TimerId PostAt(SteadyTime when, Task task);
  TimerId PostAfter(std::chrono::nanoseconds delay, Task task) {
    return PostAt(std::chrono::steady_clock::now() + delay, std::move(task));
  }
  // A timer that has run, or begun to, is past cancelling; false then.
  bool CancelTimer(TimerId id);
  bool OnStrand() const { return runner_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }
  // Nothing waits behind what runs now. A hint.
  bool Quiet() const;
  // Ends the thread after the function that runs. Not from the strand itself.
  void Stop();

 private:
  struct Ready {
    Task task;
    bool light = false;  // by Run: may go on any thread
  };
  void Loop();
  void RunHere(std::unique_lock<std::mutex>& lock, Task task);

  std::string name_;
  std::atomic<std::thread::id> runner_{};  // whose turn it is; none when idle
  mutable std::mutex mutex_;               // guards all below
  std::condition_variable changed_;
  std::deque<Ready> ready_;
  std::map<TimerId, Task> timers_;
  SteadyTime wakes_at_ = SteadyTime::max();  // when the thread looks at the timers again by itself
  uint64_t next_timer_ = 1;
  bool busy_ = false;     // something runs, here or on a caller's thread
  bool blocked_ = false;  // the thread waits for a caller's to end its turn
  bool stopping_ = false;
  std::thread thread_;
};

class Pool {
 public:
  Pool(std::string name, size_t threads);
  ~Pool();  // stops
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  void Post(Task task);
  void Stop();

 private:
  void Loop();

  std::string name_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<Task> ready_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lydian
