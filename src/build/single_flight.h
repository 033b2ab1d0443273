// Makes the same thing once however many ask for it: the first does the work on its own thread, the others
// wait for its answer. When the first one's work was cancelled, the next in line takes it up. Thread-safety:
// Do from any thread; it blocks.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/status.h"
#include "build/cancel.h"

namespace lydian::build {

template <typename T>
class SingleFlight {
 public:
  Result<T> Do(const std::string& key, CancelToken* cancel, const std::function<Result<T>()>& work) {
    // A waiter that is cancelled stops waiting; the work goes on for the others.
    auto wake = cancel ? cancel->OnCancel([this] {
      std::lock_guard guard(mutex_);
      changed_.notify_all();
    })
                       : nullptr;
    for (;;) {
      std::shared_ptr<Flight> flight;
      {
        std::unique_lock lock(mutex_);
        if (cancel) RETURN_IF_ERROR(cancel->Check());
        auto [found, first] = flights_.try_emplace(key, nullptr);
        if (!first) {
          flight = found->second;
          changed_.wait(lock, [&] { return flight->result.has_value() || (cancel && cancel->cancelled()); });
          if (!flight->result.has_value()) return cancel->Check();
          // Its own time was up, or its own client gone: that says nothing about the others.
          if (Code code = flight->result->status().code();
              code == Code::kCancelled || code == Code::kDeadlineExceeded)
            continue;
          return *flight->result;
        }
        flight = found->second = std::make_shared<Flight>();
      }
      Result<T> result = work();
      std::lock_guard guard(mutex_);
      flight->result = result;
      flights_.erase(key);
      changed_.notify_all();
      return result;
    }
  }

 private:
  struct Flight {
    std::optional<Result<T>> result;
  };
  std::mutex mutex_;  // guards flights_ and what they point to
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<Flight>> flights_;
};

}  // namespace lydian::build
