// What ends a piece of work that takes too long. Thread-safety: made and dropped on any thread.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "base/executor.h"
#include "build/cancel.h"

namespace lydian::build {

// Cancels `cancel`, which outlives it, with DEADLINE_EXCEEDED; gone with the object. `clock`: on which it
// runs out. `set_by`: how the limit can be changed, for the user.
class TimeLimit {
 public:
  TimeLimit(Strand* clock, uint32_t seconds, CancelToken* cancel, const std::string& what,
            const std::string& set_by = "");
  ~TimeLimit();
  TimeLimit(const TimeLimit&) = delete;
  TimeLimit& operator=(const TimeLimit&) = delete;

 private:
  struct Target {
    std::mutex mutex;     // held while it is cancelled, so that the token is there until then
    CancelToken* cancel;  // null once the work has ended
  };
  Strand* clock_;
  std::shared_ptr<Target> target_;
  Strand::TimerId timer_;
};

// Work that no build asked for, with a token of its own: it ends with its time or with `stop`.
class OwnWork {
 public:
  OwnWork(Strand* clock, uint32_t seconds, CancelToken* stop, const std::string& what)
      : limit_(clock, seconds, token_.get(), what),
        stopped_(stop->OnCancel([token = token_] { token->Cancel(Cancelled("the builder ends")); })) {}
  CancelToken* token() { return token_.get(); }

 private:
  std::shared_ptr<CancelToken> token_ = std::make_shared<CancelToken>();
  TimeLimit limit_;
  std::shared_ptr<void> stopped_;
};

}  // namespace lydian::build
