// Where work runs. A Strand runs functions one after the other on one thread of its own, with timers: state that is only
// touched there needs no mutex. A Pool runs blocking work (SQL, hashing, file trees) on several threads.
//
// Thread-safety: Post, PostAt and Cancel from any thread. Ownership: functions are owned until run; those left at
// Stop() are destroyed unrun. A name goes into thread names and metrics.
#pragma once

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
  // Runs now when called on the strand, else posts.
  void Dispatch(Task task);
  TimerId PostAt(SteadyTime when, Task task);
  TimerId PostAfter(std::chrono::nanoseconds delay, Task task) { return PostAt(std::chrono::steady_clock::now() + delay, std::move(task)); }
  // A timer that has run, or begun to, is past cancelling; false then.
  bool CancelTimer(TimerId id);
  bool OnStrand() const { return std::this_thread::get_id() == thread_.get_id(); }
  // Ends the thread after the function that runs. Not from the strand itself.
  void Stop();

 private:
  void Loop();

  std::string name_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<Task> ready_;
  std::map<TimerId, Task> timers_;
  uint64_t next_timer_ = 1;
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
