// Calls that have ended: kept while their answer may be asked for again, then dropped; and what else grows
// with time.
#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

constexpr uint64_t kAckedBytes = uint64_t{64} << 20;
constexpr size_t kAckedCalls = 20'000;
constexpr double kIdempotencySecs = 600;
constexpr double kAsyncKeepSecs = 7 * 86'400.0, kSyncKeepSecs = 86'400.0, kTaskKeepSecs = 7 * 86'400.0;
constexpr auto kHousekeepingEvery = std::chrono::minutes(10);
constexpr int64_t kChunksKeepNanos = int64_t{600} * 1'000'000'000;

}  // namespace

// The client has what it asked for. It stays for a while, since the answer may have been lost on the way.
void EngineCore::Acknowledge(Call* call) {
  if (call->acked) return;
  call->acked = true;
  acked_bytes_ += call->output_bytes;
  acked_.push_back({call->id, NowNanos() + std::chrono::nanoseconds(options_.acked_keep).count()});
  if (acked_bytes_ > kAckedBytes || acked_.size() > kAckedCalls) {
    DropAcknowledged();
  } else {
    ScheduleDrops();
  }
}

void EngineCore::ScheduleDrops() {
  if (drop_timer_ || acked_.empty()) return;
  drop_timer_ = true;
  int64_t wait = std::max<int64_t>(acked_.front().due - NowNanos(), 100'000'000);
  strand_.PostAfter(std::chrono::nanoseconds(wait), [this] {
    drop_timer_ = false;
    DropAcknowledged();
    ScheduleDrops();
  });
}

void EngineCore::DropAcknowledged() {
  int64_t now = NowNanos();
  std::vector<Call*> gone;
  for (size_t left = acked_.size(); left > 0; --left) {
    Acked front = acked_.front();
    if (front.due > now && acked_bytes_ <= kAckedBytes && acked_.size() <= kAckedCalls) break;
    acked_.pop_front();
    auto it = calls_.find(front.call_id);
    if (it == calls_.end()) continue;
    Call* call = it->second.get();
    bool read = !call->chunks.empty() && now - call->chunks_read_nanos < kChunksKeepNanos;
    if (call->unfinished > 0 || !call->polls.empty() || !call->chunk_waits.empty() || read ||
        call->readers > 0) {
      acked_.push_back({front.call_id, now + std::chrono::nanoseconds(options_.acked_keep).count()});
      continue;
    }
    acked_bytes_ -= std::min(acked_bytes_, call->output_bytes);
    gone.push_back(call);
  }
  DropNow(gone);
}

void EngineCore::DropNow(const std::vector<Call*>& calls) {
  if (calls.empty()) return;
  std::vector<uint32_t> numbers;
  for (Call* call : calls) {
    numbers.push_back(call->number);
    DropCall(call);
  }
  journal_->Append(Journal::DropCalls(std::move(numbers)));
}

void EngineCore::DropCall(Call* call) {
  while (!call->polls.empty())
    AnswerPoll(call->polls.front(), NotFound("function call " + call->id + " was dropped"));
  for (ChunkWait& wait : call->chunk_waits)
    wait.reply(NotFound("function call " + call->id + " was dropped"));
  if (!call->idempotency_key.empty()) {
    auto it = idempotent_.find(call->idempotency_key);
    if (it != idempotent_.end() && it->second.call == call) it->second.call = nullptr;
  }
  while (!call->inputs.empty()) {
    Input* input = call->inputs.begin()->second.get();
    Detach(input);
    Forget(input);
  }
  ForgetResults(call);
  call->function->workspace->chunk_bytes -= call->chunk_bytes;
  chunk_bytes_ -= call->chunk_bytes;
  --call->function->calls;
  calls_.erase(call->id);
}

void EngineCore::Housekeeping() {
  double now = UnixSeconds();
  std::vector<Call*> old;
  for (auto& [id, call] : calls_) {
    if (call->unfinished > 0 || !call->committed || !call->polls.empty() || call->readers > 0) continue;
    double age = now - std::max(call->finished_at, call->created_at);
    double keep = call->synchronous() ? kSyncKeepSecs : kAsyncKeepSecs;
    if (call->synchronous() && call->function->app->stopped)
      keep = std::chrono::duration<double>(options_.stopped_keep).count();
    if (age > keep) old.push_back(call.get());
  }
  DropNow(old);
  std::erase_if(idempotent_, [&](const auto& entry) {
    return entry.second.committed && now - entry.second.at > kIdempotencySecs;
  });
  std::vector<std::string> functions;
  for (auto& [id, function] : functions_) {
    if (function->app->stopped && function->calls == 0 && function->tasks.empty()) functions.push_back(id);
  }
  for (const std::string& id : functions) {
    std::erase(functions_[id]->app->functions, functions_[id].get());
    functions_.erase(id);
  }
  if (!functions.empty()) journal_->Append(Journal::DropFunctions(functions));
  journal_->Append(Journal::DropTasks(now - kTaskKeepSecs));
  strand_.PostAfter(kHousekeepingEvery, [this] { Housekeeping(); });
}

}  // namespace lydian::control
