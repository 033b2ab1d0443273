#include "build/time_limit.h"

namespace lydian::build {

TimeLimit::TimeLimit(Strand* clock, uint32_t seconds, CancelToken* cancel, const std::string& what,
                     const std::string& set_by)
    : clock_(clock), target_(std::make_shared<Target>()) {
  target_->cancel = cancel;
  timer_ = clock_->PostAfter(std::chrono::seconds(seconds), [target = target_, what, seconds, set_by] {
    std::lock_guard guard(target->mutex);
    if (target->cancel == nullptr) return;
    target->cancel->Cancel(DeadlineExceeded(what + " took longer than " + std::to_string(seconds) +
                                            " s, the limit on this machine" +
                                            (set_by.empty() ? "" : " (" + set_by + ")")));
  });
}

TimeLimit::~TimeLimit() {
  clock_->CancelTimer(timer_);
  std::lock_guard guard(target_->mutex);
  target_->cancel = nullptr;
}

}  // namespace lydian::build
