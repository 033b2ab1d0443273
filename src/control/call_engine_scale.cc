#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

// Outputs of a container that has more to do come some at a time: the input that it seems to work on may have
// ended this long ago. Taken for slow, it would get a second container for work of milliseconds.
constexpr int64_t kReportLag = 15'000'000;
// A start that takes longer waits for something else than the CPU: the next need not wait for it.
constexpr int64_t kStartCounts = int64_t{20} * 1'000'000'000;

sched::Request RequestOf(const FunctionState& function) {
  const FunctionInfo& info = function.info;
  sched::Request request;
  request.workspace = function.workspace->number;
  if (info.limits.milli_cpu_request() > 0) request.milli_cpu = info.limits.milli_cpu_request();
  if (info.limits.memory_request_bytes() > 0) request.memory_bytes = info.limits.memory_request_bytes();
  return request;
}

std::string MiB(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

// After anything that could change the plan; once for all that this turn brought.
void EngineCore::PostScale() {
  if (scale_posted_) return;
  scale_posted_ = true;
  strand_.Run([this] {
    scale_posted_ = false;
    Scale();
  });
}

void EngineCore::Scale() {
  if (!recovering_.empty()) return;
  sched::View view;
  view.now = NowNanos();
  std::map<std::string, size_t> worker_at;
  for (const WorkerRegistry::Worker* worker : registry_.all()) {
    worker_at[worker->id] = view.workers.size();
    sched::WorkerView out;
    out.id = worker->id;
    out.milli_cpu = worker->capacity.milli_cpu();
    out.memory_bytes = worker->capacity.memory_bytes();
    out.refuses = !worker->connected || worker->capacity.disk_low();
    out.shared = workspace_count_() > 1;
    view.workers.push_back(std::move(out));
  }
  std::vector<FunctionState*> functions;
  int64_t starts_age_at = INT64_MAX;
  for (auto& [id, function] : functions_) {
    bool work = function->waiting() > 0 || function->leased > 0 || function->info.min_containers > 0;
    if (!work && function->tasks.empty()) continue;
    sched::FunctionLoad load;
    load.id = id;
    load.active = function->app->active && !function->app->stopped;
    load.queued = function->waiting();
    load.running = 0;
    // What is being read from the journal has waited for no container yet.
    load.oldest_queued = function->queue.empty() ? view.now : function->queue.front()->queued_nanos;
    load.target_slots = function->info.target_slots;
    load.min_containers = function->info.min_containers;
    load.max_containers = function->info.max_containers;
    load.buffer_containers = function->info.buffer_containers;
    load.scaledown_window = int64_t{function->info.scaledown_window_secs} * 1'000'000'000;
    load.not_before = function->not_before;
    load.request = RequestOf(*function);
    load.run_time = static_cast<int64_t>(function->run_ms * 1e6);
    double start_ms = function->start_ms > 0 ? function->start_ms : start_ms_;
    if (start_ms > 0) load.start_time = static_cast<int64_t>(start_ms * 1e6);
    for (TaskState* task : function->tasks) {
      auto at = worker_at.find(task->worker_id);
      bool placed = at != worker_at.end();
      bool starting = task->state == TaskState::State::kMaking || task->state == TaskState::State::kStarting;
      if (placed) {
        const int64_t counts_until = task->begun_nanos + kStartCounts;
        const bool counts = starting && counts_until > view.now;
        sched::Count(view.workers[at->second], load.request, counts);
        if (counts) starts_age_at = std::min(starts_age_at, counts_until);
      }
      if (!task->alive_for_work() || (function->info.single_use && task->used)) {
        view.draining |= task->leases.empty();
        continue;
      }
      load.running += task->leases.size();
      sched::TaskLoad out;
      out.id = task->id;
      out.worker = placed ? at->second : 0;
      out.starting = starting;
      out.inputs = static_cast<uint32_t>(task->leases.size());
      out.idle_since = task->idle_since;
      out.begun = std::min(view.now, task->head_nanos + kReportLag);
      out.blocked = !task->leases.empty();
      const auto& blocking = function->workspace->blocking_calls;
      for (const Input* input : task->leases) out.blocked &= blocking.contains(input->id);
      load.tasks.push_back(std::move(out));
    }
    view.functions.push_back(std::move(load));
    functions.push_back(function.get());
  }
  sched::Plan plan = sched::MakePlan(view);
  if (waiting_inputs_ > 0) plan.again_at = std::min(plan.again_at, starts_age_at);
  for (const std::string& id : plan.drain) {
    if (TaskState* task = FindTask(id)) SendStop(task, StopTask::DRAIN, 0, "idle");
  }
  for (size_t f : plan.impossible) {
    sched::Request request = view.functions[f].request;
    uint64_t memory = 0;
    bool shared = false;
    for (const auto& worker : view.workers) {
      memory = std::max(memory, worker.most_memory());
      shared |= worker.shared;
    }
    FailQueued(functions[f], ResultStatus::kFailure,
               Named(*functions[f], "its request of " + MiB(request.memory_bytes) + " memory and " +
                                        std::to_string(request.milli_cpu) +
                                        " milli-CPU fits no machine; the largest has " + MiB(memory) +
                                        " for containers" +
                                        (shared ? " of one workspace, while there are several" : "")));
  }
  for (const sched::Start& start : plan.starts)
    StartTask(functions[start.function], view.workers[start.worker].id);
  if (scale_timer_ && scale_timer_->first != plan.again_at) {
    strand_.CancelTimer(scale_timer_->second);
    scale_timer_.reset();
  }
  if (plan.again_at != INT64_MAX && !scale_timer_) {
    int64_t wait = std::max<int64_t>(plan.again_at - view.now, 1'000'000);
    scale_timer_ = {plan.again_at, strand_.PostAfter(std::chrono::nanoseconds(wait), [this] {
                      scale_timer_.reset();
                      Scale();
                    })};
  }
}

// Containers on their way to inputs that are no more: they give back their places.
void EngineCore::DropStarts(FunctionState* function, const std::string& reason) {
  sched::FunctionLoad load;
  load.active = true;
  load.queued = function->waiting();
  load.running = function->leased;
  load.target_slots = function->info.target_slots;
  load.min_containers = function->info.min_containers;
  load.max_containers = function->info.max_containers;
  load.buffer_containers = function->info.buffer_containers;
  const uint64_t wanted = sched::Wanted(load);
  std::vector<TaskState*> starting;
  size_t alive = 0;
  for (TaskState* task : function->tasks) {
    if (!task->alive_for_work()) continue;
    ++alive;
    if (task->state != TaskState::State::kReady) starting.push_back(task);
  }
  for (; alive > wanted && !starting.empty(); --alive) {
    SendStop(starting.back(), StopTask::KILL, 0, reason);
    starting.pop_back();
  }
}

}  // namespace lydian::control
