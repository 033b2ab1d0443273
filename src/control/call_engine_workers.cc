#include <algorithm>

#include "control/call_engine_core.h"

namespace lydian::control {
namespace {
constexpr uint32_t kStopGraceMs = 10'000;
constexpr Millis kFirstHoldOff{5}, kLongestHoldOff{2'000};
}  // namespace

// What the worker runs and holds is the truth: it is taken up. What we thought it held comes back into the
// queue.
void EngineCore::OnWorkerHello(const std::string& worker_id, const Holdings& held, ForgetTasks* forget) {
  outbox_[worker_id] = {};
  std::set<std::string> named;
  for (const RunningTask& running : held.tasks()) {
    named.insert(running.task_id());
    TaskState* task = FindTask(running.task_id());
    if (task == nullptr || task->worker_id != worker_id) {
      forget->add_task_ids(running.task_id());
      continue;
    }
    Adopt(task, running);
  }
  std::vector<std::string> missing;
  for (auto& [id, task] : tasks_) {
    if (task->worker_id == worker_id && task->state != TaskState::State::kMaking && !named.contains(id))
      missing.push_back(id);
  }
  for (const std::string& id : missing) {
    FindTask(id)->missing = true;
    // How it ended may be on the way behind the hello; without a word it was lost with the worker.
    strand_.PostAfter(options_.missing_grace, [this, id] {
      TaskState* late = FindTask(id);
      if (late != nullptr && late->missing) LoseTask(late, "its worker was restarted");
    });
  }
}

void EngineCore::Adopt(TaskState* task, const RunningTask& running) {
  task->missing = false;
  task->closed |= running.stopping();
  if (!running.container_id().empty()) task->row.container_id = running.container_id();
  std::set<Input*> held;
  for (const LeaseRef& ref : running.held()) {
    if (task->process_ended) break;  // settled; an output among them counts as long as nobody begins anew
    auto it = inputs_.find(ref.input_id());
    Input* input = it == inputs_.end() ? Claim(ref.input_id()) : it->second;
    if (input == nullptr || input->attempt != ref.attempt())
      continue;  // settled; its output will be acknowledged and dropped
    if (input->state == Input::State::kLeased && input->task == task) {
      held.insert(input);
      continue;
    }
    if (input->state != Input::State::kQueued) continue;
    TakeFromQueue(input);
    input->state = Input::State::kLeased;
    input->task = task;
    input->epoch = ref.epoch();
    input->leased_nanos = NowNanos();
    input->batch = 0;
    input->lease_at = task->leases.insert(task->leases.end(), input);
    ++task->function->leased;
    task->used = true;
    held.insert(input);
    if (input->cancelled) {
      ToWorker message;
      message.mutable_cancel()->set_task_id(task->id);
      message.mutable_cancel()->add_input_ids(input->id);
      strand_.Post([this, worker_id = task->worker_id, message] { registry_.Send(worker_id, message); });
    }
  }
  std::vector<Input*> dropped;
  for (Input* input : task->leases) {
    if (!held.contains(input)) dropped.push_back(input);
  }
  for (size_t i = dropped.size(); i-- > 0;) Requeue(dropped[i]);
  if (!held.empty() && task->state == TaskState::State::kStarting) Ready(task);
  HeadChanged(task);
  ArmDeadline(task);
}

void EngineCore::OnWorkerReady(const std::string& worker_id) {
  std::vector<TaskState*> stopped;
  for (auto& [id, task] : tasks_) {
    if (task->worker_id != worker_id || task->state == TaskState::State::kMaking) continue;
    // From where its logs go on: what is stored already isn't sent again.
    options_.logs->TaskOffsets(
        id, [this, id = id, worker_id](uint64_t stdout_offset, uint64_t stderr_offset) {
          ToWorker message;
          message.mutable_log_ack()->set_task_id(id);
          message.mutable_log_ack()->set_stdout_offset(stdout_offset);
          message.mutable_log_ack()->set_stderr_offset(stderr_offset);
          strand_.Post([this, worker_id, message] { registry_.Send(worker_id, message); });
        });
    if (!task->stop_sent && task->function->app->stopped) stopped.push_back(task.get());
    if (!task->stop_sent) continue;
    ToWorker message;
    *message.mutable_stop_task() = task->stop;
    registry_.Send(worker_id, message);
  }
  for (TaskState* task : stopped)
    SendStop(task, StopTask::GRACEFUL, kStopGraceMs, task->function->app->stop_reason);
  auto builders = std::move(waiting_builders_);
  waiting_builders_.clear();
  for (auto& [function, builder] : builders) PlaceBuilder(function, builder);
  RecoveryOver(worker_id);
  for (auto& [id, function] : functions_) Dispatch(function.get());
  PostScale();
}

void EngineCore::OnWorkerCapacity(const std::string&) { PostScale(); }

void EngineCore::OnWorkerLost(const std::string& worker_id) {
  outbox_.erase(worker_id);
  std::vector<std::string> lost;
  for (auto& [id, task] : tasks_) {
    if (task->worker_id == worker_id) lost.push_back(id);
  }
  for (const std::string& id : lost) {
    if (TaskState* task = FindTask(id)) LoseTask(task, "its worker was lost");
  }
  RecoveryOver(worker_id);
}

void EngineCore::OnWorkerMessage(const std::string& worker_id, FromWorker message) {
  switch (message.kind_case()) {
    case FromWorker::kOutputs:
      return TakeOutputs(worker_id, *message.mutable_outputs());
    case FromWorker::kTask:
      return OnTaskUpdate(worker_id, message.task());
    case FromWorker::kLog:
      return OnLogs(worker_id, *message.mutable_log());
    case FromWorker::kDemand:
      return OnDemand(message.demand());
    case FromWorker::kGiveBack:
      return OnGiveBack(message.give_back());
    default:
      return;
  }
}

void EngineCore::OnTaskUpdate(const std::string& worker_id, const TaskUpdate& update) {
  if (update.state() == TaskUpdate::EXITED || update.state() == TaskUpdate::REFUSED) {
    ToWorker known;
    known.mutable_ends_known()->add_task_ids(update.task_id());
    registry_.Send(worker_id, known);
  }
  TaskState* task = FindTask(update.task_id());
  if (task == nullptr || task->worker_id != worker_id) return;
  switch (update.state()) {
    case TaskUpdate::CREATING:
    case TaskUpdate::STARTED:
      return Started(task, update);
    case TaskUpdate::READY:
      return Ready(task);
    case TaskUpdate::INIT_FAILED:
      return InitFailed(task, update);
    case TaskUpdate::EXITED:
      return Exited(task, update);
    case TaskUpdate::REFUSED:
      return Refused(task, update);
    case TaskUpdate::CLOSED:
      return Closed(task);
    case TaskUpdate::PROCESS_ENDED:
      return ProcessEnded(task, update.exit());
    default:
      return;
  }
}

// A container that asks for inputs is ready; what it gets follows from its slots, not from what it asks for.
void EngineCore::OnDemand(const InputDemand& demand) {
  TaskState* task = FindTask(demand.task_id());
  if (task == nullptr) return;
  if (task->state == TaskState::State::kStarting) return Ready(task);
  Dispatch(task->function);
}

void EngineCore::OnGiveBack(const GiveBack& back) {
  std::set<FunctionState*> touched;
  std::set<TaskState*> unasked;
  for (int i = back.leases_size(); i-- > 0;) {
    const LeaseRef& ref = back.leases(i);
    auto it = inputs_.find(ref.input_id());
    if (it == inputs_.end()) continue;
    Input* input = it->second;
    if (input->state != Input::State::kLeased || input->attempt != ref.attempt() ||
        input->epoch != ref.epoch())
      continue;
    if (!back.task_id().empty() && input->task->id != back.task_id()) continue;
    touched.insert(input->call->function);
    TaskState* task = input->task;
    if (task->builder != nullptr && task->closed) continue;  // its container ends; that says how
    if (!input->recalled && !input->cancelled) unasked.insert(task);
    Requeue(input);
  }
  for (TaskState* task : unasked) HoldOff(task);
  for (FunctionState* function : touched) Dispatch(function);
  PostScale();
}

// A task that gives back what it is leased would get it again at once, having the most room.
void EngineCore::HoldOff(TaskState* task) {
  if (!task->alive_for_work()) return;
  const Millis wait = std::min(kLongestHoldOff, kFirstHoldOff * (1 << std::min(task->given_back++, 10u)));
  task->leases_not_before = NowNanos() + std::chrono::nanoseconds(wait).count();
  strand_.PostAfter(wait, [this, id = task->id] {
    if (TaskState* later = FindTask(id)) Dispatch(later->function);
  });
}

void EngineCore::OnLogs(const std::string& worker_id, LogBatch& batch) {
  LogAck ack;
  ack.set_task_id(batch.task_id());
  ack.set_stdout_offset(batch.stdout_offset());
  ack.set_stderr_offset(batch.stderr_offset());
  auto acknowledge = [this, worker_id, ack] {
    strand_.Post([this, worker_id, ack] {
      ToWorker message;
      *message.mutable_log_ack() = ack;
      registry_.Send(worker_id, message);
    });
  };
  TaskState* task = FindTask(batch.task_id());
  if (task == nullptr) return acknowledge();  // of a task that was given up: nobody reads it
  std::vector<LogRecord> records;
  records.reserve(static_cast<size_t>(batch.entries_size()));
  for (LogEntry& entry : *batch.mutable_entries()) {
    LogRecord record;
    record.unix_nanos = entry.unix_nanos();
    record.file_descriptor = entry.file_descriptor();
    record.task_id = task->id;
    record.function_id = task->function->info.function_id;
    record.root_function_id = task->function->info.root_id();
    record.input_id = entry.input_id();
    record.function_call_id = entry.function_call_id();
    record.container_id = task->row.container_id;
    record.data = std::move(*entry.mutable_data());
    records.push_back(std::move(record));
  }
  options_.logs->AppendFromTask(task->function->app->id, std::move(records), task->id, batch.stdout_offset(),
                                batch.stderr_offset(), std::move(acknowledge));
}

}  // namespace lydian::control
