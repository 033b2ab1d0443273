#include "control/call_engine_core.h"

namespace lydian::control {

EngineCore::EngineCore(EngineOptions options, Clock& clock)
    : options_(std::move(options)),
      clock_(clock),
      pool_("engine-io", 2),
      results_pool_("engine-results", 2),
      strand_("engine"),
      registry_(strand_, options_.worker_grace) {
  registry_.SetEvents(this);
}

EngineCore::~EngineCore() {
  pool_.Stop();
  results_pool_.Stop();
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

// Before the strand has anything to do.
Status EngineCore::Recover() {
  ASSIGN_OR_RETURN(JournalContents found, journal_->Load());
  for (auto& [id, state] : found.apps) {
    AppState* known = app(id);
    known->active = state == "active";
    known->stopped = state == "stopped";
    if (known->stopped) known->stop_reason = "the app was stopped";
  }
  for (FunctionInfo& info : found.functions) {
    auto state = std::make_unique<FunctionState>();
    state->app = app(info.app_id);
    state->app->functions.push_back(state.get());
    state->workspace = workspace(info.workspace_id);
    state->info = std::move(info);
    std::string id = state->info.function_id;
    functions_[id] = std::move(state);
  }
  std::unordered_map<uint32_t, Call*> by_number;
  std::vector<uint32_t> orphans;
  double now = UnixSeconds();
  for (CallRow& row : found.calls) {
    next_call_ = std::max(next_call_, row.number + 1);
    FunctionState* known = function(row.function_id);
    if (known == nullptr) {
      orphans.push_back(row.number);
      continue;
    }
    auto call = std::make_unique<Call>();
    call->number = row.number;
    call->id = row.call_id;
    call->parent_input_id = row.parent_input_id;
    call->idempotency_key = row.idempotency_key;
    call->function = known;
    call->call_type = row.call_type;
    call->invocation_type = row.invocation_type;
    call->created_at = row.created_at;
    call->cancelled = row.cancelled;
    call->committed = true;
    ++known->calls;
    if (!call->idempotency_key.empty() && now - call->created_at < 600) {
      idempotent_[call->idempotency_key] = {call.get(), call->id, true, call->created_at, {}};
    }
    by_number[row.number] = call.get();
    calls_[call->id] = std::move(call);
  }
  if (!orphans.empty()) journal_->Append(Journal::DropCalls(std::move(orphans)));
  auto mark = [](Call* call, uint32_t idx) {
    call->seen.Insert(idx);
    ++call->total;
  };
  for (OutputRow& row : found.outputs) {
    auto it = by_number.find(row.call);
    if (it == by_number.end()) continue;
    Call* call = it->second;
    mark(call, row.idx);
    call->next_seq = std::max(call->next_seq, row.seq + 1);
    call->output_bytes += row.result_bytes + row.text.size();
    call->finished_at = std::max(call->finished_at, row.created_at);
    call->outputs.push_back({row.seq, row.idx, row.input_id, row.task_id, row.status, row.data_format,
                             nullptr, row.text, row.started_at, row.created_at, row.result_bytes});
  }
  std::vector<Input*> recovered;
  for (InputRow& row : found.inputs) {
    auto it = by_number.find(row.call);
    if (it == by_number.end()) continue;
    Call* call = it->second;
    mark(call, row.idx);
    auto input = std::make_unique<Input>();
    input->call = call;
    input->idx = row.idx;
    input->attempt = row.attempt;
    input->id = row.input_id;
    input->method = row.method;
    input->payload = row.payload;
    input->cancelled = call->cancelled;
    Hold(input.get());
    inputs_[input->id] = input.get();
    recovered.push_back(input.get());
    call->inputs[row.idx] = std::move(input);
  }
  for (Input* input : recovered) {  // all are known now, so that callers are found
    Unfinished(input->call, 1);
    Enqueue(input, false);
  }
  for (ChunkRow& row : found.chunks) {
    auto it = by_number.find(row.call);
    if (it != by_number.end()) SetChunk(it->second, row.idx, row.chunk);
  }
  for (TaskRow& row : found.tasks) {
    FunctionState* known = function(row.function_id);
    if (known == nullptr || row.state == "creating") {  // may never have been sent
      row.ended = true;
      row.exit_text = "control was restarted before it began";
      row.finished_at = now;
      journal_->Append(Journal::PutTask(row));
      continue;
    }
    auto task = std::make_unique<TaskState>();
    task->id = row.task_id;
    task->function = known;
    task->worker_id = row.worker_id;
    task->state = row.state == "ready"      ? TaskState::State::kReady
                  : row.state == "starting" ? TaskState::State::kStarting
                                            : TaskState::State::kStopping;
    if (task->state == TaskState::State::kStopping) {
      task->retired = true;
      task->stop_sent = known->app->stopped ? StopTask::GRACEFUL : StopTask::DRAIN;
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
