// How many bytes of others' making the servers of a process hold: headers and messages of calls that are not
// over, and answers that nobody has read. Who would take more asks first whether there is room.
//
// Thread-safety: all methods. Ownership: shared; a budget outlives whatever is counted in it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>

namespace lydian::rpc {

class MemoryBudget {
 public:
  // What is counted here is counted in `whole` as well.
  explicit MemoryBudget(size_t most_bytes, std::shared_ptr<MemoryBudget> whole = nullptr)
      : most_(most_bytes), whole_(std::move(whole)) {}

  // The process's own: 4 GiB, on a small machine a quarter of its memory, or what Limit says.
  static const std::shared_ptr<MemoryBudget>& OfProcess();

  // From now on it is so much, if that is less.
  void Limit(size_t most_bytes) {
    most_.store(std::min(most_.load(std::memory_order_relaxed), most_bytes), std::memory_order_relaxed);
  }
  size_t most() const { return most_.load(std::memory_order_relaxed); }

  // `before` bytes have become `now`.
  void Change(size_t before, size_t now) {
    held_.fetch_add(now - before, std::memory_order_relaxed);  // may wrap around and back
    if (whole_) whole_->Change(before, now);
  }
  bool exceeded() const { return held() > most() || (whole_ && whole_->exceeded()); }
  size_t left() const {
    const size_t held = this->held(), most = this->most(), here = held < most ? most - held : 0;
    return whole_ ? std::min(here, whole_->left()) : here;
  }
  size_t held() const { return held_.load(std::memory_order_relaxed); }

 private:
  std::atomic<size_t> most_;
  const std::shared_ptr<MemoryBudget> whole_;
  std::atomic<size_t> held_{0};
};

}  // namespace lydian::rpc
