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
  NotIdle(call);
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
  DropRows(std::move(numbers));
}

// Their rows, in slices; `then` when all are gone.
void EngineCore::DropRows(std::vector<uint32_t> calls, std::function<void()> then) {
  dropping_.insert(calls.begin(), calls.end());
  auto left = std::make_shared<std::vector<uint32_t>>();
  Journal::Record record = Journal::DropCalls(calls, left);
  record.done = [this, calls = std::move(calls), left, then = std::move(then)](Status status) {
    if (!status.ok()) return LOG_ERROR("calls could not be dropped", {{"error", status}});
    for (size_t i = 0; i + left->size() < calls.size(); ++i) dropping_.erase(calls[i]);
    if (!left->empty()) return DropRows(*left, then);
    if (then) then();
  };
  journal_->Append(std::move(record));
}

void EngineCore::DropCall(Call* call) {
  while (!call->polls.empty())
    AnswerPoll(call->polls.front(), NotFound("function call " + call->id + " was dropped"));
  for (ChunkWait& wait : call->chunk_waits)
    wait.reply(NotFound("function call " + call->id + " was dropped"));
  while (!call->inputs.empty()) {
    Input* input = call->inputs.begin()->second.get();
    Detach(input);
    Forget(input);
  }
  Leave(call);
}

void EngineCore::ForgetKeys() {
  const double old = UnixSeconds() - kIdempotencySecs;
  for (; !keys_.empty() && keys_.front().first < old; keys_.pop_front()) {
    auto it = idempotent_.find(keys_.front().second);
    if (it != idempotent_.end() && !it->second.waiters && it->second.at == keys_.front().first)
      idempotent_.erase(it);
  }
}

// Of those that rest. Again, as long as there are more.
void EngineCore::DropOldCalls(double now) {
  constexpr size_t kMost = 1000;
  const double stopped = now - std::chrono::duration<double>(options_.stopped_keep).count();
  pool_.Post([this, now, stopped] {
    auto old = std::make_shared<Result<std::vector<Journal::OldCall>>>(
        journal_->OldCalls(now - kSyncKeepSecs, stopped, now - kAsyncKeepSecs, kMost));
    strand_.Post([this, old, now] {
      if (!old->ok()) return LOG_WARN("old calls could not be looked for", {{"error", old->status()}});
      std::vector<uint32_t> numbers;
      for (const Journal::OldCall& call : **old) {
        if (!calls_.contains(call.call_id) && !paging_.contains(call.call_id) &&
            !dropping_.contains(call.number)) {
          numbers.push_back(call.number);
        }
      }
      if (numbers.empty()) return;
      DropRows(std::move(numbers), [this, now, more = (*old)->size() == kMost] {
        if (more) DropOldCalls(now);
      });
    });
  });
}

// Of apps that have stopped, once no call of theirs is left.
void EngineCore::DropFunctions() {
  const auto unused = [](const FunctionState& function) {
    return function.app->stopped && function.calls == 0 && function.waiting() == 0 && function.tasks.empty();
  };
  std::vector<std::string> candidates;
  for (const auto& [id, function] : functions_) {
    if (unused(*function)) candidates.push_back(id);
  }
  if (candidates.empty()) return;
  pool_.Post([this, unused, candidates = std::move(candidates)] {
    auto without = std::make_shared<Result<std::vector<std::string>>>(journal_->WithoutCalls(candidates));
    strand_.Post([this, unused, without] {
      if (!without->ok())
        return LOG_WARN("calls of functions could not be looked for", {{"error", without->status()}});
      std::vector<std::string> gone;
      for (const std::string& id : **without) {
        auto it = functions_.find(id);
        if (it == functions_.end() || !unused(*it->second)) continue;
        std::erase(it->second->app->functions, it->second.get());
        functions_.erase(it);
        gone.push_back(id);
      }
      if (!gone.empty()) journal_->Append(Journal::DropFunctions(std::move(gone)));
    });
  });
}

void EngineCore::Housekeeping() {
  const double now = ages_.Look();
  std::vector<Call*> old;
  for (Call* call : idle_) {
    if (!call->polls.empty() || !call->chunk_waits.empty() || call->readers > 0 || call->unfinished > 0 ||
        !call->inputs.empty()) {
      continue;
    }
    double age = now - std::max(call->finished_at, call->created_at);
    double keep = call->synchronous() ? kSyncKeepSecs : kAsyncKeepSecs;
    if (call->synchronous() && call->function->app->stopped)
      keep = std::chrono::duration<double>(options_.stopped_keep).count();
    if (age > keep) old.push_back(call);
  }
  DropNow(old);
  DropOldCalls(now);
  DropFunctions();
  ForgetKeys();
  journal_->Append(Journal::DropTasks(now - kTaskKeepSecs));
  strand_.PostAfter(kHousekeepingEvery, [this] { Housekeeping(); });
}

}  // namespace lydian::control
