// Inputs that wait in the journal alone. A function has a queue in memory with those that come next; what is
// put behind a full one is an entry of 12 bytes (`FunctionState::stored`), and so is every input after a
// restart. As the queue gets short, the next ones are read on a pool's thread and join it: in the order in
// which they were put. A call of which nothing but such inputs is left leaves the memory with them.
//
// What may happen while they are read: the call is cancelled (EndStored ends what isn't in memory), it ends,
// leaves the memory and may even be dropped (`reading_` says so: they are read again), or a worker names an
// input that one of its containers has held since before a restart (Claim).
#include "control/call_engine_core.h"
#include "control/journal_schema.h"

namespace lydian::control {
namespace {

constexpr size_t kAtOnce = 1000;                   // inputs that are read, or ended, in one turn
constexpr uint64_t kOwnBytes = uint64_t{1} << 20;  // each function's queue may have, however much all have
constexpr Millis kAgain{1000};                     // after the journal couldn't be read
constexpr auto kClaimsKeep = std::chrono::seconds(60);  // for outputs that come behind a worker's hello

uint64_t RowOf(const InputKey& key) { return static_cast<uint64_t>(RowId(key.call, key.idx)); }

}  // namespace

struct EngineCore::Load {
  std::vector<InputKey> keys;
  std::map<uint32_t, uint32_t> calls;  // whose they are, and what BeginReading said
  std::vector<uint32_t> absent;        // of these, not in memory when it began
  Status status;                       // of the reading
  std::vector<StoredCall> found;       // of `absent`
  Result<std::vector<InputRow>> rows = std::vector<InputRow>{};
};

bool EngineCore::QueueHasRoom(const FunctionState& function, uint64_t more) const {
  return queued_bytes_ + more <= options_.max_ready_bytes || function.queued_bytes + more <= kOwnBytes;
}

bool EngineCore::MustStore(const FunctionState& function) const {
  return function.stored_count > 0 || function.queue.size() >= options_.max_ready_inputs ||
         !QueueHasRoom(function, 0);
}

void EngineCore::CountStored(Call* call, const InputKey& key) {
  call->function->stored.push_back(key);
  ++call->function->stored_count;
  ++call->stored;
  ++waiting_inputs_;
}

// Destroys it; it stays counted as held.
void EngineCore::Store(Input* input) {
  Call* call = input->call;
  CountStored(call, {call->number, input->idx, input->bytes});
  inputs_.erase(input->id);
  call->inputs.erase(input->idx);
}

Input* EngineCore::BringIn(Call* call, const InputKey& key, InputRow row) {
  --call->function->stored_count;
  --call->stored;
  --waiting_inputs_;
  auto owned = std::make_unique<Input>();
  Input* input = owned.get();
  input->call = call;
  input->idx = key.idx;
  input->attempt = row.attempt;
  input->cancelled = call->cancelled;
  input->bytes = key.bytes;
  input->id = InputId(call->id, key.idx);
  input->method = std::move(row.method);
  input->payload = row.payload ? std::move(row.payload) : std::make_shared<const std::string>();
  inputs_[input->id] = input;
  call->inputs[key.idx] = std::move(owned);
  return input;
}

bool EngineCore::StillStored(Call* call, uint32_t idx) {
  return call->seen.Contains(idx) && !call->inputs.contains(idx) &&
         call->outputs.InRange(idx, idx, 1).empty();
}

void EngineCore::Refill(FunctionState* function) {
  if (function->loading || !recovering_.empty() || function->queue.size() > options_.max_ready_inputs / 2)
    return;
  auto load = std::make_shared<Load>();
  const size_t most = std::min(kAtOnce, options_.max_ready_inputs - function->queue.size());
  uint64_t bytes = 0;
  for (auto& stored = function->stored; !stored.empty() && load->keys.size() < most; stored.pop_front()) {
    const InputKey& key = stored.front();
    if (claimed_.erase(RowOf(key)) > 0) continue;
    const bool first = load->keys.empty() && function->queue.empty();
    if (!first && !QueueHasRoom(*function, bytes + key.bytes)) break;
    bytes += key.bytes;
    load->keys.push_back(key);
    load->calls.emplace(key.call, 0);
  }
  if (load->keys.empty()) {
    for (Task& task : std::exchange(function->after_load, {})) strand_.Post(std::move(task));
    return;
  }
  for (auto& [number, begun] : load->calls) {
    begun = BeginReading(number);
    if (ByNumber(number) == nullptr) load->absent.push_back(number);
  }
  function->loading = true;
  inputs_pool_.Post([this, id = function->info.function_id, load] {
    ReadStored(load.get());
    strand_.Post([this, id, load] { Loaded(id, load.get()); });
  });
}

// On a pool's thread.
void EngineCore::ReadStored(Load* load) {
  for (const uint32_t number : load->absent) {
    auto call = journal_->FindCall(number);
    if (call.ok()) {
      load->found.push_back(std::move(call).value());
    } else if (call.status().code() != Code::kNotFound) {
      load->status = call.status();
      return;
    }
  }
  load->rows = journal_->Inputs(load->keys);
  load->status = load->rows.status();
}

void EngineCore::Loaded(const std::string& function_id, Load* load) {
  FunctionState* function = this->function(function_id);
  std::set<uint32_t> old;  // has been in memory and left since
  for (const auto& [number, begun] : load->calls) {
    if (EndReading(number, begun) && ByNumber(number) == nullptr) old.insert(number);
  }
  if (function == nullptr) return;  // a worker has claimed all of them, and it has gone since
  function->loading = false;
  if (!load->status.ok()) {
    LOG_WARN("inputs that wait could not be read; they are tried again",
             {{"function", function_id}, {"error", load->status}});
    function->stored.insert(function->stored.begin(), load->keys.begin(), load->keys.end());
    strand_.PostAfter(kAgain, [this, function_id] {
      if (FunctionState* again = this->function(function_id)) Refill(again);
    });
    return;
  }
  for (StoredCall& stored : load->found) {
    const uint32_t number = stored.row.number;
    if (ByNumber(number) == nullptr && !old.contains(number) && !dropping_.contains(number))
      TakeUp(std::move(stored));
  }
  std::vector<InputKey> again;
  for (const InputKey& key : load->keys) {
    if (old.contains(key.call)) again.push_back(key);
  }
  function->stored.insert(function->stored.begin(), again.begin(), again.end());
  TakeLoaded(function, load);
  for (Task& task : std::exchange(function->after_load, {})) task();
  Dispatch(function);
  Refill(function);
  PostScale();
}

void EngineCore::TakeLoaded(FunctionState* function, Load* load) {
  std::vector<std::pair<std::string, std::string>> ended;  // input ids, and why
  for (size_t i = 0; i < load->keys.size(); ++i) {
    const InputKey& key = load->keys[i];
    InputRow& row = (*load->rows)[i];
    Call* call = ByNumber(key.call);
    if (call == nullptr || claimed_.erase(RowOf(key)) > 0 || call->inputs.contains(key.idx)) continue;
    const bool lost = row.payload == nullptr;
    if ((lost || call->cancelled) && !StillStored(call, key.idx)) continue;
    NotIdle(call);
    Input* input = BringIn(call, key, std::move(row));
    Enqueue(input, false);
    if (call->cancelled) {
      ended.emplace_back(input->id, "the call was cancelled");
    } else if (function->app->stopped) {
      ended.emplace_back(input->id, function->app->stop_reason);
    } else if (lost) {
      LOG_ERROR("an input that waits is not in the journal", {{"call", call->id}, {"input", input->id}});
      ended.emplace_back(input->id, "its arguments are not in the journal any more");
    }
  }
  for (const auto& [id, why] : ended) {
    auto it = inputs_.find(id);
    if (it != inputs_.end()) FinishWithText(it->second, ResultStatus::kTerminated, why);
  }
}

// Those of a cancelled call, from index `first` on.
void EngineCore::EndStored(Call* call, uint32_t first) {
  if (call->stored == 0) return;
  ++call->readers;
  inputs_pool_.Post([this, id = call->id, number = call->number, first] {
    auto keys = std::make_shared<Result<std::vector<InputKey>>>(journal_->InputKeys(number, first, kAtOnce));
    strand_.Post([this, id, first, keys] {
      auto found = calls_.find(id);
      if (found == calls_.end()) return;
      Call* call = found->second.get();
      --call->readers;
      if (!keys->ok()) {
        LOG_WARN("inputs of a cancelled call could not be read; they are tried again",
                 {{"call", id}, {"error", keys->status()}});
        strand_.PostAfter(kAgain, [this, id, first] {
          if (auto again = calls_.find(id); again != calls_.end()) EndStored(again->second.get(), first);
        });
        return;
      }
      for (const InputKey& key : **keys) {
        if (!StillStored(call, key.idx)) continue;
        FinishWithText(BringIn(call, key, {}), ResultStatus::kTerminated, "the call was cancelled");
      }
      if ((*keys)->size() == kAtOnce) return EndStored(call, (*keys)->back().idx + 1);
      Idle(call);
    });
  });
}

// Null unless it waits in the journal since a restart. The journal is read here and now, since what the
// worker says must be settled in order: it is about what its containers had in hand.
Input* EngineCore::Claim(const std::string& input_id) {
  auto unclaimed = unclaimed_.find(std::hash<std::string>()(input_id));
  if (unclaimed == unclaimed_.end()) return nullptr;
  const InputKey key = unclaimed->second;
  auto rows = journal_->Inputs({key});
  if (!rows.ok() || rows->at(0).payload == nullptr || rows->at(0).input_id != input_id) return nullptr;
  Call* call = ByNumber(key.call);
  if (call == nullptr) {
    auto stored = journal_->FindCall(key.call);
    if (!stored.ok() || dropping_.contains(key.call)) return nullptr;
    call = TakeUp(std::move(stored).value());
  }
  if (call == nullptr || !StillStored(call, key.idx)) return nullptr;
  unclaimed_.erase(unclaimed);
  claimed_.insert(RowOf(key));
  NotIdle(call);
  Input* input = BringIn(call, key, std::move(rows->at(0)));
  Enqueue(input, true);
  return input;
}

void EngineCore::EndClaims() {
  if (unclaimed_.empty()) return;
  strand_.PostAfter(kClaimsKeep, [this] { unclaimed_ = {}; });
}

}  // namespace lydian::control
