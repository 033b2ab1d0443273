#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"
#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

constexpr double kKeyKeepSecs = 600;  // as long as idempotency keys are remembered

std::string ThisBoot() {
  auto id = ReadFile("/proc/sys/kernel/random/boot_id");
  if (!id.ok()) {
    LOG_WARN("this boot of the machine has no id: maps get their results again after a restart of control",
             {{"error", id.status()}});
    return RandomHex(8);
  }
  return id->substr(0, 8);
}

}  // namespace

EngineCore::EngineCore(EngineOptions options, Clock& clock)
    : options_(std::move(options)),
      incarnation_(options_.incarnation.empty() ? ThisBoot() : options_.incarnation),
      clock_(clock),
      ages_(clock, options_.journal_path + "-clock"),
      pool_("engine-io", 2),
      results_pool_("engine-results", 2),
      inputs_pool_("engine-inputs", 1),
      questions_pool_("engine-asked", 1),
      strand_("engine"),
      registry_(strand_, options_.worker_grace) {
  registry_.SetEvents(this);
}

EngineCore::~EngineCore() {
  pool_.Stop();
  results_pool_.Stop();
  inputs_pool_.Stop();
  questions_pool_.Stop();
  strand_.Stop();
  journal_.reset();
}

Status EngineCore::OpenJournal() {
  ASSIGN_OR_RETURN(journal_,
                   Journal::Open(options_.journal_path, [this](Task task) { strand_.Run(std::move(task)); }));
  std::promise<Status> recovered;
  strand_.Post([&] { recovered.set_value(Recover()); });
  RETURN_IF_ERROR(recovered.get_future().get());
  strand_.Post([this] { Housekeeping(); });
  return {};
}

void EngineCore::RecoverApps(JournalVisitor* visitor) {
  visitor->app = [this](const std::string& id, const std::string& state) {
    AppState* known = app(id);
    known->active = state == "active";
    known->stopped = state == "stopped";
    if (known->stopped) known->stop_reason = "the app was stopped";
  };
  visitor->function = [this](FunctionInfo info) {
    auto state = std::make_unique<FunctionState>();
    state->app = app(info.app_id);
    state->app->functions.push_back(state.get());
    state->workspace = workspace(info.workspace_id);
    state->info = std::move(info);
    std::string id = state->info.function_id;
    functions_[id] = std::move(state);
  };
  visitor->task = [this](TaskRow row) { RecoverTask(std::move(row)); };
}

void EngineCore::RecoverCalls(JournalVisitor* visitor, std::vector<uint32_t>* orphans) {
  visitor->last_call = [this](uint32_t number) { next_call_ = number + 1; };
  visitor->dropping = [orphans](uint32_t number) { orphans->push_back(number); };
  auto damaged = std::make_shared<std::set<std::string>>();  // functions that can't be read
  visitor->damaged_function = [damaged](const std::string& id) { damaged->insert(id); };
  visitor->call = [this, orphans, damaged](StoredCall stored) {
    // They stay where they are: once the function has been told again, the next start takes them up.
    if (!damaged->contains(stored.row.function_id)) RecoverCall(std::move(stored), orphans);
  };
  visitor->resting = [this](CallRow row) {
    if (!row.idempotency_key.empty())
      KeepKey(KeyDigest(row.idempotency_key), nullptr, row.call_id, row.created_at);
  };
}

// Its inputs wait in the journal, until the workers have told which of them their containers hold.
void EngineCore::RecoverCall(StoredCall stored, std::vector<uint32_t>* orphans) {
  const uint32_t number = stored.row.number;
  const std::vector<InputKey> inputs = stored.inputs;
  Call* call = TakeUp(std::move(stored));
  if (call == nullptr) return orphans->push_back(number);
  if (!call->idempotency_key.empty()) KeepKey(call->idempotency_key, call, call->id, call->created_at);
  call->resting = false;
  call->unfinished = call->stored = 0;
  for (const InputKey& key : inputs) {
    for (Held* held : {&held_, &call->function->workspace->held, &call->function->held}) held->Add(key.bytes);
    Unfinished(call, 1);
    CountStored(call, key);
    if (!recovering_.empty()) unclaimed_[std::hash<std::string>()(InputId(call->id, key.idx))] = key;
  }
  if (inputs.empty()) call->finished_at = std::max(call->created_at, UnixSeconds());
  Idle(call);
}

void EngineCore::RecoverTask(TaskRow row) {
  FunctionState* known = function(row.function_id);
  if (known == nullptr || row.state == "creating") {  // may never have been sent
    row.ended = true;
    row.exit_text = "control was restarted before it began";
    row.finished_at = UnixSeconds();
    return journal_->Append(Journal::PutTask(std::move(row)));
  }
  auto task = std::make_unique<TaskState>();
  task->id = row.task_id;
  task->function = known;
  task->worker_id = row.worker_id;
  task->state = row.builder               ? TaskState::State::kStopping  // who wanted its layer asks again
                : row.state == "ready"    ? TaskState::State::kReady
                : row.state == "starting" ? TaskState::State::kStarting
                                          : TaskState::State::kStopping;
  if (task->state == TaskState::State::kStopping) {
    task->retired = true;
    task->stop_sent = row.builder ? StopTask::KILL : row.stop_mode.value_or(StopTask::DRAIN);
    if (known->app->stopped) task->stop_sent = std::max(*task->stop_sent, StopTask::GRACEFUL);
    task->stop.set_task_id(task->id);
    task->stop.set_mode(*task->stop_sent);
    task->stop.set_grace_ms(10'000);
    task->stop.set_reason("it was being stopped when control was restarted");
  }
  task->row = std::move(row);
  task->idle_since = NowNanos();
  known->tasks.push_back(task.get());
  ++known->app->tasks;
  recovering_.insert(task->worker_id);
  SetIdentity(*task);
  tasks_[task->id] = std::move(task);
}

Status EngineCore::Recover() {
  JournalVisitor visitor;
  std::vector<uint32_t> orphans;
  RecoverApps(&visitor);
  RecoverCalls(&visitor, &orphans);
  RETURN_IF_ERROR(journal_->Load(visitor, UnixSeconds() - kKeyKeepSecs));
  if (!orphans.empty()) DropRows(std::move(orphans));
  LOG_INFO("journal read",
           {{"calls", calls_.size()}, {"unfinished_inputs", waiting_inputs_}, {"tasks", tasks_.size()}});
  // Those who were cancelled or whose app has stopped end now, unless a container still holds them (it will
  // say).
  strand_.PostAfter(options_.worker_grace, [this] {
    std::set<std::string> silent = recovering_;
    for (const std::string& worker_id : silent) {
      if (registry_.Find(worker_id) == nullptr) OnWorkerLost(worker_id);
    }
  });
  if (recovering_.empty()) {
    strand_.Post([this] {
      recovering_.insert("");
      RecoveryOver("");
    });
  }
  return {};
}

// A worker has told what it holds (or is lost): once all have, what is left in the queues is nobody's.
void EngineCore::RecoveryOver(const std::string& worker_id) {
  if (recovering_.erase(worker_id) == 0 || !recovering_.empty()) return;
  std::vector<Input*> ended;
  for (auto& [id, function] : functions_) {
    for (Input* input : function->queue) {
      if (input->cancelled || function->app->stopped) ended.push_back(input);
    }
  }
  for (Input* input : ended) {
    FinishWithText(input, ResultStatus::kTerminated,
                   input->cancelled ? "the call was cancelled" : input->call->function->app->stop_reason);
  }
  std::vector<Call*> cancelled;
  for (const auto& [id, call] : calls_) {
    if (call->cancelled) cancelled.push_back(call.get());
  }
  for (Call* call : cancelled) EndStored(call, 0);
  for (auto& [id, function] : functions_) {
    if (function->app->stopped)
      FailQueued(function.get(), ResultStatus::kTerminated, function->app->stop_reason);
    Refill(function.get());
    Dispatch(function.get());
  }
  EndClaims();
  PostScale();
}

}  // namespace lydian::control
