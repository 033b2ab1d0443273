// Makes the same thing once however many ask for it, on threads of its own: those who ask later wait without
// a thread. So slow work on one key holds up one thread, and who asks for another key gets the next one. A
// failure is kept for a while, so that not everybody tries again at once; one that says nothing about the
// thing itself (UNAVAILABLE, CANCELLED) isn't.
// Thread-safety: every method from any thread. Replies come on a thread of its own, or, with a failure that
// is kept, before Ask returns. Those left at the end are destroyed uncalled.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/status.h"

namespace lydian::build {

template <typename T>
class AskOnce {
 public:
  using Reply = std::function<void(Result<T>)>;
  AskOnce(std::string name, size_t threads, Millis keep_failures, Clock* clock = &SystemClock())
      : keep_failures_(keep_failures), clock_(clock), pool_(std::move(name), threads) {}

  // `work` does not throw.
  void Ask(const std::string& key, std::function<Result<T>()> work, const Reply& reply) {
    std::optional<Status> failed;
    {
      std::lock_guard guard(mutex_);
      failed = Failure(key);
      if (!failed) {
        auto& waiting = waiting_[key];
        waiting.push_back(reply);
        if (waiting.size() > 1) return;
      }
    }
    if (failed) return reply(*failed);
    pool_.Post([this, key, work = std::move(work)] { Work(key, work); });
  }

  void Stop() { pool_.Stop(); }

 private:
  // The lock is held.
  std::optional<Status> Failure(const std::string& key) {
    auto now = clock_->Now();
    std::erase_if(failures_, [&](const auto& entry) { return entry.second.second <= now; });
    auto found = failures_.find(key);
    if (found == failures_.end()) return std::nullopt;
    return found->second.first;
  }

  void Work(const std::string& key, const std::function<Result<T>()>& work) {
    Result<T> result = work();
    std::vector<Reply> replies;
    {
      std::lock_guard guard(mutex_);
      replies = std::move(waiting_.extract(key).mapped());
      const Code code = result.status().code();
      if (!result.ok() && code != Code::kUnavailable && code != Code::kCancelled)
        failures_[key] = {result.status(), clock_->Now() + keep_failures_};
    }
    for (const auto& reply : replies) reply(result);
  }

  const Millis keep_failures_;
  Clock* const clock_;
  std::mutex mutex_;                                               // guards the two below
  std::map<std::string, std::vector<Reply>> waiting_;              // by key; the first one's work is posted
  std::map<std::string, std::pair<Status, SteadyTime>> failures_;  // until when they are kept
  Pool pool_;                                                      // the last: its threads end first
};

}  // namespace lydian::build
