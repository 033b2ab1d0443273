// Calls that rest: ended ones that nobody has asked about for a while are in the journal alone, and are taken
// up when somebody asks again. Of the outputs of a call in memory the newest are there whole; the others are
// read when they are asked for.
#include "base/ids.h"
#include "control/call_engine_core.h"

namespace lydian::control {

Result<Call*> EngineCore::CallIn(const CallScope& scope, const std::string& call_id) {
  auto it = calls_.find(call_id);
  if (it != calls_.end() && it->second->committed &&
      it->second->function->info.workspace_id == scope.workspace_id &&
      (scope.environment.empty() || it->second->function->info.environment == scope.environment)) {
    return it->second.get();
  }
  return NotFound("no function call " + call_id +
                  " (results that were fetched, or are too old, are dropped)");
}

void EngineCore::WithCall(const CallScope& scope, const std::string& call_id,
                          std::function<void(Result<Call*>)> found) {
  const std::optional<uint32_t> number = calls_.contains(call_id) ? std::nullopt : CallNumberIn(call_id);
  if (!number || *number >= next_call_ || dropping_.contains(*number)) return found(CallIn(scope, call_id));
  auto& waiting = paging_[call_id];
  waiting.push_back([this, scope, call_id, found = std::move(found)](const Status& read) {
    if (!read.ok() && read.code() != Code::kNotFound) return found(read);
    found(CallIn(scope, call_id));
  });
  if (waiting.size() == 1) ReadCall(call_id, *number);
}

void EngineCore::ReadCall(const std::string& call_id, uint32_t number) {
  results_pool_.Post([this, call_id, number, begun = BeginReading(number)] {
    auto stored = std::make_shared<Result<StoredCall>>(journal_->FindCall(number));
    strand_.Post([this, call_id, number, begun, stored] {
      if (EndReading(number, begun) && !calls_.contains(call_id)) return ReadCall(call_id, number);
      CallRead(call_id, std::move(*stored));
    });
  });
}

uint32_t EngineCore::BeginReading(uint32_t number) {
  Reading& reading = reading_[number];
  ++reading.readers;
  return reading.departures;
}

bool EngineCore::EndReading(uint32_t number, uint32_t begun) {
  auto it = reading_.find(number);
  const bool left = it->second.departures != begun;
  if (--it->second.readers == 0) reading_.erase(it);
  return left;
}

void EngineCore::AddCall(std::unique_ptr<Call> call) {
  Call* made = call.get();
  ++made->function->calls;
  by_number_[made->number] = made;
  calls_[made->id] = std::move(call);
}

void EngineCore::RemoveCall(Call* call) {
  if (auto it = reading_.find(call->number); it != reading_.end()) ++it->second.departures;
  --call->function->calls;
  by_number_.erase(call->number);
  calls_.erase(call->id);
}

Call* EngineCore::ByNumber(uint32_t number) const {
  auto it = by_number_.find(number);
  return it == by_number_.end() ? nullptr : it->second;
}

void EngineCore::Ask(uint64_t handle, const CallScope& scope, const std::string& call_id,
                     std::function<void(Result<Call*>)> found) {
  asking_.insert(handle);
  WithCall(scope, call_id, [this, handle, found = std::move(found)](Result<Call*> call) {
    if (asking_.erase(handle) > 0) found(std::move(call));
  });
}

void EngineCore::CallRead(const std::string& call_id, Result<StoredCall> stored) {
  const auto waiting = std::move(paging_[call_id]);
  paging_.erase(call_id);
  // The id has the number in it, but anybody can write one.
  if (stored.ok() && stored->row.call_id == call_id && !calls_.contains(call_id) &&
      !dropping_.contains(stored->row.number)) {
    TakeUp(std::move(stored).value());
  }
  for (const auto& answer : waiting) answer(stored.status());
  if (auto it = calls_.find(call_id); it != calls_.end()) Idle(it->second.get());
}

// Null when its function isn't there any more. Its inputs are counted already, but for the call's own count.
Call* EngineCore::TakeUp(StoredCall stored) {
  CallRow& row = stored.row;
  FunctionState* known = function(row.function_id);
  if (known == nullptr) return nullptr;
  auto call = std::make_unique<Call>();
  call->number = row.number;
  call->id = std::move(row.call_id);
  call->parent_input_id = std::move(row.parent_input_id);
  call->idempotency_key = KeyDigest(row.idempotency_key);
  call->function = known;
  call->call_type = row.call_type;
  call->invocation_type = row.invocation_type;
  call->created_at = row.created_at;
  call->cancelled = row.cancelled;
  call->committed = true;
  for (const OutputKey& key : stored.outputs) RecoverOutput(call.get(), key);
  for (const ChunkKey& key : stored.chunks) RecoverChunk(call.get(), key);
  for (const InputKey& key : stored.inputs) call->seen.Insert(key.idx);
  call->stored = call->unfinished = static_cast<uint32_t>(stored.inputs.size());
  call->total += call->stored;
  if (call->stored == 0) {
    call->resting = true;  // 0: that it rests is still on its way there
    call->finished_at = row.resting_at > 0 ? row.resting_at : UnixSeconds();
  }
  Call* made = call.get();
  AddCall(std::move(call));
  return made;
}

void EngineCore::RecoverOutput(Call* call, const OutputKey& key) {
  call->seen.Insert(key.idx);
  ++call->total;
  call->next_seq = std::max(call->next_seq, key.seq + 1);
  call->outputs.Add(key);
}

void EngineCore::RecoverChunk(Call* call, const ChunkKey& key) {
  call->chunks[key.idx].bytes = key.bytes;
  call->chunks_stored += key.bytes;
}

void EngineCore::NotIdle(Call* call) {
  if (!call->idle_at) return;
  idle_.erase(*call->idle_at);
  call->idle_at.reset();
  idle_bytes_ -= call->idle_bytes;
}

void EngineCore::Idle(Call* call) {
  NotIdle(call);
  if (!call->committed || call->acked || call->builder || (call->unfinished > 0 && !Waits(*call))) return;
  call->idle_at = idle_.insert(idle_.end(), call);
  call->idle_bytes = call->outputs.bytes() + call->seen.bytes();
  idle_bytes_ += call->idle_bytes;
  while (idle_.size() > options_.max_idle_calls || idle_bytes_ > options_.max_idle_bytes) {
    Call* oldest = idle_.front();
    NotIdle(oldest);  // comes again when whoever is at it has gone
    if (!MayRest(*oldest)) continue;
    if (!oldest->resting && oldest->unfinished == 0)
      journal_->Append(Journal::Rest(oldest->number, std::max(oldest->finished_at, oldest->created_at)));
    Leave(oldest);
  }
}

// A large one stays: to take it up costs as much as it has inputs.
bool EngineCore::Waits(const Call& call) {
  constexpr uint32_t kFew = 64;
  return call.stored > 0 && call.stored == call.unfinished && call.total <= kFew && call.inputs.empty() &&
         call.outputs.empty() && call.chunks.empty() && !call.cancelled && !call.synchronous();
}

bool EngineCore::MayRest(const Call& call) const {
  return call.committed && !call.acked && (call.unfinished == 0 || Waits(call)) && call.inputs.empty() &&
         call.polls.empty() && call.chunk_waits.empty() && call.readers == 0 &&
         CallNumberIn(call.id) == call.number && (call.recent.empty() || call.recent.front().journalled);
}

void EngineCore::Wake(Call* call) {
  NotIdle(call);
  if (std::exchange(call->resting, false)) journal_->Append(Journal::Rest(call->number, 0));
}

// Out of memory. What the journal has of it stays.
void EngineCore::Leave(Call* call) {
  NotIdle(call);
  ForgetRecent(call);
  if (auto it = idempotent_.find(call->idempotency_key); it != idempotent_.end() && it->second.call == call) {
    it->second.call = nullptr;
  }
  call->function->workspace->chunk_bytes -= call->chunk_bytes;
  chunk_bytes_ -= call->chunk_bytes;
  RemoveCall(call);
}

void EngineCore::Remember(Call* call, OutputView output) {
  recent_bytes_ += RecentOutputs::CostOf(output);
  call->recent.Add(std::move(output));
  if (call->recent_at) with_recent_.erase(*call->recent_at);
  call->recent_at = with_recent_.insert(with_recent_.end(), call);
}

void EngineCore::ForgetFront(Call* call) {
  recent_bytes_ -= RecentOutputs::CostOf(call->recent.front());
  call->recent.DropFront();
  if (call->recent.empty() && call->recent_at) {
    with_recent_.erase(*call->recent_at);
    call->recent_at.reset();
  }
}

void EngineCore::ForgetRecent(Call* call) {
  while (!call->recent.empty()) ForgetFront(call);
}

// When there is too much in all, outputs of those calls leave the memory that have had none for the longest
// time.
void EngineCore::TrimRecent() {
  while (recent_bytes_ > options_.max_result_bytes && !with_recent_.empty()) {
    Call* oldest = with_recent_.front();
    if (oldest->recent.front().journalled) {
      ForgetFront(oldest);
    } else {
      with_recent_.erase(*oldest->recent_at);  // comes again with its next output
      oldest->recent_at.reset();
    }
  }
}

// With what is in the journal alone. The call stays meanwhile.
void EngineCore::ReplyWithAll(Call* call, Collected collected,
                              std::function<void(Result<OutputsPage>)> reply) {
  if (collected.missing.empty()) return reply(std::move(collected.page));
  ++call->readers;
  auto shared = std::make_shared<Collected>(std::move(collected));
  results_pool_.Post([this, number = call->number, call_id = call->id, shared, reply = std::move(reply)] {
    const Status read = FillIn(number, shared.get());
    strand_.Post([this, call_id, read, shared, reply] {
      if (auto it = calls_.find(call_id); it != calls_.end()) {
        --it->second->readers;
        Idle(it->second.get());
      }
      if (!read.ok()) return reply(read);
      reply(std::move(shared->page));
    });
  });
}

// On a pool's thread. The page ends before the first output that would be too much.
Status EngineCore::FillIn(uint32_t number, Collected* collected) const {
  ASSIGN_OR_RETURN(auto rows, journal_->Outputs(number, collected->missing, collected->room));
  std::vector<OutputView>& outputs = collected->page.outputs;
  for (size_t i = 0; i < rows.size(); ++i) {
    OutputRow& row = rows[i];
    outputs[collected->places[i]] = {
        row.seq,        row.idx,         std::move(row.input_id), std::move(row.task_id),
        row.status,     row.data_format, std::move(row.result),   std::move(row.text),
        row.started_at, row.created_at};
  }
  if (rows.size() < collected->places.size()) outputs.resize(collected->places[rows.size()]);
  collected->SetCursor();
  return {};
}

}  // namespace lydian::control
