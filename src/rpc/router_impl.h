// What router.cc, call.cc and server.cc share. Private to the module.
// Thread-safety: the table is read-only while serving; metrics are atomics.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "rpc/idempotency.h"
#include "rpc/router.h"

namespace lydian::rpc {

inline constexpr std::array<double, 13> kLatencyBounds = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                                                          0.025,  0.05,    0.1,    0.5,   2.5,    10};

struct MethodMetrics {
  std::array<std::atomic<uint64_t>, 17> by_code{};
  std::array<std::atomic<uint64_t>, kLatencyBounds.size() + 1> latency{};
  std::atomic<uint64_t> latency_nanos{0};
  std::atomic<uint64_t> bytes_in{0}, bytes_out{0};
  std::atomic<int64_t> at_work{0};

  void Finished(Code code, std::chrono::nanoseconds took);
};

void RecordAnswered(std::string_view full_method);

struct Method {
  Router::Entry entry;
  RawUnary unary;
  RawServerStream server_stream;
  RawBidi bidi;
  MethodMetrics metrics;
};

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

struct Router::Impl {
  std::unordered_map<std::string, std::unique_ptr<Method>, StringHash, std::equal_to<>>
      methods;  // by "/service/method"
  Fallback fallback;
  UnknownText unknown_text;
  Method relayed;  // the metrics of what went to the fallback
  Method unknown;  // ... and of what nobody serves
  IdempotencyStore idempotency;

  Method* Find(std::string_view full_method);
};

// "AppCreate" of "/modal.client.ModalClient/AppCreate".
std::string_view MethodName(std::string_view full_method);
// The key under which the caller's answer to this call is kept.
std::string IdempotencyKey(const Caller& caller, std::string_view full_method, std::string_view key);
// Whether this caller may use this method at all.
Status CheckScope(const Caller& caller, const MethodOptions& options, std::string_view method);

// Counts what handlers still hold of a server's calls; Server::Stop waits for none.
class Outstanding {
 public:
  void Add() { count_.fetch_add(1, std::memory_order_relaxed); }
  void Remove();
  bool WaitForNone(SteadyTime until);

 private:
  std::atomic<int64_t> count_{0};
  std::atomic<bool> waited_for_{false};
  std::mutex mutex_;  // for changed_ alone
  std::condition_variable changed_;
};

}  // namespace lydian::rpc
