#include "rpc/router.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "base/fd.h"
#include "base/log.h"
#include "rpc/router_impl.h"

namespace lydian::rpc {
namespace {

std::string FullName(std::string_view service, std::string_view method) {
  return "/" + std::string(service) + "/" + std::string(method);
}

Method* Register(Router::Impl& impl, std::string_view service, std::string_view method,
                 Router::Entry::Kind kind, const MethodOptions& options) {
  auto added = std::make_unique<Method>();
  added->entry = {std::string(service), std::string(method), kind, options};
  auto [it, fresh] = impl.methods.emplace(FullName(service, method), std::move(added));
  CHECK(fresh);  // two handlers for one method
  return it->second.get();
}

const char* KindName(Router::Entry::Kind kind) {
  switch (kind) {
    case Router::Entry::Kind::kUnary:
      return "unary";
    case Router::Entry::Kind::kServerStream:
      return "server_stream";
    case Router::Entry::Kind::kBidi:
      return "bidi";
  }
  return "";
}

std::string Number(double value) {
  char text[32];
  snprintf(text, sizeof text, "%.9g", value);
  return text;
}

void AppendMethod(const Method& method, const std::string& name, std::array<std::string, 5>& out) {
  const MethodMetrics& m = method.metrics;
  const std::string label = "method=\"" + name + "\"";
  uint64_t calls = 0;
  for (size_t code = 0; code < m.by_code.size(); ++code) {
    const uint64_t count = m.by_code[code].load(std::memory_order_relaxed);
    calls += count;
    if (count == 0) continue;
    out[0] += "lydian_rpc_calls_total{" + label + ",code=\"" +
              std::string(CodeName(static_cast<Code>(code))) + "\"} " + std::to_string(count) + "\n";
  }
  const int64_t at_work = m.at_work.load(std::memory_order_relaxed);
  if (calls == 0 && at_work == 0) return;
  uint64_t below = 0;
  for (size_t i = 0; i < kLatencyBounds.size(); ++i) {
    below += m.latency[i].load(std::memory_order_relaxed);
    out[1] += "lydian_rpc_seconds_bucket{" + label + ",le=\"" + Number(kLatencyBounds[i]) + "\"} " +
              std::to_string(below) + "\n";
  }
  below += m.latency.back().load(std::memory_order_relaxed);
  out[1] += "lydian_rpc_seconds_bucket{" + label + ",le=\"+Inf\"} " + std::to_string(below) + "\n";
  out[1] += "lydian_rpc_seconds_sum{" + label + "} " +
            Number(static_cast<double>(m.latency_nanos.load(std::memory_order_relaxed)) / 1e9) + "\n";
  out[1] += "lydian_rpc_seconds_count{" + label + "} " + std::to_string(below) + "\n";
  out[2] += "lydian_rpc_received_bytes_total{" + label + "} " +
            std::to_string(m.bytes_in.load(std::memory_order_relaxed)) + "\n";
  out[3] += "lydian_rpc_sent_bytes_total{" + label + "} " +
            std::to_string(m.bytes_out.load(std::memory_order_relaxed)) + "\n";
  out[4] += "lydian_rpc_at_work{" + label + ",kind=\"" + KindName(method.entry.kind) + "\"} " +
            std::to_string(at_work) + "\n";
}

}  // namespace

// While tests run, LYDIAN_RPC_RECORD names a file that gets the name of each method when it is first answered
// with OK in this process: tools/compatibility.py calls "tested" what stands there.
void RecordAnswered(std::string_view full_method) {
  static const char* const path = std::getenv("LYDIAN_RPC_RECORD");
  if (path == nullptr) return;
  static std::mutex mutex;  // guards `known`
  static std::set<std::string, std::less<>> known;
  std::lock_guard lock(mutex);
  if (known.contains(full_method)) return;
  known.emplace(full_method);
  const UniqueFd file(::open(path, O_WRONLY | O_APPEND | O_CLOEXEC));
  const Status written = file.valid() ? WriteAll(file.get(), std::string(full_method.substr(1)) + "\n")
                                      : ErrnoStatus("opening it");
  if (!written.ok()) LOG_WARN("a method could not be recorded", {{"path", path}, {"error", written}});
}

void MethodMetrics::Finished(Code code, std::chrono::nanoseconds took) {
  const size_t index = std::min(static_cast<size_t>(code), by_code.size() - 1);
  by_code[index].fetch_add(1, std::memory_order_relaxed);
  const double seconds = static_cast<double>(took.count()) / 1e9;
  const size_t bucket =
      std::lower_bound(kLatencyBounds.begin(), kLatencyBounds.end(), seconds) - kLatencyBounds.begin();
  latency[bucket].fetch_add(1, std::memory_order_relaxed);
  latency_nanos.fetch_add(static_cast<uint64_t>(took.count()), std::memory_order_relaxed);
  at_work.fetch_sub(1, std::memory_order_relaxed);
}

Method* Router::Impl::Find(std::string_view full_method) {
  auto it = methods.find(full_method);
  return it == methods.end() ? nullptr : it->second.get();
}

std::string_view MethodName(std::string_view full_method) {
  const size_t slash = full_method.rfind('/');
  return slash == std::string_view::npos ? full_method : full_method.substr(slash + 1);
}

std::string IdempotencyKey(const Caller& caller, std::string_view full_method, std::string_view key) {
  std::string joined;
  joined.reserve(caller.workspace_id.size() + caller.token_id.size() + caller.task_id.size() +
                 full_method.size() + key.size() + 8);
  for (std::string_view part : {std::string_view(caller.workspace_id), std::string_view(caller.token_id),
                                std::string_view(caller.task_id), full_method}) {
    joined.append(part).push_back('\n');  // no part holds a newline: headers can't, ids don't
  }
  joined.push_back(static_cast<char>('0' + static_cast<int>(caller.kind)));
  return joined.append(key);
}

Status CheckScope(const Caller& caller, const MethodOptions& options, std::string_view method) {
  if (options.task_only && caller.kind != Caller::Kind::kTask) {
    return PermissionDenied(std::string(method) + " is for containers, each for its own task");
  }
  return {};
}

void Outstanding::Remove() {
  if (count_.fetch_sub(1, std::memory_order_acq_rel) == 1 && waited_for_.load(std::memory_order_acquire)) {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
}

bool Outstanding::WaitForNone(SteadyTime until) {
  waited_for_.store(true, std::memory_order_release);
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, until, [this] { return count_.load(std::memory_order_acquire) == 0; });
}

Router::Router() : impl_(std::make_unique<Impl>()) {
  impl_->relayed.entry.kind = Entry::Kind::kBidi;
  impl_->unknown.entry.kind = Entry::Kind::kUnary;
}
Router::~Router() = default;

void Router::AddUnary(std::string_view service, std::string_view method, RawUnary handler,
                      MethodOptions options) {
  Register(*impl_, service, method, Entry::Kind::kUnary, options)->unary = std::move(handler);
}

void Router::AddServerStream(std::string_view service, std::string_view method, RawServerStream handler,
                             MethodOptions options) {
  Register(*impl_, service, method, Entry::Kind::kServerStream, options)->server_stream = std::move(handler);
}

void Router::AddBidi(std::string_view service, std::string_view method, RawBidi handler,
                     MethodOptions options) {
  Register(*impl_, service, method, Entry::Kind::kBidi, options)->bidi = std::move(handler);
}

void Router::SetFallback(Fallback fallback) { impl_->fallback = std::move(fallback); }

void Router::SetUnknownText(UnknownText text) { impl_->unknown_text = std::move(text); }

std::vector<Router::Entry> Router::entries() const {
  std::vector<Entry> all;
  for (const auto& [name, method] : impl_->methods) all.push_back(method->entry);
  std::sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.service, a.method) < std::tie(b.service, b.method);
  });
  return all;
}

std::string Router::MetricsText() const {
  std::array<std::string, 5> out = {
      "# HELP lydian_rpc_calls_total Calls answered, by method and status code.\n# TYPE "
      "lydian_rpc_calls_total counter\n",
      "# HELP lydian_rpc_seconds From the start of a call to its end, long polls and streams included.\n"
      "# TYPE lydian_rpc_seconds histogram\n",
      "# HELP lydian_rpc_received_bytes_total Bytes of request messages.\n# TYPE "
      "lydian_rpc_received_bytes_total counter\n",
      "# HELP lydian_rpc_sent_bytes_total Bytes of answered messages.\n# TYPE lydian_rpc_sent_bytes_total "
      "counter\n",
      "# HELP lydian_rpc_at_work Calls being worked on or held.\n# TYPE lydian_rpc_at_work gauge\n"};
  std::vector<std::pair<std::string, const Method*>> sorted;
  for (const auto& [name, method] : impl_->methods) sorted.emplace_back(name.substr(1), method.get());
  std::sort(sorted.begin(), sorted.end());
  sorted.emplace_back("(relayed)", &impl_->relayed);
  sorted.emplace_back("(unknown)", &impl_->unknown);
  for (const auto& [name, method] : sorted) AppendMethod(*method, name, out);
  std::string all;
  for (std::string& part : out) all += part;
  all +=
      "# HELP lydian_rpc_kept_answers_bytes Answers kept for repeats of a call.\n# TYPE "
      "lydian_rpc_kept_answers_bytes gauge\n";
  all += "lydian_rpc_kept_answers_bytes " + std::to_string(impl_->idempotency.bytes()) + "\n";
  return all;
}

}  // namespace lydian::rpc
