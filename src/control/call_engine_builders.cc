#include <algorithm>

#include "base/ids.h"
#include "control/call_engine_core.h"

namespace lydian::control {

void EngineCore::RunBuilder(const std::string& function_id, const std::string& input,
                            std::function<void(BuilderOutcome)> done) {
  FunctionState* found = function(function_id);
  if (found == nullptr) return done({NotFound("no function " + function_id), ""});
  if (found->app->stopped) return done({FailedPrecondition(found->app->stop_reason), ""});
  auto builder = std::make_shared<Builder>();
  builder->input = input;
  builder->done = std::move(done);
  PlaceBuilder(found, std::move(builder));
}

void EngineCore::PlaceBuilder(FunctionState* function, std::shared_ptr<Builder> builder) {
  std::string worker_id;
  for (const WorkerRegistry::Worker* worker : registry_.all()) {
    if (worker->connected && (worker_id.empty() || !worker->capacity.disk_low())) worker_id = worker->id;
  }
  if (worker_id.empty()) {
    waiting_builders_.emplace_back(function, std::move(builder));
    return;
  }
  // A call of its own, in memory alone: whoever asked for the layer asks again after a restart.
  builder->output.reset();
  builder->call = std::make_unique<Call>();
  Call* call = builder->call.get();
  call->id = NewId("fc");
  call->function = function;
  call->committed = true;
  std::weak_ptr<Builder> weak = builder;
  call->builder = [weak](const OutputView& output) {
    if (auto owner = weak.lock()) owner->output = output;
  };
  InputRow row;
  AddInput(call, {0, builder->input, ""}, &row);
  ++builder->tries;
  StartTask(function, worker_id, std::move(builder));
}

// `update`: how its container ended (or failed to begin); null: it never was.
void EngineCore::BuilderEnded(TaskState* task, const TaskUpdate* update, const std::string& text) {
  std::shared_ptr<Builder> builder = task->builder;
  if (!builder->done) return;
  bool lost = update != nullptr && update->exit().lost();
  while (!builder->call->inputs.empty()) {
    Input* input = builder->call->inputs.begin()->second.get();
    Detach(input);
    Forget(input);
  }
  if (lost && builder->tries < 3 && !task->function->app->stopped) {
    auto again = std::make_shared<Builder>();
    again->input = builder->input;
    again->tries = builder->tries;
    again->done = std::move(builder->done);
    builder->done = nullptr;
    return PlaceBuilder(task->function, std::move(again));
  }
  BuilderOutcome outcome;
  bool worked = builder->output && builder->output->status == static_cast<int32_t>(ResultStatus::kSuccess);
  if (worked && update != nullptr && !update->layer_id().empty()) {
    outcome.layer_id = update->layer_id();
  } else {
    std::string why = text;
    SharedBytes result = builder->output ? builder->output->result : nullptr;
    if (update != nullptr && !update->result().empty())
      result = std::make_shared<const std::string>(update->result());
    if (result != nullptr && options_.result_text && !worked) {
      why = options_.result_text(*result);
    } else if (builder->output && !builder->output->text.empty()) {
      why = builder->output->text;
    } else if (worked) {
      why = Named(*task->function,
                  "what it wrote could not be kept: " + (update == nullptr ? "" : update->error()));
    }
    outcome.status = FailedPrecondition(why);
  }
  auto done = std::move(builder->done);
  builder->done = nullptr;
  done(std::move(outcome));
}

}  // namespace lydian::control
