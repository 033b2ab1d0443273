// The call engine: every call, input and output, and the containers that work them off. Who counts attempts,
// delays, cancels and times out is here and nowhere else.
//
// An input's life: journalled -> queued -> leased to a task -> (output journalled) -> finished. A failed
// attempt goes back to queued after the retry's delay; one whose container we lost goes back at once, and
// counts nothing. docs/formats/journal.md, docs/formats/worker-link.md.
//
// Thread-safety: every method from any thread. Callbacks come on the engine's strand (a few from the caller's
// thread, before the method returns) and must not block. Ownership: the engine owns its strand, journal and
// the worker registry; the log store and the source of task specs must outlive it. Errors: NOT_FOUND for ids
// that aren't the caller's; RESOURCE_EXHAUSTED when too much is queued or the disk is full.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "control/engine.h"
#include "control/journal.h"
#include "control/log_store.h"
#include "control/output_index.h"
#include "control/worker_registry.h"

namespace lydian::control {

// modal.client.GenericResult.GenericStatus, as far as the engine acts on it.
enum class ResultStatus : int32_t {
  kSuccess = 1,
  kFailure = 2,
  kTerminated = 3,
  kTimeout = 4,
  kInitFailure = 5,
  kInternalFailure = 6,
};
// modal.client.FunctionCallType and FunctionCallInvocationType.
enum CallType : int32_t { kCallUnary = 1, kCallMap = 2 };
enum InvocationType : int32_t { kSyncLegacy = 1, kAsyncLegacy = 2, kAsync = 3, kSync = 4 };

struct EngineOptions {
  std::string journal_path;
  LogStore* logs = nullptr;
  // The text for people of a modal.client.GenericResult.
  std::function<std::string(const std::string& result)> result_text;
  // Of unfinished inputs: in all; of one workspace, half of that; of one function, a quarter. A hundredth is
  // every workspace's own, however full it is.
  uint64_t max_queued_inputs = 8'000'000;
  uint64_t max_queued_bytes = uint64_t{32} << 30;
  // Of these in memory: so many of a function, and so much in all. Those behind wait in the journal alone.
  size_t max_ready_inputs = 16'384;
  uint64_t max_ready_bytes = uint64_t{256} << 20;
  uint64_t max_chunk_bytes = uint64_t{1} << 30;   // of generators' data, shared in the same way
  uint64_t max_result_bytes = uint64_t{1} << 30;  // kept in memory; all others are read from the journal
  size_t max_idle_calls = 10'000;                 // ended ones in memory; all others rest in the journal
  uint64_t max_idle_bytes = uint64_t{64} << 20;   // ... and what these remember of their outputs
  Millis worker_grace{15'000};                    // a worker's broken connection
  Millis missing_grace{2'000};     // a task that a returned worker doesn't name: its exit may be on the way
  Millis map_coalesce{20};         // how long a map's poll gathers outputs
  Millis start_backoff{500};       // after a container that died before it was ready; doubles
  uint32_t start_failures = 3;     // in a row, then its inputs fail
  Millis acked_keep{60'000};       // fetched results of synchronous calls, should the answer have been lost
  Millis stopped_keep{300'000};    // synchronous calls of a stopped app
  Millis cancel_patience{30'000};  // for a container to end a cancelled input, before it is killed
  // Within which the cursors of polls are good: what was committed is there until the machine goes down. "" =
  // this boot of the machine.
  std::string incarnation;
};

// Who asks: everything is looked up within it.
struct CallScope {
  std::string workspace_id;
  std::string environment;  // "" = any (a token's); a container's own otherwise
};

// The most inputs of one request. The client puts 49 at a time, 512 of a spawn_map.
constexpr size_t kMostInputs = 10'000;
// OK, or INVALID_ARGUMENT: before anything is copied.
Status CheckInputCount(size_t count);

struct NewInput {
  uint32_t idx = 0;
  std::string payload;  // modal.client.FunctionInput
  std::string method;
};

struct NewCall {
  CallScope scope;
  std::string function_id, parent_input_id, idempotency_key /* with the caller in it; "" = none */;
  int32_t call_type = kCallUnary, invocation_type = kSync;
  std::vector<NewInput> inputs;
};

struct PutInput {
  uint32_t idx = 0;
  std::string input_id;
};

struct CreatedCall {
  std::string call_id;
  std::vector<PutInput> inputs;
  RetryPolicy retry;
};

struct OutputsQuery {
  CallScope scope;
  std::string call_id, last_entry_id;
  Millis timeout{0};
  bool clear_on_success = false;
  std::optional<int32_t> start_idx,
      end_idx;            // both inclusive; with start_idx it is a poll for these alone, answered at once
  size_t max_values = 0;  // 0 = no limit of its own
};

struct OutputsPage {
  std::vector<OutputView> outputs;
  std::string last_entry_id;
  int32_t unfinished = 0;
};

struct CallInfo {
  std::string call_id, function_id, app_id, function_name;
  double created_at = 0;
  uint32_t total = 0, pending = 0, succeeded = 0, failed = 0, timed_out = 0, cancelled = 0;
};

// The tree of calls that a call made: for FunctionGetCallGraph.
struct CallGraph {
  struct InputNode {
    std::string input_id, call_id, task_id;
    int32_t status = 0;  // 0 = not finished
  };
  struct CallNode {
    std::string call_id, parent_input_id, function_name;
  };
  std::vector<InputNode> inputs;
  std::vector<CallNode> calls;
  bool truncated = false;
};

struct DataChunks {
  std::vector<std::pair<uint64_t, SharedBytes>> chunks;  // index, modal.client.DataChunk
};

// Who a container is, for calls that come from inside it.
struct TaskIdentity {
  std::string workspace_id, environment, app_id, function_id;
  bool restricted = false;
};

class EngineCore;

class CallEngine : public Engine {
 public:
  // Reads the journal back: what was not finished is queued again or taken up by the worker that still runs
  // it.
  static Result<std::unique_ptr<CallEngine>> Open(EngineOptions options, Clock& clock = SystemClock());
  ~CallEngine() override;
  // Before the first worker connects.
  void SetTaskSpecSource(TaskSpecSource* source);
  // How many workspaces there are: with more than one, each has a share of a worker alone. From any thread.
  void SetWorkspaceCount(std::function<size_t()> count);

  void CreateCall(NewCall call, std::function<void(Result<CreatedCall>)> reply);
  void PutInputs(const CallScope& scope, const std::string& call_id, const std::string& function_id,
                 std::vector<NewInput> inputs, std::function<void(Result<std::vector<PutInput>>)> reply);
  // Destroying the handle takes the question back.
  std::shared_ptr<void> GetOutputs(OutputsQuery query, std::function<void(Result<OutputsPage>)> reply);
  void CancelCall(const CallScope& scope, const std::string& call_id, bool terminate,
                  std::function<void(Status)> reply);
  void GetCallInfo(const CallScope& scope, const std::string& call_id,
                   std::function<void(Result<CallInfo>)> reply);
  void GetCallGraph(const CallScope& scope, const std::string& call_id,
                    std::function<void(Result<CallGraph>)> reply);
  void ListCalls(const CallScope& scope, const std::string& function_id,
                 std::function<void(Result<std::vector<CallInfo>>)> reply);
  // Generator data. A chunk of the same index replaces the older one (a retry starts again at 1). `task_id`:
  // the container that puts it; it must hold an input of the call.
  void PutChunks(const CallScope& scope, const std::string& call_id, const std::string& task_id,
                 std::vector<std::pair<uint64_t, std::string>> chunks, std::function<void(Status)> reply);
  // The chunks behind `last_index`, once there are any; about 4 MiB at most.
  std::shared_ptr<void> NextChunks(const CallScope& scope, const std::string& call_id, uint64_t last_index,
                                   std::function<void(Result<DataChunks>)> reply);
  void FunctionStatsIn(const CallScope& scope, const std::string& function_id,
                       std::function<void(Result<FunctionStats>)> reply);

  // Only alive tasks.
  std::optional<TaskIdentity> IdentityOfTask(const std::string& task_id) const;
  WorkerRegistry& registry();
  // Every worker that was ever connected since the start.
  void ListWorkers(std::function<void(std::vector<WorkerRegistry::Worker>)> reply);

  // Those of these blobs that a call still has or may deliver. Blocks on the disk.
  Result<std::set<std::string>> BlobsInUse(const std::vector<std::string>& blob_ids);

  // Engine.
  void PutFunction(const FunctionInfo& info, bool replace_tasks) override;
  void ActivateApp(const std::string& app_id) override;
  void StopApp(const std::string& app_id, const std::string& reason, uint32_t grace_ms,
               std::function<void()> done) override;
  void StopTask(const std::string& task_id, const std::string& reason, bool graceful,
                std::function<void(Status)> done) override;
  void RunBuilder(const std::string& function_id, const std::string& input,
                  std::function<void(BuilderOutcome)> done) override;
  void Tasks(std::function<void(std::vector<TaskView>)> reply) override;
  void TaskById(const std::string& task_id, std::function<void(Result<TaskView>)> reply) override;
  void Stats(const std::string& function_id, std::function<void(FunctionStats)> reply) override;

 private:
  explicit CallEngine(std::unique_ptr<EngineCore> core);
  std::unique_ptr<EngineCore> core_;
};

}  // namespace lydian::control
