// A flag that ends blocking work, and what to do at that moment (kill a container, a process).
// Thread-safety: every method from any thread. Cancel() runs the functions that are registered, each once.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "base/status.h"

namespace lydian::build {

class CancelToken {
 public:
  bool cancelled() const {
    std::lock_guard guard(mutex_);
    return cancelled_;
  }
  // Why, once it was cancelled.
  Status Check() const {
    std::lock_guard guard(mutex_);
    return cancelled_ ? why_ : OkStatus();
  }

  void Cancel(Status why = Cancelled("the build was cancelled")) {
    std::map<int, std::function<void()>> stops;
    {
      std::lock_guard guard(mutex_);
      if (!cancelled_) why_ = std::move(why);
      cancelled_ = true;
      stops.swap(stops_);
    }
    for (auto& [id, stop] : stops) stop();
  }

  // `stop` runs at Cancel, or now when that has been, unless the result is dropped before. It must not block,
  // and may run once more or less at the moment of the drop: it holds what it needs.
  [[nodiscard]] std::shared_ptr<void> OnCancel(std::function<void()> stop) {
    int id;
    bool now;
    {
      std::lock_guard guard(mutex_);
      id = next_++;
      now = cancelled_;
      if (!now) stops_.emplace(id, stop);
    }
    if (now) stop();
    return std::shared_ptr<void>(nullptr, [this, id](void*) {
      std::lock_guard guard(mutex_);
      stops_.erase(id);
    });
  }

 private:
  mutable std::mutex mutex_;  // guards all below
  bool cancelled_ = false;
  Status why_;
  int next_ = 0;
  std::map<int, std::function<void()>> stops_;
};

}  // namespace lydian::build
