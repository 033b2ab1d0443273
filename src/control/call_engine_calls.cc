#include <algorithm>
#include <cmath>

#include "base/ids.h"
#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

constexpr uint32_t kMaxIndex = 50'000'000;
// Of what may be queued in all: one function's, one workspace's part of it, and what is each workspace's own.
constexpr uint64_t kFunctionShare = 4, kWorkspaceShare = 2;
// Inputs that are ended in one turn on the strand.
constexpr size_t kSlice = 1000;

}  // namespace

Status CheckInputCount(size_t count) {
  if (count <= kMostInputs) return {};
  return InvalidArgument("a request brings " + std::to_string(count) + " inputs; it may bring " +
                         std::to_string(kMostInputs) + ": put them in several");
}

Result<FunctionState*> EngineCore::FindFunction(const CallScope& scope, const std::string& function_id) {
  FunctionState* found = function(function_id);
  if (found == nullptr || found->info.workspace_id != scope.workspace_id ||
      (!scope.environment.empty() && found->info.environment != scope.environment)) {
    return NotFound("no function " + function_id);
  }
  return found;
}

// RESOURCE_EXHAUSTED, which a map's client takes as "slower": it waits and puts the same again.
Status EngineCore::CheckRoom(const FunctionState& function, const std::vector<NewInput>& inputs) const {
  Held more{inputs.size(), 0};
  for (const NewInput& input : inputs) more.bytes += input.payload.size();
  auto full = [&](const Held& held, uint64_t share) {
    return held.inputs + more.inputs > options_.max_queued_inputs / share ||
           held.bytes + more.bytes > options_.max_queued_bytes / share;
  };
  auto refuse = [](const Held& held, const std::string& whose) {
    return ResourceExhausted("too many inputs" + whose + " are queued (" + std::to_string(held.inputs) +
                             ", " + std::to_string(held.bytes >> 20) + " MiB): try again when some are done");
  };
  const Held& workspace = function.workspace->held;
  if (full(function.held, kFunctionShare)) return refuse(function.held, " of function " + function.info.name);
  if (full(workspace, kWorkspaceShare)) return refuse(workspace, " of this workspace");
  if (full(held_, 1) && full(workspace, kOwnShare)) return refuse(held_, "");
  return {};
}

Status EngineCore::CheckIndexes(const std::vector<NewInput>& inputs) {
  RETURN_IF_ERROR(CheckInputCount(inputs.size()));
  for (const NewInput& input : inputs) {
    if (input.idx > kMaxIndex) {
      return InvalidArgument("input index " + std::to_string(input.idx) +
                             " is out of range: a call may have inputs 0 to " + std::to_string(kMaxIndex));
    }
  }
  return {};
}

Input* EngineCore::AddInput(Call* call, NewInput input, InputRow* row) {
  auto owned = std::make_unique<Input>();
  Input* made = owned.get();
  made->call = call;
  made->idx = input.idx;
  made->id = InputId(call->id, input.idx);
  made->method = std::move(input.method);
  made->bytes = static_cast<uint32_t>(input.payload.size());
  made->payload = std::make_shared<const std::string>(std::move(input.payload));
  call->seen.Insert(made->idx);
  ++call->total;
  Hold(made);
  *row = {call->number, made->idx, 0, made->id, made->method, made->payload};
  inputs_[made->id] = made;
  call->inputs[made->idx] = std::move(owned);
  return made;
}

void EngineCore::Hold(Input* input) {
  FunctionState* function = input->call->function;
  for (Held* held : {&held_, &function->workspace->held, &function->held}) held->Add(input->bytes);
}

EngineCore::Idempotent& EngineCore::KeepKey(const std::string& digest, Call* call, const std::string& call_id,
                                            double at) {
  ForgetKeys();
  Idempotent& entry = idempotent_[digest];
  entry.call = call;
  entry.call_id = call_id;
  entry.at = at;
  keys_.emplace_back(at, digest);
  return entry;
}

void EngineCore::CreateCall(NewCall request, CreatedReply reply) {
  const std::string key = KeyDigest(request.idempotency_key);
  if (auto known = key.empty() ? idempotent_.end() : idempotent_.find(key); known != idempotent_.end()) {
    Idempotent& entry = known->second;
    if (entry.waiters) return entry.waiters->push_back(std::move(reply));
    CreatedCall again{entry.call_id, {}, {}};
    if (entry.call != nullptr) again.retry = entry.call->function->info.retry;
    for (const NewInput& input : request.inputs)
      again.inputs.push_back({input.idx, InputId(entry.call_id, input.idx)});
    return reply(std::move(again));
  }
  auto function = FindFunction(request.scope, request.function_id);
  if (!function.ok()) return reply(function.status());
  if ((*function)->app->stopped) {
    return reply(
        FailedPrecondition("function " + (*function)->info.name + " can't be called: its app has stopped"));
  }
  auto owned = std::make_unique<Call>();
  Call* call = owned.get();
  call->call_type = request.call_type;
  Status status = CheckIndexes(request.inputs);
  if (status.ok() && call->call_type == kCallUnary && request.inputs.size() > 1)
    status = InvalidArgument("a single call has one input");
  if (status.ok()) status = CheckRoom(**function, request.inputs);
  if (!status.ok()) return reply(status);
  call->number = next_call_++;
  call->id = MakeCallId(call->number);
  call->parent_input_id = request.parent_input_id;
  call->idempotency_key = key;
  call->function = *function;
  call->invocation_type = request.invocation_type;
  call->created_at = UnixSeconds();
  AddCall(std::move(owned));

  CallRow row{call->number,
              call->id,
              call->function->info.function_id,
              call->function->info.app_id,
              call->parent_input_id,
              request.idempotency_key,
              call->call_type,
              call->invocation_type,
              call->created_at};
  std::vector<InputRow> rows;
  std::vector<PutInput> answer;
  for (NewInput& input : request.inputs) {
    if (call->seen.Contains(input.idx)) {
      answer.push_back({input.idx, InputId(call->id, input.idx)});
      continue;
    }
    Input* made = AddInput(call, std::move(input), &rows.emplace_back());
    answer.push_back({made->idx, made->id});
  }
  if (!key.empty())
    KeepKey(key, call, call->id, call->created_at).waiters = std::make_unique<std::vector<CreatedReply>>();
  Journal::Record record = Journal::PutCall(std::move(row), std::move(rows));
  record.durable = !call->synchronous();
  record.done = [this, call, answer = std::move(answer), reply = std::move(reply)](Status committed) {
    CreatedCall created{call->id, answer, call->function->info.retry};
    std::vector<CreatedReply> waiters;
    if (!call->idempotency_key.empty())
      waiters = std::move(*std::exchange(idempotent_[call->idempotency_key].waiters, nullptr));
    waiters.push_back(reply);
    CallCommitted(call, answer, committed);  // the call is gone if it failed
    FlushOutbox();  // the way of the inputs is longer than that of the answer: it begins first
    for (auto& waiter : waiters) committed.ok() ? waiter(created) : waiter(committed);
  };
  Write(std::move(record));
}

void EngineCore::CallCommitted(Call* call, const std::vector<PutInput>& answer, Status status) {
  if (!status.ok()) {
    for (const PutInput& input : answer) {
      auto it = call->inputs.find(input.idx);
      if (it != call->inputs.end()) Forget(it->second.get());
    }
    if (!call->idempotency_key.empty()) idempotent_.erase(call->idempotency_key);
    return RemoveCall(call);
  }
  call->committed = true;
  std::vector<uint32_t> fresh;
  for (const PutInput& input : answer) fresh.push_back(input.idx);
  InputsCommitted(call->id, fresh, {});
  if (Waits(*call)) Idle(call);
}

void EngineCore::PutInputs(Call* call, const std::string& function_id, std::vector<NewInput> inputs,
                           std::function<void(Result<std::vector<PutInput>>)> reply) {
  const std::string& call_id = call->id;
  if (!function_id.empty() && call->function->info.function_id != function_id) {
    return reply(NotFound("function call " + call_id + " is not one of function " + function_id));
  }
  if (Status status = CheckIndexes(inputs); !status.ok()) return reply(status);
  std::vector<NewInput> fresh_inputs;
  std::vector<PutInput> answer;
  std::vector<uint32_t> fresh;
  answer.reserve(inputs.size());
  for (NewInput& input : inputs) {
    answer.push_back({input.idx, InputId(call_id, input.idx)});
    if (!call->seen.Insert(input.idx)) continue;
    fresh.push_back(input.idx);
    fresh_inputs.push_back(std::move(input));
  }
  Status status = CheckRoom(*call->function, fresh_inputs);
  if (status.ok() && call->call_type == kCallUnary && call->total + fresh.size() > 1)
    status = InvalidArgument("a single call has one input");
  if (!status.ok()) {
    for (uint32_t idx : fresh) call->seen.Erase(idx);
    return reply(status);
  }
  Wake(call);
  std::vector<InputRow> rows;
  for (NewInput& input : fresh_inputs) AddInput(call, std::move(input), &rows.emplace_back());
  // Also with nothing new: a repeated put is answered after the commit of the first.
  Journal::Record record = Journal::PutInputs(std::move(rows));
  record.durable = !call->synchronous();
  record.done = [this, call_id, fresh = std::move(fresh), answer = std::move(answer),
                 reply = std::move(reply)](Status committed) {
    InputsCommitted(call_id, fresh, committed);
    auto it = calls_.find(call_id);
    if (it != calls_.end()) Idle(it->second.get());  // should nothing be left to do
    // What a repeated put relied on may have been taken back with the first.
    bool all_there = it != calls_.end() &&
                     std::all_of(answer.begin(), answer.end(),
                                 [&](const PutInput& input) { return it->second->seen.Contains(input.idx); });
    if (committed.ok() && !all_there)
      committed = ResourceExhausted("the inputs could not be stored: try again");
    committed.ok() ? reply(answer) : reply(committed);
  };
  Write(std::move(record));
}

void EngineCore::InputsCommitted(const std::string& call_id, const std::vector<uint32_t>& fresh,
                                 Status status) {
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return;
  Call* call = found->second.get();
  std::vector<Input*> cancelled;
  for (uint32_t idx : fresh) {
    auto it = call->inputs.find(idx);
    if (it == call->inputs.end()) continue;
    Input* input = it->second.get();
    if (input->state != Input::State::kJournalling) continue;
    if (!status.ok()) {
      call->seen.Erase(idx);
      --call->total;
      Forget(input);
      continue;
    }
    Unfinished(call, 1);
    if (call->cancelled || call->function->app->stopped) {
      cancelled.push_back(input);
    } else if (MustStore(*call->function)) {
      Store(input);
      continue;
    }
    Enqueue(input, false);
  }
  for (Input* input : cancelled) {
    FinishWithText(input, ResultStatus::kTerminated,
                   call->cancelled ? "the call was cancelled" : call->function->app->stop_reason);
  }
  // Whoever calls again after a failure gets a new try at once; the back-off is for what keeps failing by
  // itself.
  if (call->function->queue.size() <= fresh.size()) call->function->not_before = 0;
  Dispatch(call->function);
  // What found a container at once changes nothing, unless spare ones are wanted while there is work.
  if (!call->function->queue.empty() || call->function->info.buffer_containers > 0) PostScale();
}

// Keeps count of what a caller's input waits for.
void EngineCore::Unfinished(Call* call, int64_t by) {
  bool before = call->unfinished > 0;
  call->unfinished = static_cast<uint32_t>(static_cast<int64_t>(call->unfinished) + by);
  bool after = call->unfinished > 0;
  if (!after) call->finished_at = UnixSeconds();
  if (before == after || !call->synchronous() || call->parent_input_id.empty()) return;
  // The caller names its input: one of another workspace is as good as none.
  auto& blocking = call->function->workspace->blocking_calls;
  if (after) {
    ++blocking[call->parent_input_id];
  } else if (auto it = blocking.find(call->parent_input_id); it != blocking.end() && --it->second == 0) {
    blocking.erase(it);
  }
}

void EngineCore::Enqueue(Input* input, bool front) {
  FunctionState* function = input->call->function;
  input->state = Input::State::kQueued;
  input->queued_nanos = NowNanos();
  ++waiting_inputs_;
  function->queued_bytes += input->bytes;
  queued_bytes_ += input->bytes;
  input->queue_at = function->queue.insert(front ? function->queue.begin() : function->queue.end(), input);
}

void EngineCore::TakeFromQueue(Input* input) {
  FunctionState* function = input->call->function;
  function->queue.erase(input->queue_at);
  --waiting_inputs_;
  function->queued_bytes -= input->bytes;
  queued_bytes_ -= input->bytes;
  if (function->stored_count > 0) Refill(function);
}

void EngineCore::TakeFromTask(Input* input) {
  TaskState* task = input->task;
  bool head = task->leases.front() == input;
  task->leases.erase(input->lease_at);
  --input->call->function->leased;
  input->task = nullptr;
  if (task->leases.empty()) task->idle_since = NowNanos();
  if (head) HeadChanged(task);
  // With nothing waiting it can only mean a scale-down later, and a timer for something earlier will see to
  // it.
  int64_t due = NowNanos() + int64_t{task->function->info.scaledown_window_secs} * 1'000'000'000;
  if (waiting_inputs_ > 0 || !scale_timer_ || scale_timer_->first > due) PostScale();
}

void EngineCore::Detach(Input* input) {
  switch (input->state) {
    case Input::State::kQueued:
      TakeFromQueue(input);
      break;
    case Input::State::kLeased:
      TakeFromTask(input);
      break;
    case Input::State::kDelayed:
      --input->call->function->delayed;
      if (input->timer) strand_.CancelTimer(*input->timer);
      input->timer.reset();
      break;
    default:
      break;
  }
}

void EngineCore::Forget(Input* input) {
  Call* call = input->call;
  for (Held* held : {&held_, &call->function->workspace->held, &call->function->held})
    held->Remove(input->bytes);
  inputs_.erase(input->id);
  call->inputs.erase(input->idx);
}

void EngineCore::Finish(Input* input, OutputView output, OutputDone committed) {
  if (input->state == Input::State::kFinishing) return;
  Detach(input);
  input->state = Input::State::kFinishing;
  Call* call = input->call;
  output.seq = call->next_seq++;
  output.idx = input->idx;
  output.input_id = input->id;
  if (output.created_at == 0) output.created_at = UnixSeconds();
  if (call->builder) {
    Forget(input);
    call->builder(output);
    if (committed) committed();
    return;
  }
  OutputRow row{call->number,   output.seq,        output.idx,         output.input_id,
                output.task_id, output.status,     output.data_format, output.result,
                output.text,    output.started_at, output.created_at};
  std::vector<OutputRow> rows;
  rows.push_back(std::move(row));
  Journal::Record record = Journal::Finish(std::move(rows));
  record.done = [this, call_id = call->id, output = std::move(output),
                 committed = std::move(committed)](Status status) mutable {
    output.journalled = status.ok();
    if (!status.ok()) LOG_ERROR("an output is in memory alone", {{"call_id", call_id}, {"error", status}});
    if (committed) committed();
    Finished(call_id, output.idx, output);
  };
  Write(std::move(record));
}

void EngineCore::Finished(const std::string& call_id, uint32_t idx, OutputView output) {
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return;
  Call* call = found->second.get();
  auto input = call->inputs.find(idx);
  if (input != call->inputs.end()) Forget(input->second.get());
  uint64_t bytes = (output.result ? output.result->size() : 0) + output.text.size();
  call->output_bytes += bytes;
  if (call->acked) acked_bytes_ += bytes;
  call->outputs.Add({output.seq, output.idx, output.status});
  Remember(call, std::move(output));
  Unfinished(call, -1);
  WakePolls(call, idx);  // perhaps there is somebody for it, who has all of the call then
  TrimRecent();
  if (found = calls_.find(call_id); found != calls_.end()) Idle(found->second.get());
}

void EngineCore::FinishWithText(Input* input, ResultStatus status, const std::string& text) {
  OutputView output;
  output.status = static_cast<int32_t>(status);
  output.text = text;
  if (input->task != nullptr) output.task_id = input->task->id;
  Finish(input, std::move(output));
}

void EngineCore::AttemptFailed(Input* input, OutputView output, OutputDone committed) {
  if (input->state == Input::State::kFinishing) return;
  FunctionState* function = input->call->function;
  const RetryPolicy& policy = function->info.retry;
  if (input->cancelled || function->app->stopped || input->call->builder ||
      input->attempt >= policy.retries) {
    return Finish(input, std::move(output), std::move(committed));
  }
  Detach(input);
  double delay =
      policy.initial_delay_ms * std::pow(std::max(policy.backoff_coefficient, 1.0), input->attempt);
  if (policy.max_delay_ms > 0) delay = std::min<double>(delay, policy.max_delay_ms);
  ++input->attempt;
  input->state = Input::State::kDelayed;
  ++function->delayed;
  Journal::Record record = Journal::SetAttempt(input->call->number, input->idx, input->attempt);
  // Not leased before the journal has the attempt: a control that comes back must know what is running.
  record.done = [this, id = input->id, attempt = input->attempt, delay = Millis(static_cast<int64_t>(delay)),
                 committed = std::move(committed)](Status) {
    if (committed) committed();
    if (Input* delayed = DelayedInput(id, attempt))
      delayed->timer = strand_.PostAfter(delay, [this, id, attempt] { NextAttempt(id, attempt); });
  };
  Write(std::move(record));
}

Input* EngineCore::DelayedInput(const std::string& id, uint32_t attempt) const {
  auto it = inputs_.find(id);
  if (it == inputs_.end() || it->second->state != Input::State::kDelayed || it->second->attempt != attempt)
    return nullptr;
  return it->second;
}

void EngineCore::NextAttempt(const std::string& id, uint32_t attempt) {
  Input* input = DelayedInput(id, attempt);
  if (input == nullptr) return;
  Detach(input);
  Enqueue(input, false);
  Dispatch(input->call->function);
  PostScale();
}

void EngineCore::Requeue(Input* input) {
  FunctionState* function = input->call->function;
  if (input->cancelled) return FinishWithText(input, ResultStatus::kTerminated, "the call was cancelled");
  if (function->app->stopped)
    return FinishWithText(input, ResultStatus::kTerminated, function->app->stop_reason);
  TaskState* holder = input->task;
  Detach(input);
  if (input->call->builder) return Lease(holder, input, 0);  // nobody else's: its container leaves the layer
  Enqueue(input, true);
}

// As many as are queued now, in slices: others have their turn between them.
void EngineCore::FailQueued(FunctionState* function, ResultStatus status, const std::string& text,
                            SharedBytes result) {
  OutputView output;
  output.status = static_cast<int32_t>(status);
  output.text = text;
  output.result = std::move(result);
  FailSome(function->info.function_id, function->waiting(), output);
}

void EngineCore::FailSome(const std::string& function_id, size_t left, const OutputView& output) {
  FunctionState* known = function(function_id);
  if (known == nullptr) return;
  for (size_t i = 0; i < kSlice && left > 0 && !known->queue.empty(); ++i, --left)
    Finish(known->queue.front(), output);
  if (left == 0 || known->waiting() == 0) return;
  Task more = [this, function_id, left, output] { FailSome(function_id, left, output); };
  if (!known->queue.empty()) return strand_.Post(std::move(more));
  known->after_load.push_back(std::move(more));
  Refill(known);
}

void EngineCore::CancelCall(Call* call, bool terminate) {
  if (!call->cancelled) {
    call->cancelled = true;
    journal_->Append(Journal::SetCancelled(call->number));
  }
  std::vector<uint32_t> all;
  all.reserve(call->inputs.size());
  for (auto& [idx, input] : call->inputs) {
    input->cancelled = true;
    all.push_back(idx);
  }
  std::sort(all.begin(), all.end(), std::greater<>());
  EndStored(call, 0);
  CancelSome(call->id, std::move(all), terminate);
}

// In slices, from the back of `left` on.
void EngineCore::CancelSome(const std::string& call_id, std::vector<uint32_t> left, bool terminate) {
  auto found = calls_.find(call_id);
  if (found == calls_.end()) return;
  Call* call = found->second.get();
  std::vector<Input*> waiting;
  std::map<TaskState*, std::vector<std::string>> running;
  for (size_t i = 0; i < kSlice && !left.empty(); ++i, left.pop_back()) {
    auto it = call->inputs.find(left.back());
    if (it == call->inputs.end()) continue;
    Input* input = it->second.get();
    if (input->state == Input::State::kQueued || input->state == Input::State::kDelayed)
      waiting.push_back(input);
    if (input->state == Input::State::kLeased) running[input->task].push_back(input->id);
  }
  if (!left.empty()) {
    strand_.Post([this, call_id, left = std::move(left), terminate]() mutable {
      CancelSome(call_id, std::move(left), terminate);
    });
  }
  for (Input* input : waiting) FinishWithText(input, ResultStatus::kTerminated, "the call was cancelled");
  if (terminate && !waiting.empty()) DropStarts(call->function, "the call that it was for was cancelled");
  for (auto& [task, ids] : running) {
    if (terminate) {
      task->cancel_killed = true;
      SendStop(task, StopTask::KILL, 0, "a call was cancelled and its containers terminated");
      continue;
    }
    ToWorker message;
    message.mutable_cancel()->set_task_id(task->id);
    for (const std::string& id : ids) message.mutable_cancel()->add_input_ids(id);
    registry_.Send(task->worker_id, message);
    // Code that doesn't return to Python can't be interrupted from within.
    strand_.PostAfter(options_.cancel_patience, [this, task_id = task->id, ids = ids] {
      TaskState* late = FindTask(task_id);
      if (late == nullptr) return;
      for (const std::string& id : ids) {
        auto it = inputs_.find(id);
        if (it == inputs_.end() || it->second->task != late) continue;
        late->cancel_killed = true;
        return SendStop(late, StopTask::KILL, 0, "a cancelled input did not end");
      }
    });
  }
}

}  // namespace lydian::control
