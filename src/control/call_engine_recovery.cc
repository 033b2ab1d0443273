#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

constexpr double kKeyKeepSecs = 600;  // as long as idempotency keys are remembered

}  // namespace

EngineCore::EngineCore(EngineOptions options, Clock& clock)
    : options_(std::move(options)),
      clock_(clock),
      pool_("engine-io", 2),
      results_pool_("engine-results", 2),
      questions_pool_("engine-asked", 1),
      strand_("engine"),
      registry_(strand_, options_.worker_grace) {
  registry_.SetEvents(this);
}

EngineCore::~EngineCore() {
  pool_.Stop();
  results_pool_.Stop();
  questions_pool_.Stop();
  strand_.Stop();
  journal_.reset();
}

Status EngineCore::OpenJournal() {
  ASSIGN_OR_RETURN(journal_,
                   Journal::Open(options_.journal_path, [this](Task task) { strand_.Run(std::move(task)); }));
  RETURN_IF_ERROR(Recover());
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

struct EngineCore::Recovered {
  std::unordered_map<uint32_t, Call*> by_number;
  std::vector<uint32_t> orphans;
  std::vector<Input*> inputs;
  Call* Find(uint32_t number) const {
    auto it = by_number.find(number);
    return it == by_number.end() ? nullptr : it->second;
  }
};

void EngineCore::RecoverCalls(JournalVisitor* visitor, Recovered* found) {
  visitor->last_call = [this](uint32_t number) { next_call_ = number + 1; };
  visitor->dropping = [found](uint32_t number) { found->orphans.push_back(number); };
  visitor->call = [this, found](CallRow row) {
    const uint32_t number = row.number;
    Call* call = TakeUp(std::move(row));
    if (call == nullptr) return found->orphans.push_back(number);
    found->by_number[number] = call;
    if (!call->idempotency_key.empty()) KeepKey(call->idempotency_key, call, call->id, call->created_at);
  };
  visitor->resting = [this](CallRow row) {
    if (!row.idempotency_key.empty())
      KeepKey(KeyDigest(row.idempotency_key), nullptr, row.call_id, row.created_at);
  };
  visitor->output = [found](uint32_t number, const OutputKey& key) {
    if (Call* call = found->Find(number)) RecoverOutput(call, key);
  };
  visitor->chunk = [found](uint32_t number, const ChunkKey& key) {
    if (Call* call = found->Find(number)) RecoverChunk(call, key);
  };
  visitor->input = [this, found](InputRow row) {
    Call* call = found->Find(row.call);
    if (call == nullptr) return;
    auto input = std::make_unique<Input>();
    input->call = call;
    input->idx = row.idx;
    input->attempt = row.attempt;
    input->id = std::move(row.input_id);
    input->method = std::move(row.method);
    input->payload = std::move(row.payload);
    input->cancelled = call->cancelled;
    call->seen.Insert(row.idx);
    ++call->total;
    Hold(input.get());
    inputs_[input->id] = input.get();
    found->inputs.push_back(input.get());
    call->inputs[row.idx] = std::move(input);
  };
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

// Before the strand has anything to do.
Status EngineCore::Recover() {
  Recovered found;
  JournalVisitor visitor;
  RecoverApps(&visitor);
  RecoverCalls(&visitor, &found);
  RETURN_IF_ERROR(journal_->Load(visitor, UnixSeconds() - kKeyKeepSecs));
  if (!found.orphans.empty()) DropRows(std::move(found.orphans));
  for (Input* input : found.inputs) {  // all are known now, so that callers are found
    Unfinished(input->call, 1);
    Enqueue(input, false);
  }
  const double now = UnixSeconds();
  for (const auto& [number, call] : found.by_number) {
    if (call->unfinished > 0) continue;
    call->finished_at = std::max(call->created_at, now);
    Idle(call);
  }
  LOG_INFO("journal read",
           {{"calls", calls_.size()}, {"unfinished_inputs", inputs_.size()}, {"tasks", tasks_.size()}});
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
  for (auto& [id, function] : functions_) Dispatch(function.get());
  PostScale();
}

}  // namespace lydian::control
