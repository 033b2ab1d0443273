// Time as a seam: the domain asks a Clock, tests set it.
// Thread-safety: all methods, from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace lydian {

using Millis = std::chrono::milliseconds;
using SteadyTime = std::chrono::steady_clock::time_point;

class Clock {
 public:
  virtual ~Clock() = default;
  // For durations and deadlines; never goes back.
  virtual SteadyTime Now() const = 0;
  // Wall time in nanoseconds since 1970, for what people and clients read.
  virtual int64_t UnixNanos() const = 0;
  double UnixSeconds() const { return static_cast<double>(UnixNanos()) / 1e9; }
};

// The machine's clocks.
Clock& SystemClock();

class FakeClock : public Clock {
 public:
  SteadyTime Now() const override { return SteadyTime(std::chrono::nanoseconds(nanos_.load())); }
  int64_t UnixNanos() const override { return 1'700'000'000'000'000'000 + nanos_.load(); }
  void Advance(std::chrono::nanoseconds by) { nanos_ += by.count(); }

 private:
  std::atomic<int64_t> nanos_{1'000'000'000};
};

}  // namespace lydian
