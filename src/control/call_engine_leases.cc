#include <algorithm>
#include <cmath>

#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

// Short inputs are leased ahead, so that a container isn't idle for a round trip between two: as many as it
// does in this time.
constexpr double kPrefetchMillis = 25;
constexpr uint32_t kMostPrefetch = 32;
// Leases behind an input that takes longer than this (or several times the average) are asked back.
constexpr double kRecallMillis = 60;
constexpr double kRecallTimes = 6;
constexpr double kOverheadMillis = 1.5;  // of the client's runtime, an input
constexpr double kAverageShare = 0.2;    // of the newest in the moving average
constexpr Millis kAckWait{20};  // an acknowledgement of an output waits so long for leases to go with
constexpr int kMostAcks = 256;
constexpr size_t kLeasesBytes = size_t{4} << 20;  // a message's payloads; a larger input goes alone
// A worker that doesn't keep up is leased no more: beyond this, leases wait in the queue and not in its
// stream.
constexpr size_t kMostUnsent = size_t{32} << 20;
constexpr size_t kLeaseOverhead = 256;

int64_t Nanos(double millis) { return static_cast<int64_t>(millis * 1e6); }

bool Batched(const FunctionState& function) { return function.info.batch_max_size > 1; }

// Batches in work at once: a batched function that isn't concurrent has its batch size as slots.
uint32_t BatchSlots(const FunctionInfo& info) {
  return info.slots == info.batch_max_size ? 1 : std::max(info.slots, 1u);
}

uint32_t Slots(const FunctionInfo& info) { return info.single_use ? 1 : std::max(info.slots, 1u); }

}  // namespace

std::vector<TaskState*> EngineCore::TasksForWork(const FunctionState& function) {
  std::vector<TaskState*> ready;
  for (TaskState* task : function.tasks) {
    if (task->state != TaskState::State::kReady || !task->alive_for_work()) continue;
    if (task->leases_not_before != 0 && task->leases_not_before > NowNanos()) continue;
    const WorkerRegistry::Worker* worker = registry_.Find(task->worker_id);
    if (worker != nullptr && worker->connected && HasRoom(task->worker_id)) ready.push_back(task);
  }
  return ready;
}

bool EngineCore::HasRoom(const std::string& worker_id) {
  if (crowded_.contains(worker_id)) return false;
  if (outbox_[worker_id].bytes + registry_.Unsent(worker_id) < kMostUnsent) return true;
  crowded_.insert(worker_id);
  registry_.OnDrained(worker_id, kMostUnsent / 2, [this, worker_id] {
    crowded_.erase(worker_id);
    for (auto& [id, function] : functions_) Dispatch(function.get());
  });
  return false;
}

void EngineCore::Dispatch(FunctionState* function) {
  if (function->queue.empty() || !recovering_.empty() || !function->app->active || function->app->stopped)
    return;
  if (Batched(*function)) return DispatchBatches(function);
  std::vector<TaskState*> ready = TasksForWork(*function);
  if (function->info.single_use) std::erase_if(ready, [](const TaskState* task) { return task->used; });
  if (ready.empty()) return;
  // First every container gets what it can work on, the emptiest first; then, where inputs are short, some
  // ahead.
  uint32_t slots = Slots(function->info);
  while (!function->queue.empty()) {
    TaskState* best = nullptr;
    for (TaskState* task : ready) {
      if (task->leases.size() < slots && (best == nullptr || task->leases.size() < best->leases.size()))
        best = task;
    }
    if (best == nullptr) break;
    Lease(best, function->queue.front(), 0);
    if (function->info.single_use) std::erase(ready, best);
    if (!HasRoom(best->worker_id))
      std::erase_if(ready, [&](const TaskState* task) { return task->worker_id == best->worker_id; });
  }
  if (function->queue.empty() || slots > 1 || function->info.single_use) return;
  if (ready.empty()) return;
  size_t share = function->queue.size() / ready.size();
  for (TaskState* task : ready) {
    size_t depth = std::min<size_t>(PrefetchDepth(*task), share);
    if (task->leases.size() > slots + depth / 2) continue;  // many at a time: a message each would cost more
    while (!function->queue.empty() && task->leases.size() < slots + depth && HasRoom(task->worker_id))
      Lease(task, function->queue.front(), 0);
  }
}

// What is leased ahead waits, for who looks from outside.
FunctionStats EngineCore::StatsOf(const FunctionState& function) const {
  size_t waiting = function.waiting() + function.delayed, running = 0, free = 0;
  size_t slots = Batched(function) ? size_t{BatchSlots(function.info)} * function.info.batch_max_size
                                   : Slots(function.info);
  for (const TaskState* task : function.tasks) {
    size_t held = task->leases.size(), in_work = std::min(held, slots);
    running += in_work;
    waiting += held - in_work;
    if (task->state == TaskState::State::kReady && task->alive_for_work()) free += slots - in_work;
  }
  return {static_cast<uint32_t>(waiting), static_cast<uint32_t>(running),
          static_cast<uint32_t>(function.tasks.size()), static_cast<uint32_t>(free)};
}

uint32_t EngineCore::PrefetchDepth(const TaskState& task) const {
  double run = task.function->run_ms;
  if (run <= 0 || run > kPrefetchMillis || task.leases.empty()) return 0;
  if (NowNanos() - task.head_nanos > Nanos(kRecallMillis)) return 0;  // stuck behind a long one
  return std::min<uint32_t>(kMostPrefetch, static_cast<uint32_t>(std::ceil(kPrefetchMillis / run)));
}

// A batch is open from its first lease until it is full or that lease has waited for batch_linger_ms, which
// is when the worker hands it over: so inputs go at once, first into open batches, then into containers with
// a free place for one.
void EngineCore::DispatchBatches(FunctionState* function) {
  int64_t now = NowNanos();
  int64_t linger = static_cast<int64_t>(function->info.batch_linger_ms) * 1'000'000;
  std::vector<TaskState*> ready = TasksForWork(*function);
  auto fill = [&](TaskState* task, uint64_t batch, const std::string& method, size_t have) {
    for (auto it = function->queue.begin();
         it != function->queue.end() && have < function->info.batch_max_size;) {
      Input* input = *it++;
      if (input->method != method) continue;
      if (!HasRoom(task->worker_id)) return;
      Lease(task, input, batch);
      ++have;
    }
  };
  for (TaskState* task : ready) {
    size_t have = 0;
    const Input* first = nullptr;
    for (const Input* input : task->leases) {
      if (input->batch != task->open_batch) continue;
      if (have++ == 0) first = input;
    }
    // One that has given outputs is in work, whatever the clock says.
    if (first == nullptr || have < task->open_batch_size || first->leased_nanos + linger <= now) continue;
    std::string method = first->method;
    fill(task, task->open_batch, method, have);
    task->open_batch_size = 0;
    for (const Input* input : task->leases) task->open_batch_size += input->batch == task->open_batch;
  }
  for (TaskState* task : ready) {
    while (!function->queue.empty() && HasRoom(task->worker_id)) {
      std::set<uint64_t> in_work;
      for (const Input* input : task->leases) in_work.insert(input->batch);
      if (in_work.size() >= BatchSlots(function->info)) break;
      task->open_batch = next_batch_++;
      std::string method = function->queue.front()->method;
      fill(task, task->open_batch, method, 0);
      task->open_batch_size = 0;
      for (const Input* input : task->leases) task->open_batch_size += input->batch == task->open_batch;
    }
  }
}

void EngineCore::Lease(TaskState* task, Input* input, uint64_t batch) {
  FunctionState* function = task->function;
  if (input->state == Input::State::kQueued) TakeFromQueue(input);
  input->state = Input::State::kLeased;
  input->task = task;
  input->batch = batch;
  input->recalled = false;
  input->epoch = registry_.Find(task->worker_id)->epoch;
  input->leased_nanos = NowNanos();
  input->lease_at = task->leases.insert(task->leases.end(), input);
  task->used = true;
  ++function->leased;
  if (task->leases.size() == 1) HeadChanged(task);
  ArmDeadline(task);
  ArmRecall(task);
  Outbox& out = outbox_[task->worker_id];
  const size_t bytes = input->payload->size() + kLeaseOverhead;
  if (out.leases.empty() || out.open_bytes + bytes > kLeasesBytes) {
    out.leases.emplace_back();
    out.open_bytes = 0;
  }
  out.open_bytes += bytes;
  out.bytes += bytes;
  lydian::Lease* lease = out.leases.back().add_leases();
  lease->set_task_id(task->id);
  lease->set_input_id(input->id);
  lease->set_attempt(input->attempt);
  lease->set_epoch(input->epoch);
  lease->set_function_call_id(input->call->id);
  lease->set_input(*input->payload);
  lease->set_invocation_type(input->call->invocation_type);
  lease->set_idx(input->idx);
  lease->set_method_name(input->method);
  PostFlush();
}

void EngineCore::HeadChanged(TaskState* task) {
  task->head_nanos = NowNanos();
  ArmRecall(task);
}

// One timer a task, for the earliest end of an input's time; it looks again when it runs.
void EngineCore::ArmDeadline(TaskState* task) {
  if (task->deadline || task->leases.empty() || task->function->info.timeout_secs == 0) return;
  auto limit = std::chrono::seconds(task->function->info.timeout_secs);
  task->deadline = strand_.PostAfter(limit, [this, id = task->id] {
    TaskState* late = FindTask(id);
    if (late == nullptr) return;
    late->deadline.reset();
    CheckDeadlines(late);
  });
}

void EngineCore::CheckDeadlines(TaskState* task) {
  int64_t limit = int64_t{task->function->info.timeout_secs} * 1'000'000'000;
  int64_t now = NowNanos(), earliest = INT64_MAX;
  std::vector<Input*> late;
  bool one_at_a_time = Slots(task->function->info) == 1 && !Batched(*task->function);
  for (Input* input : task->leases) {
    // What waits behind the first has not begun.
    int64_t begun = one_at_a_time ? std::max(task->head_nanos, input->leased_nanos) : input->leased_nanos;
    if (begun + limit <= now) {
      late.push_back(input);
    } else {
      earliest = std::min(earliest, begun + limit);
    }
    if (one_at_a_time) break;
  }
  if (!late.empty()) {
    std::string text = Named(*task->function, "an input ran for longer than its timeout of " +
                                                  std::to_string(task->function->info.timeout_secs) + " s");
    task->killed_for_timeout = true;
    for (Input* input : late) {
      OutputView output;
      output.status = static_cast<int32_t>(ResultStatus::kTimeout);
      output.text = text;
      output.task_id = task->id;
      AttemptFailed(input, std::move(output));
    }
    LogRecord record;
    record.file_descriptor = 3;
    record.unix_nanos = clock_.UnixNanos();
    record.task_id = task->id;
    record.function_id = task->function->info.function_id;
    record.root_function_id = task->function->info.root_id();
    record.data = text + "; its container was stopped\n";
    options_.logs->Append(task->function->info.app_id, {record});
    return SendStop(task, StopTask::KILL, 0, "an input ran into its timeout");
  }
  if (earliest != INT64_MAX && !task->deadline) {
    task->deadline = strand_.PostAfter(std::chrono::nanoseconds(earliest - now), [this, id = task->id] {
      TaskState* later = FindTask(id);
      if (later == nullptr) return;
      later->deadline.reset();
      CheckDeadlines(later);
    });
  }
}

// While leases wait behind the first one.
void EngineCore::ArmRecall(TaskState* task) {
  if (task->recall || task->leases.size() <= Slots(task->function->info) || Batched(*task->function)) return;
  double patience = std::max(kRecallMillis, kRecallTimes * task->function->run_ms);
  int64_t due = std::max(task->head_nanos + Nanos(patience), NowNanos() + 1'000'000);
  task->recall = strand_.PostAfter(std::chrono::nanoseconds(due - NowNanos()), [this, id = task->id] {
    TaskState* later = FindTask(id);
    if (later == nullptr) return;
    later->recall.reset();
    Recall(later);
  });
}

void EngineCore::Recall(TaskState* task) {
  size_t slots = Slots(task->function->info);
  if (task->leases.size() <= slots) return;
  double patience = std::max(kRecallMillis, kRecallTimes * task->function->run_ms);
  if (task->head_nanos + Nanos(patience) > NowNanos()) return ArmRecall(task);
  ToWorker message;
  message.mutable_recall()->set_task_id(task->id);
  size_t at = 0;
  for (Input* input : task->leases) {
    if (at++ < slots) continue;
    input->recalled = true;
    message.mutable_recall()->add_input_ids(input->id);
  }
  registry_.Send(task->worker_id, message);  // what it gives back is queued again
}

// Nobody waits for an acknowledgement: the worker has answered its container and frees some memory. So it
// goes with the next leases, or a little later.
void EngineCore::Ack(const std::string& worker_id, const LeaseRef& ref) {
  Outbox& out = outbox_[worker_id];
  *out.acks.add_acks() = ref;
  if (out.acks.acks_size() >= kMostAcks) return FlushAcks(worker_id, out);
  if (!std::exchange(acks_timer_, true)) ArmAcks();
}

// What came after a worker's last leases waits for a whole turn of the timer: with leases coming it sends
// nothing.
void EngineCore::ArmAcks() {
  strand_.PostAfter(kAckWait, [this] {
    bool waiting = false;
    for (auto& [worker_id, out] : outbox_) {
      if (!std::exchange(out.flushed, false)) {
        FlushAcks(worker_id, out);
      } else {
        waiting |= out.acks.acks_size() > 0;
      }
    }
    acks_timer_ = waiting;
    if (waiting) ArmAcks();
  });
}

void EngineCore::FlushAcks(const std::string& worker_id, Outbox& out) {
  if (out.acks.acks_size() == 0) return;
  ToWorker message;
  message.mutable_output_acks()->Swap(&out.acks);
  registry_.Send(worker_id, message);
  out.acks.Clear();
}

// What belongs to one turn of the strand is one transaction.
void EngineCore::Write(Journal::Record record) {
  if (written_) {
    written_->push_back(std::move(record));
  } else {
    journal_->Append(std::move(record), strand_.Quiet());
  }
}

void EngineCore::PostFlush() {
  if (flush_posted_) return;
  flush_posted_ = true;
  strand_.Run([this] { FlushOutbox(); });
}

// Once for all that this turn of the strand has brought, unless a caller waits behind it.
void EngineCore::FlushOutbox() {
  flush_posted_ = false;
  for (auto& [worker_id, out] : outbox_) {
    if (out.leases.empty()) continue;
    out.leases.front().mutable_acks()->Swap(out.acks.mutable_acks());
    for (Leases& leases : out.leases) {
      ToWorker message;
      message.mutable_leases()->Swap(&leases);
      registry_.Send(worker_id, message);  // a broken connection: the next hello says which of them it has
    }
    out = {};
    out.flushed = true;
  }
}

void EngineCore::TakeOutputs(const std::string& worker_id, Outputs& outputs) {
  written_.emplace();
  for (Output& output : *outputs.mutable_outputs()) TakeOutput(worker_id, output);
  std::vector<Journal::Record> records = std::move(*written_);
  written_.reset();
  journal_->Append(std::move(records), strand_.Quiet());
}

// Only what comes from the holder counts: the same task, attempt and epoch. Everything is acknowledged once
// it is settled.
void EngineCore::TakeOutput(const std::string& worker_id, Output& output) {
  LeaseRef ref;
  ref.set_input_id(output.input_id());
  ref.set_attempt(output.attempt());
  ref.set_epoch(output.epoch());
  ref.set_task_id(output.task_id());
  auto it = inputs_.find(output.input_id());
  Input* input = it == inputs_.end() ? Claim(output.input_id()) : it->second;
  bool holds = input != nullptr && input->state == Input::State::kLeased &&
               input->task->id == output.task_id() && input->attempt == output.attempt() &&
               input->epoch == output.epoch();
  // Given up by us a moment ago (a worker's restart), not begun anew anywhere: the work is done, so it
  // counts.
  bool still_open =
      input != nullptr && input->state == Input::State::kQueued && input->attempt == output.attempt();
  if (!holds && !still_open) {
    if (input != nullptr && input->state == Input::State::kFinishing && input->attempt == output.attempt()) {
      // A repeat: it is acknowledged when the first is in the journal, and what is appended now comes after
      // it.
      Journal::Record record;
      record.must = true;
      record.apply = [](store::Session&) { return Status(); };
      record.done = [this, worker_id, ref](Status) { Ack(worker_id, ref); };
      return Write(std::move(record));
    }
    return Ack(worker_id, ref);
  }
  OutputView view;
  view.status = output.status();
  view.data_format = output.data_format();
  view.result = std::make_shared<const std::string>(std::move(*output.mutable_result()));
  view.task_id = output.task_id();
  view.started_at = output.started_at();
  view.created_at = output.created_at();
  FunctionState* function = input->call->function;
  if (holds) {
    TaskState* task = input->task;
    task->given_back = 0;
    double took = static_cast<double>(NowNanos() - std::max(task->head_nanos, input->leased_nanos)) / 1e6;
    // The container's own word keeps out what the way took, and what a first input waited for.
    if (view.started_at > 0 && view.created_at >= view.started_at)
      took = std::min(took, (view.created_at - view.started_at) * 1e3 + kOverheadMillis);
    if (task->leases.front() == input || Slots(function->info) > 1) {
      function->run_ms =
          function->run_ms == 0 ? took : function->run_ms * (1 - kAverageShare) + took * kAverageShare;
    }
  }
  auto committed = [this, worker_id, ref] { Ack(worker_id, ref); };
  auto status = static_cast<ResultStatus>(view.status);
  if (status == ResultStatus::kSuccess || status == ResultStatus::kTerminated) {
    Finish(input, std::move(view), committed);
  } else {
    AttemptFailed(input, std::move(view), committed);
  }
  Dispatch(function);
}

}  // namespace lydian::control
