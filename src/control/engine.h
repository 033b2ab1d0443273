// The seam between the call engine (calls, inputs, outputs, tasks, workers) and the rest of control (apps,
// functions, images, mounts, secrets). The engine knows a function only by its FunctionInfo and asks a
// TaskSpecSource when it starts a task; the rest knows the engine only by this interface.
//
// Thread-safety: every method from any thread; callbacks come on the engine's strand and must not block.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "lydian/worker.pb.h"

namespace lydian::control {

struct RetryPolicy {
  uint32_t retries = 0;  // more attempts after the first
  double backoff_coefficient = 1.0;
  uint32_t initial_delay_ms = 1000;
  uint32_t max_delay_ms = 60'000;
};

// What the engine needs of a function. Filled in by api from the client's definition.
struct FunctionInfo {
  std::string function_id;  // of a bound function: the bound id
  std::string base_id;      // of a bound function: what it was bound to; not kept over a restart
  std::string app_id;
  std::string workspace_id;
  std::string environment;
  std::string name;             // the tag; for messages to people
  uint32_t slots = 1;           // max_concurrent_inputs (or batch_max_size when batched and not concurrent)
  uint32_t target_slots = 1;    // target_concurrent_inputs, else slots
  uint32_t batch_max_size = 0;  // 0 = not batched
  uint64_t batch_linger_ms = 0;
  RetryPolicy retry;
  uint32_t timeout_secs = 300;  // of one input, in a container
  uint32_t startup_timeout_secs = 300;
  uint32_t min_containers = 0, max_containers = 0 /* 0 = no limit of its own */, buffer_containers = 0;
  uint32_t scaledown_window_secs = 60;
  bool single_use = false;
  bool generator = false;
  TaskLimits limits;

  const std::string& root_id() const { return base_id.empty() ? function_id : base_id; }
};

// How to make a task of a function. Called on any thread; may read the store (blocking), so the engine asks
// on a pool.
class TaskSpecSource {
 public:
  virtual ~TaskSpecSource() = default;
  // Everything but task_id. NOT_FOUND when the function is gone.
  virtual Result<TaskSpec> MakeTaskSpec(const std::string& function_id) = 0;
};

struct TaskView {
  std::string task_id, app_id, function_id, function_name, container_id, worker_id, state, ip;
  int pid = 0;
  double enqueued_at = 0, started_at = 0, finished_at = 0;
};

struct FunctionStats {
  uint32_t queued = 0, running = 0, tasks = 0;
  uint32_t free = 0;  // more inputs that the containers which are ready could take
};

// One finished builder call (run_function).
struct BuilderOutcome {
  Status status;  // not OK: the text for people
  std::string layer_id;
};

class Engine {
 public:
  virtual ~Engine() = default;

  // A new or changed function. Running tasks of an older definition finish what they hold and go.
  virtual void PutFunction(const FunctionInfo& info, bool replace_tasks) = 0;
  // Its calls may run from now on (AppPublish); min_containers take effect.
  virtual void ActivateApp(const std::string& app_id) = 0;
  // No new task or input; queued inputs end as TERMINATED with `reason`; tasks get GRACEFUL with `grace_ms`.
  // `done` once every task has EXITED and its logs are stored. Again for a stopped app: `done` at once.
  virtual void StopApp(const std::string& app_id, const std::string& reason, uint32_t grace_ms,
                       std::function<void()> done) = 0;
  // `graceful`: it finishes the inputs that it works on and takes no more, and `done` runs at once; else they
  // are interrupted, and `done` runs when it has ended.
  virtual void StopTask(const std::string& task_id, const std::string& reason, bool graceful,
                        std::function<void(Status)> done) = 0;
  // Runs a builder function once with `input` (modal.client.FunctionInput) and commits what it wrote as a
  // layer.
  virtual void RunBuilder(const std::string& function_id, const std::string& input,
                          std::function<void(BuilderOutcome)> done) = 0;

  virtual void Tasks(std::function<void(std::vector<TaskView>)> reply) = 0;  // alive ones
  virtual void TaskById(const std::string& task_id,
                        std::function<void(Result<TaskView>)> reply) = 0;  // ended ones too
  virtual void Stats(const std::string& function_id, std::function<void(FunctionStats)> reply) = 0;
};

// The worker connections, for those who need a worker: builds and assets. One worker today; the engine
// places.
class Workers {
 public:
  virtual ~Workers() = default;
  // `on_update` until a result came or the worker is lost (a result with retryable=true then). Cancel by
  // build id.
  virtual void StartBuild(const BuildSpec& spec, std::function<void(const BuildUpdate&)> on_update) = 0;
  virtual void CancelBuild(const std::string& build_id) = 0;
  virtual void Ensure(EnsureAsset::Kind kind, const std::string& name, std::function<void(Status)> done) = 0;

  // What the workers that are connected keep, by worker; `verify` has them look for damage. A worker that
  // goes meanwhile answers UNAVAILABLE. Then, of one of them, what nobody needs.
  using Inventories = std::map<std::string, Result<StoreInventory>>;
  virtual void TakeInventory(bool verify, std::function<void(Inventories)> reply) {
    (void)verify;
    reply({});
  }
  virtual void Drop(const std::string& worker_id, const DropImages& what,
                    std::function<void(Result<StoreDropped>)> reply) {
    (void)what;
    reply(Unavailable("no worker " + worker_id));
  }
};

}  // namespace lydian::control
