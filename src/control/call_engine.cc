#include "control/call_engine.h"

#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

// Runs `drop` when the last copy goes.
std::shared_ptr<void> Handle(std::function<void()> drop) {
  return std::shared_ptr<void>(nullptr, [drop = std::move(drop)](void*) { drop(); });
}

}  // namespace

Result<std::unique_ptr<CallEngine>> CallEngine::Open(EngineOptions options, Clock& clock) {
  auto core = std::make_unique<EngineCore>(std::move(options), clock);
  RETURN_IF_ERROR(core->OpenJournal());
  return std::unique_ptr<CallEngine>(new CallEngine(std::move(core)));
}

CallEngine::CallEngine(std::unique_ptr<EngineCore> core) : core_(std::move(core)) {}
CallEngine::~CallEngine() = default;

void CallEngine::SetWorkspaceCount(std::function<size_t()> count) {
  core_->strand().Post([core = core_.get(), count = std::move(count)]() mutable {
    core->SetWorkspaceCount(std::move(count));
  });
}

void CallEngine::SetTaskSpecSource(TaskSpecSource* source) {
  core_->strand().Post([core = core_.get(), source] { core->SetTaskSpecSource(source); });
}

Result<std::set<std::string>> CallEngine::BlobsInUse(const std::vector<std::string>& blob_ids) {
  return core_->journal().BlobsInUse(blob_ids);
}

WorkerRegistry& CallEngine::registry() { return core_->registry(); }
std::optional<TaskIdentity> CallEngine::IdentityOfTask(const std::string& task_id) const {
  return core_->IdentityOfTask(task_id);
}

void CallEngine::CreateCall(NewCall call, std::function<void(Result<CreatedCall>)> reply) {
  auto shared = std::make_shared<NewCall>(std::move(call));
  core_->strand().Run([core = core_.get(), shared, reply = std::move(reply)]() mutable {
    core->CreateCall(std::move(*shared), std::move(reply));
  });
}

void CallEngine::PutInputs(const CallScope& scope, const std::string& call_id, const std::string& function_id,
                           std::vector<NewInput> inputs,
                           std::function<void(Result<std::vector<PutInput>>)> reply) {
  auto shared = std::make_shared<std::vector<NewInput>>(std::move(inputs));
  core_->strand().Run(
      [core = core_.get(), scope, call_id, function_id, shared, reply = std::move(reply)]() mutable {
        core->WithCall(scope, call_id, [core, function_id, shared, reply](Result<Call*> call) {
          if (!call.ok()) return reply(call.status());
          core->PutInputs(*call, function_id, std::move(*shared), reply);
        });
      });
}

std::shared_ptr<void> CallEngine::GetOutputs(OutputsQuery query,
                                             std::function<void(Result<OutputsPage>)> reply) {
  EngineCore* core = core_.get();
  uint64_t handle = core->NewHandle();
  auto shared = std::make_shared<OutputsQuery>(std::move(query));
  auto answered = std::make_shared<std::atomic<bool>>(false);
  core->strand().Run([core, handle, shared, answered, reply = std::move(reply)]() mutable {
    const auto answer = [answered, reply = std::move(reply)](Result<OutputsPage> page) {
      answered->store(true);
      reply(std::move(page));
    };
    core->Ask(handle, shared->scope, shared->call_id, [core, handle, shared, answer](Result<Call*> call) {
      if (!call.ok()) return answer(call.status());
      core->GetOutputs(handle, *call, std::move(*shared), answer);
    });
  });
  return Handle([core, handle, answered] {
    if (!answered->load()) core->strand().Run([core, handle] { core->DropPoll(handle); });
  });
}

void CallEngine::CancelCall(const CallScope& scope, const std::string& call_id, bool terminate,
                            std::function<void(Status)> reply) {
  core_->strand().Post([core = core_.get(), scope, call_id, terminate, reply = std::move(reply)] {
    core->WithCall(scope, call_id, [core, terminate, reply](Result<Call*> call) {
      if (call.ok()) core->CancelCall(*call, terminate);
      reply(call.status());
    });
  });
}

void CallEngine::GetCallInfo(const CallScope& scope, const std::string& call_id,
                             std::function<void(Result<CallInfo>)> reply) {
  core_->strand().Post([core = core_.get(), scope, call_id, reply = std::move(reply)] {
    core->WithCall(scope, call_id, [reply](Result<Call*> call) {
      if (!call.ok()) return reply(call.status());
      reply(EngineCore::InfoOf(**call));
    });
  });
}

void CallEngine::GetCallGraph(const CallScope& scope, const std::string& call_id,
                              std::function<void(Result<CallGraph>)> reply) {
  core_->strand().Post([core = core_.get(), scope, call_id, reply = std::move(reply)] {
    core->WithCall(scope, call_id, [core, reply](Result<Call*> call) {
      if (!call.ok()) return reply(call.status());
      core->GraphOf(*call, reply);
    });
  });
}

void CallEngine::ListCalls(const CallScope& scope, const std::string& function_id,
                           std::function<void(Result<std::vector<CallInfo>>)> reply) {
  core_->strand().Post([core = core_.get(), scope, function_id, reply = std::move(reply)] {
    auto function = core->FindFunction(scope, function_id);
    if (!function.ok()) return reply(function.status());
    core->CallsOf(**function, reply);
  });
}

void CallEngine::PutChunks(const CallScope& scope, const std::string& call_id, const std::string& task_id,
                           std::vector<std::pair<uint64_t, std::string>> chunks,
                           std::function<void(Status)> reply) {
  auto shared = std::make_shared<std::vector<std::pair<uint64_t, std::string>>>(std::move(chunks));
  core_->strand().Post(
      [core = core_.get(), scope, call_id, task_id, shared, reply = std::move(reply)]() mutable {
        core->WithCall(scope, call_id, [core, task_id, shared, reply](Result<Call*> call) {
          if (!call.ok()) return reply(call.status());
          core->PutChunks(*call, task_id, std::move(*shared), reply);
        });
      });
}

std::shared_ptr<void> CallEngine::NextChunks(const CallScope& scope, const std::string& call_id,
                                             uint64_t last_index,
                                             std::function<void(Result<DataChunks>)> reply) {
  EngineCore* core = core_.get();
  uint64_t handle = core->NewHandle();
  core->strand().Post([core, handle, scope, call_id, last_index, reply = std::move(reply)]() mutable {
    core->Ask(handle, scope, call_id, [core, handle, last_index, reply](Result<Call*> call) {
      if (!call.ok()) return reply(call.status());
      core->NextChunks(handle, *call, last_index, reply);
    });
  });
  return Handle([core, handle, call_id] {
    core->strand().Post([core, handle, call_id] { core->DropChunkWait(handle, call_id); });
  });
}

void CallEngine::FunctionStatsIn(const CallScope& scope, const std::string& function_id,
                                 std::function<void(Result<FunctionStats>)> reply) {
  core_->strand().Post([core = core_.get(), scope, function_id, reply = std::move(reply)] {
    auto function = core->FindFunction(scope, function_id);
    if (!function.ok()) return reply(function.status());
    reply(core->StatsOf(**function));
  });
}

void CallEngine::PutFunction(const FunctionInfo& info, bool replace_tasks) {
  core_->strand().Post([core = core_.get(), info, replace_tasks] { core->PutFunction(info, replace_tasks); });
}

void CallEngine::ActivateApp(const std::string& app_id) {
  core_->strand().Post([core = core_.get(), app_id] { core->ActivateApp(app_id); });
}

void CallEngine::StopApp(const std::string& app_id, const std::string& reason, uint32_t grace_ms,
                         std::function<void()> done) {
  core_->strand().Post([core = core_.get(), app_id, reason, grace_ms, done = std::move(done)]() mutable {
    core->StopApp(app_id, reason, grace_ms, std::move(done));
  });
}

void CallEngine::StopTask(const std::string& task_id, const std::string& reason, bool graceful,
                          std::function<void(Status)> done) {
  core_->strand().Post([core = core_.get(), task_id, reason, graceful, done = std::move(done)]() mutable {
    core->StopTaskById(task_id, reason, graceful, std::move(done));
  });
}

void CallEngine::RunBuilder(const std::string& function_id, const std::string& input,
                            std::function<void(BuilderOutcome)> done) {
  core_->strand().Post([core = core_.get(), function_id, input, done = std::move(done)]() mutable {
    core->RunBuilder(function_id, input, std::move(done));
  });
}

void CallEngine::ListWorkers(std::function<void(std::vector<WorkerRegistry::Worker>)> reply) {
  core_->strand().Post([core = core_.get(), reply = std::move(reply)] {
    std::vector<WorkerRegistry::Worker> workers;
    for (const WorkerRegistry::Worker* worker : core->registry().all()) workers.push_back(*worker);
    reply(std::move(workers));
  });
}

void CallEngine::Tasks(std::function<void(std::vector<TaskView>)> reply) {
  core_->strand().Post([core = core_.get(), reply = std::move(reply)] { reply(core->TaskViews()); });
}

void CallEngine::TaskById(const std::string& task_id, std::function<void(Result<TaskView>)> reply) {
  core_->strand().Post([core = core_.get(), task_id, reply = std::move(reply)]() mutable {
    if (auto view = core->FindTaskView(task_id)) return reply(*view);
    // Ended: it is in the journal, or on its way there, before what is appended now.
    Journal::Record record;
    record.must = true;
    record.apply = [](store::Session&) { return Status(); };
    record.done = [core, task_id, reply = std::move(reply)](Status) {
      core->pool().Post([core, task_id, reply] {
        auto row = std::make_shared<Result<TaskRow>>(core->journal().TaskById(task_id));
        core->strand().Post([row, reply] {
          if (!row->ok()) return reply(row->status());
          reply(EngineCore::ViewOf(**row));
        });
      });
    };
    core->journal().Append(std::move(record));
  });
}

void CallEngine::Stats(const std::string& function_id, std::function<void(FunctionStats)> reply) {
  core_->strand().Post([core = core_.get(), function_id, reply = std::move(reply)] {
    FunctionState* function = core->function(function_id);
    reply(function == nullptr ? FunctionStats() : core->StatsOf(*function));
  });
}

}  // namespace lydian::control
