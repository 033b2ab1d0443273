#include <algorithm>

#include "base/ids.h"
#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

// modal.client.TaskState
enum { kShownCreated = 6, kShownLoading = 3, kShownCreating = 7, kShownActive = 4, kShownCompleted = 5 };
constexpr int64_t kLongestBackoffNanos = int64_t{30} * 1'000'000'000;
constexpr uint32_t kStopGraceMs = 30'000;
constexpr double kReadyFollowsSecs = 1;

// "container killed by signal 9 (SIGKILL)", "container ended with exit code 3", "container ran out of memory:
// used ..."
std::string ExitSentence(const TaskExit& exit) {
  if (exit.oom()) return "container ran " + exit.text();
  if (exit.signal() != 0) return "container " + exit.text();
  return "container ended with " +
         (exit.text().empty() ? "exit code " + std::to_string(exit.exit_code()) : exit.text());
}

}  // namespace

AppState* EngineCore::app(const std::string& id) {
  auto& slot = apps_[id];
  if (slot == nullptr) {
    slot = std::make_unique<AppState>();
    slot->id = id;
  }
  return slot.get();
}

WorkspaceState* EngineCore::workspace(const std::string& id) {
  auto& slot = workspaces_[id];
  if (slot == nullptr) {
    slot = std::make_unique<WorkspaceState>();
    slot->number = workspaces_.size() - 1;
  }
  return slot.get();
}

FunctionState* EngineCore::function(const std::string& id) {
  auto it = functions_.find(id);
  return it == functions_.end() ? nullptr : it->second.get();
}

TaskState* EngineCore::FindTask(const std::string& id) {
  auto it = tasks_.find(id);
  return it == tasks_.end() ? nullptr : it->second.get();
}

void EngineCore::PutFunction(const FunctionInfo& info, bool replace_tasks) {
  auto& slot = functions_[info.function_id];
  if (slot == nullptr) {
    slot = std::make_unique<FunctionState>();
    slot->app = app(info.app_id);
    slot->app->functions.push_back(slot.get());
    slot->workspace = workspace(info.workspace_id);
  }
  FunctionState* function = slot.get();
  function->info = info;
  if (function->app->id != info.app_id) {
    std::erase(function->app->functions, function);
    function->app = app(info.app_id);
    function->app->functions.push_back(function);
  }
  function->start_failures = 0;
  function->not_before = 0;
  journal_->Append(Journal::PutFunction(info));
  if (replace_tasks) {
    for (TaskState* task : std::vector<TaskState*>(function->tasks)) {
      if (task->builder != nullptr) continue;
      task->retired = true;
      SendStop(task, StopTask::DRAIN, 0, "a newer definition of the function");
    }
  }
  PostScale();
}

void EngineCore::ActivateApp(const std::string& app_id) {
  AppState* state = app(app_id);
  if (state->active || state->stopped) return;
  state->active = true;
  journal_->Append(Journal::PutApp(app_id, "active"));
  for (FunctionState* function : state->functions) Dispatch(function);
  PostScale();
}

void EngineCore::StopApp(const std::string& app_id, const std::string& reason, uint32_t grace_ms,
                         std::function<void()> done) {
  AppState* state = app(app_id);
  if (done) state->stop_waiters.push_back(std::move(done));
  if (!state->stopped) {
    state->stopped = true;
    state->active = false;
    state->stop_reason = reason.empty() ? "the app was stopped" : reason;
    journal_->Append(Journal::PutApp(app_id, "stopped"));
    std::vector<Input*> delayed;
    for (auto& [id, call] : calls_) {
      if (call->function->app != state) continue;
      for (auto& [idx, input] : call->inputs) {
        if (input->state == Input::State::kDelayed) delayed.push_back(input.get());
      }
    }
    for (Input* input : delayed) FinishWithText(input, ResultStatus::kTerminated, state->stop_reason);
    for (FunctionState* function : state->functions)
      FailQueued(function, ResultStatus::kTerminated, state->stop_reason);
    std::erase_if(waiting_builders_, [&](auto& waiting) {
      if (waiting.first->app != state) return false;
      waiting.second->done({FailedPrecondition(state->stop_reason), ""});
      return true;
    });
  }
  for (FunctionState* function : state->functions) {
    for (TaskState* task : std::vector<TaskState*>(function->tasks))
      SendStop(task, StopTask::GRACEFUL, grace_ms, state->stop_reason);
  }
  CheckAppStopped(state);
}

void EngineCore::CheckAppStopped(AppState* state) {
  if (!state->stopped || state->tasks > 0) return;
  auto waiters = std::move(state->stop_waiters);
  state->stop_waiters.clear();
  for (auto& waiter : waiters) waiter();
}

void EngineCore::StopTaskById(const std::string& task_id, const std::string& reason, bool graceful,
                              std::function<void(Status)> done) {
  TaskState* task = FindTask(task_id);
  if (task == nullptr) return done(NotFound("no running task " + task_id));
  if (graceful) {  // for as long as its inputs take: nobody waits for that
    SendStop(task, StopTask::DRAIN, 0, reason);
    return done(OkStatus());
  }
  task->stop_waiters.push_back(std::move(done));
  SendStop(task, StopTask::GRACEFUL, kStopGraceMs, reason);
}

// Only ever harder than before; sent again when the worker comes back.
void EngineCore::SendStop(TaskState* task, StopTask::Mode mode, uint32_t grace_ms,
                          const std::string& reason) {
  if (task->stop_sent && *task->stop_sent >= mode) return;
  task->stop_sent = mode;
  if (task->state == TaskState::State::kMaking) return EndTask(task, "stopped before it began: " + reason);
  task->state = TaskState::State::kStopping;
  task->stop.set_task_id(task->id);
  task->stop.set_mode(mode);
  task->stop.set_grace_ms(grace_ms);
  task->stop.set_reason(reason);
  task->row.state = "stopping";
  task->row.stop_mode = mode;
  SaveTask(task);
  LOG_INFO("stopping a task",
           {{"task_id", task->id}, {"mode", StopTask::Mode_Name(mode)}, {"reason", reason}});
  ToWorker message;
  *message.mutable_stop_task() = task->stop;
  registry_.Send(task->worker_id, message);
  PostScale();
}

void EngineCore::StartTask(FunctionState* function, const std::string& worker_id,
                           std::shared_ptr<Builder> builder) {
  auto owned = std::make_unique<TaskState>();
  TaskState* task = owned.get();
  task->id = NewTaskId();
  task->function = function;
  task->worker_id = worker_id;
  task->builder = std::move(builder);
  task->idle_since = task->begun_nanos = NowNanos();
  task->row.task_id = task->id;
  task->row.function_id = function->info.function_id;
  task->row.function_name = function->info.name;
  task->row.app_id = function->app->id;
  task->row.worker_id = worker_id;
  task->row.workspace_id = function->info.workspace_id;
  task->row.environment = function->info.environment;
  task->row.state = "creating";
  task->row.enqueued_at = UnixSeconds();
  task->row.builder = task->builder != nullptr;
  function->tasks.push_back(task);
  ++function->app->tasks;
  tasks_[task->id] = std::move(owned);
  LogTaskState(*task, kShownCreated);
  pool_.Post([this, id = task->id, function_id = function->info.function_id, source = spec_source_] {
    Result<TaskSpec> made = source == nullptr ? Result<TaskSpec>(Unavailable("no source of task specs"))
                                              : source->MakeTaskSpec(function_id);
    auto spec = std::make_shared<Result<TaskSpec>>(std::move(made));
    strand_.Post([this, id, spec] { SpecMade(id, std::move(*spec)); });
  });
}

void EngineCore::SpecMade(const std::string& task_id, Result<TaskSpec> spec) {
  TaskState* task = FindTask(task_id);
  if (task == nullptr) return;  // stopped meanwhile
  FunctionState* function = task->function;
  if (!spec.ok()) {
    Code code = spec.status().code();
    bool permanent = code != Code::kUnavailable && code != Code::kResourceExhausted &&
                     code != Code::kInternal && code != Code::kUnknown;
    std::string text = "its container can't be started: " + spec.status().message();
    if (task->builder != nullptr) BuilderEnded(task, nullptr, Named(*function, text));
    EndTask(task, text);
    // As when a worker refuses for now: what it waits for (an image that is built again) comes some day.
    if (code == Code::kUnavailable)
      function->start_failures = std::min(function->start_failures, options_.start_failures - 2);
    return StartFailed(function, text, permanent);
  }
  task->row.restricted = spec->restrict_modal_access();
  task->row.state = "starting";  // from here on a worker may have it
  SetIdentity(*task);
  SaveTask(task);
  ToWorker message;
  TaskSpec* out = message.mutable_start_task();
  *out = std::move(spec).value();
  out->set_task_id(task->id);
  out->set_function_id(function->info.function_id);
  out->set_slots(std::max(function->info.slots, 1u));
  out->set_batch_max_size(function->info.batch_max_size);
  out->set_batch_linger_ms(function->info.batch_linger_ms);
  out->set_timeout_secs(function->info.timeout_secs);
  out->set_startup_timeout_secs(function->info.startup_timeout_secs);
  if (task->builder != nullptr) {
    out->set_commit_layer(true);
    out->set_single_use(true);
  }
  task->state = TaskState::State::kStarting;
  LOG_INFO("starting a task",
           {{"task_id", task->id}, {"function", function->info.name}, {"worker_id", task->worker_id}});
  if (!registry_.Send(task->worker_id, message)) LoseTask(task, "its worker is not connected");
}

void EngineCore::Started(TaskState* task, const TaskUpdate& update) {
  task->row.container_id = update.container_id();
  task->row.pid = update.pid();
  if (!update.ip().empty()) task->row.ip = update.ip();
  if (update.state() == TaskUpdate::CREATING) return LogTaskState(*task, kShownLoading);
  if (task->row.started_at == 0) {
    task->row.started_at = update.at() > 0 ? update.at() : UnixSeconds();
    SaveTask(task);
    LogTaskState(*task, kShownCreating);
  }
  ArmStartup(task);
}

// At each STARTED, since a control that was restarted hears it again, from when the container started. That
// it is ready may come right behind.
void EngineCore::ArmStartup(TaskState* task) {
  uint32_t limit = task->function->info.startup_timeout_secs;
  if (limit == 0 || task->startup || task->state != TaskState::State::kStarting) return;
  double left =
      std::clamp(task->row.started_at + limit - UnixSeconds(), kReadyFollowsSecs, static_cast<double>(limit));
  auto wait = Millis(static_cast<int64_t>(left * 1e3));
  task->startup = strand_.PostAfter(wait, [this, id = task->id, limit] {
    TaskState* late = FindTask(id);
    if (late == nullptr) return;
    late->startup.reset();
    if (late->state != TaskState::State::kStarting) return;
    std::string text =
        "its container was not ready within its startup timeout of " + std::to_string(limit) + " s";
    if (late->builder == nullptr) StartFailed(late->function, text, false);
    SendStop(late, StopTask::KILL, 0, text);
  });
}

void EngineCore::Ready(TaskState* task) {
  if (task->state != TaskState::State::kStarting) return;
  task->state = TaskState::State::kReady;
  task->idle_since = NowNanos();
  if (task->startup) strand_.CancelTimer(*task->startup);
  task->startup.reset();
  task->function->start_failures = 0;
  task->function->not_before = 0;
  if (task->begun_nanos != 0) {
    double took = static_cast<double>(NowNanos() - task->begun_nanos) / 1e6;
    LOG_INFO("task is ready", {{"task_id", task->id}, {"after_ms", static_cast<int64_t>(took)}});
    for (double* average : {&task->function->start_ms, &start_ms_})
      *average = *average == 0 ? took : *average * 0.7 + took * 0.3;
  }
  task->row.state = "ready";
  SaveTask(task);
  LogTaskState(*task, kShownActive);
  if (task->builder != nullptr) {
    if (!task->used) Lease(task, task->builder->call->inputs.begin()->second.get(), 0);
    return;
  }
  Dispatch(task->function);
  PostScale();
}

// The user's module or its @enter failed. It would fail again: what waits gets this result.
void EngineCore::InitFailed(TaskState* task, const TaskUpdate& update) {
  FunctionState* function = task->function;
  task->retired = true;
  task->row.state = "init failed";
  if (task->builder != nullptr) return BuilderEnded(task, &update, "");
  ++function->start_failures;
  function->not_before =
      NowNanos() +
      std::min<int64_t>(kLongestBackoffNanos, std::chrono::nanoseconds(options_.start_backoff).count()
                                                  << std::min(function->start_failures, 16u));
  bool works = std::any_of(function->tasks.begin(), function->tasks.end(), [](const TaskState* other) {
    return other->state == TaskState::State::kReady && other->alive_for_work();
  });
  if (works) {
    LOG_WARN("a container failed to initialise while others work", {{"task_id", task->id}});
  } else {
    auto result = update.result().empty() ? nullptr : std::make_shared<const std::string>(update.result());
    FailQueued(function, ResultStatus::kInitFailure, Named(*function, "its container failed to initialise"),
               result);
  }
  PostScale();
}

void EngineCore::StartFailed(FunctionState* function, const std::string& text, bool permanent) {
  ++function->start_failures;
  function->last_start_error = text;
  LOG_WARN("a container did not come up",
           {{"function", function->info.name}, {"failures", function->start_failures}, {"text", text}});
  int64_t backoff = std::chrono::nanoseconds(options_.start_backoff).count()
                    << std::min(function->start_failures - 1, 16u);
  function->not_before = NowNanos() + std::min(backoff, kLongestBackoffNanos);
  if (permanent || function->start_failures >= options_.start_failures) {
    FailQueued(function, ResultStatus::kFailure, Named(*function, text));
  }
  PostScale();
}

void EngineCore::Refused(TaskState* task, const TaskUpdate& update) {
  FunctionState* function = task->function;
  bool retryable = update.retryable();
  std::string text = "its container can't be started: " + update.error();
  if (task->builder != nullptr) BuilderEnded(task, nullptr, Named(*function, text));
  TaskExit none;  // a sound worker holds nothing for a task that it refuses
  none.set_lost(true);
  none.set_text(text);
  SettleLeases(task, none);
  if (task->stop_sent) return EndTask(task, text);  // as it was told: nobody's trouble
  LogRecord record;
  record.file_descriptor = 3;
  record.unix_nanos = clock_.UnixNanos();
  record.task_id = task->id;
  record.function_id = function->info.function_id;
  record.root_function_id = function->info.root_id();
  record.data = Named(*function, text) + (retryable ? "; trying again\n" : "\n");
  options_.logs->Append(function->app->id, {record});
  EndTask(task, text);
  // A machine without room gets it back some day: inputs wait for that, with the reason in the app's log.
  if (retryable) function->start_failures = std::min(function->start_failures, options_.start_failures - 2);
  StartFailed(function, text, !retryable);
}

// A stopped container's own word: it isn't asked again, and others get what waits.
void EngineCore::Closed(TaskState* task) {
  if (std::exchange(task->closed, true)) return;
  Dispatch(task->function);
  PostScale();
}

// Its inputs don't wait for its logs. A builder's outcome comes with EXITED, and so with its layer.
void EngineCore::ProcessEnded(TaskState* task, const TaskExit& exit) {
  if (std::exchange(task->process_ended, true)) return;
  task->closed = true;
  if (task->startup) strand_.CancelTimer(*task->startup);
  task->startup.reset();
  if (task->builder != nullptr) return;
  FunctionState* function = task->function;
  bool was_ready = task->state != TaskState::State::kStarting && task->state != TaskState::State::kMaking;
  bool ours = task->stop_sent.has_value() || exit.stopped_by_us();
  SettleLeases(task, exit);
  if (!was_ready && !exit.lost() && !ours && !task->retired)
    StartFailed(function, ExitSentence(exit) + " before it was ready", false);
  Dispatch(function);
  PostScale();
}

void EngineCore::Exited(TaskState* task, const TaskUpdate& update) {
  FunctionState* function = task->function;
  const TaskExit& exit = update.exit();
  ProcessEnded(task, exit);
  if (task->builder != nullptr) {
    SettleLeases(task, exit);
    const bool was_ready = task->state != TaskState::State::kStarting;
    BuilderEnded(task, &update,
                 Named(*function, ExitSentence(exit) + (was_ready ? "" : " before it was ready")));
  }
  EndTask(task, exit.text());
  Dispatch(function);
}

// What an ended container held: a crash counts as an attempt of what it worked on; anything else doesn't.
void EngineCore::SettleLeases(TaskState* task, const TaskExit& exit) {
  std::vector<Input*> held(task->leases.begin(), task->leases.end());
  bool crashed = !exit.lost() && !exit.stopped_by_us() && !task->stop_sent;
  bool batched = task->function->info.batch_max_size > 1;
  size_t in_work = batched ? held.size() : std::max<size_t>(task->function->info.slots, 1);
  for (size_t i = held.size(); i-- > 0;) {  // from behind, so that the queue keeps their order
    Input* input = held[i];
    if (input->cancelled) {
      FinishWithText(input, ResultStatus::kTerminated, "the call was cancelled");
    } else if (task->builder != nullptr) {
      FinishWithText(input, exit.lost() ? ResultStatus::kInternalFailure : ResultStatus::kFailure,
                     Named(*task->function, ExitSentence(exit)));
    } else if (crashed && i < in_work) {
      OutputView output;
      output.status = static_cast<int32_t>(ResultStatus::kFailure);
      output.text = Named(*task->function, ExitSentence(exit));
      output.task_id = task->id;
      AttemptFailed(input, std::move(output));
    } else {
      Requeue(input);
    }
  }
}

void EngineCore::EndTask(TaskState* task, const std::string& exit_text) {
  FunctionState* function = task->function;
  if (task->builder != nullptr)
    BuilderEnded(task, nullptr, Named(*function, exit_text));  // unless it was told already
  for (auto* timer : {&task->deadline, &task->recall, &task->startup}) {
    if (*timer) strand_.CancelTimer(**timer);
  }
  task->row.ended = true;
  task->row.state = "ended";
  task->row.exit_text = exit_text;
  task->row.finished_at = UnixSeconds();
  SaveTask(task);
  LOG_INFO("task ended", {{"task_id", task->id}, {"function", function->info.name}, {"exit", exit_text}});
  {
    std::lock_guard lock(identities_mutex_);
    identities_.erase(task->id);
  }
  std::erase(function->tasks, task);
  // Its logs were appended before this: when this is stored, they are.
  LogTaskState(*task, kShownCompleted,
               [this, app_id = function->app->id, waiters = std::move(task->stop_waiters)]() mutable {
                 strand_.Post([this, app_id, waiters = std::move(waiters)]() mutable {
                   TaskLogged(app_id, std::move(waiters));
                 });
               });
  tasks_.erase(task->id);
  PostScale();
}

void EngineCore::TaskLogged(const std::string& app_id, std::vector<std::function<void(Status)>> waiters) {
  for (auto& waiter : waiters) waiter({});
  AppState* state = app(app_id);
  --state->tasks;
  CheckAppStopped(state);
}

void EngineCore::LoseTask(TaskState* task, const std::string& why) {
  FunctionState* function = task->function;
  LOG_WARN("a task was lost", {{"task_id", task->id}, {"why", why}});
  TaskExit exit;
  exit.set_lost(true);
  exit.set_text(why);
  SettleLeases(task, exit);
  if (task->builder != nullptr) {
    TaskUpdate update;
    *update.mutable_exit() = exit;
    BuilderEnded(task, &update, Named(*function, why));
  }
  EndTask(task, why);
  Dispatch(function);
}

void EngineCore::LogTaskState(const TaskState& task, int state, std::function<void()> stored) {
  LogRecord record;
  record.file_descriptor = 0;
  record.task_state = state;
  record.unix_nanos = clock_.UnixNanos();
  record.task_id = task.id;
  record.function_id = task.function->info.function_id;
  record.root_function_id = task.function->info.root_id();
  record.container_id = task.row.container_id;
  options_.logs->Append(task.function->app->id, {std::move(record)}, std::move(stored));
}

void EngineCore::SaveTask(TaskState* task) { journal_->Append(Journal::PutTask(task->row)); }

void EngineCore::SetIdentity(const TaskState& task) {
  std::lock_guard lock(identities_mutex_);
  identities_[task.id] = {task.row.workspace_id, task.row.environment, task.row.app_id, task.row.function_id,
                          task.row.restricted};
}

std::optional<TaskIdentity> EngineCore::IdentityOfTask(const std::string& task_id) const {
  std::lock_guard lock(identities_mutex_);
  auto it = identities_.find(task_id);
  if (it == identities_.end()) return std::nullopt;
  return it->second;
}

TaskView EngineCore::ViewOf(const TaskRow& row) {
  TaskView view;
  view.task_id = row.task_id;
  view.app_id = row.app_id;
  view.function_id = row.function_id;
  view.function_name = row.function_name;
  view.container_id = row.container_id;
  view.worker_id = row.worker_id;
  view.state = row.state;
  view.ip = row.ip;
  view.pid = row.pid;
  view.enqueued_at = row.enqueued_at;
  view.started_at = row.started_at;
  view.finished_at = row.finished_at;
  return view;
}

std::vector<TaskView> EngineCore::TaskViews() const {
  std::vector<TaskView> out;
  for (const auto& [id, task] : tasks_) out.push_back(ViewOf(task->row));
  std::sort(out.begin(), out.end(),
            [](const TaskView& a, const TaskView& b) { return a.enqueued_at < b.enqueued_at; });
  return out;
}

std::optional<TaskView> EngineCore::FindTaskView(const std::string& task_id) const {
  auto it = tasks_.find(task_id);
  if (it == tasks_.end()) return std::nullopt;
  return ViewOf(it->second->row);
}

}  // namespace lydian::control
