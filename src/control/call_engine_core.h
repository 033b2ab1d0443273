// The engine behind CallEngine: everything here runs on one strand. Private to call_engine*.cc.
//   call_engine.cc          the public methods: they post
//   call_engine_calls.cc    calls and inputs: made, finished, cancelled
//   call_engine_upkeep.cc   ended calls: kept for a while, dropped
//   call_engine_paging.cc   calls that rest in the journal, and outputs of which only the journal has all
//   call_engine_stored.cc   inputs that wait in the journal alone
//   call_engine_outputs.cc  polls for outputs
//   call_engine_chunks.cc   generator data
//   call_engine_graph.cc    questions about calls
//   call_engine_leases.cc   which input goes to which container
//   call_engine_tasks.cc    containers: started, followed, stopped
//   call_engine_builders.cc containers that leave a layer: a run_function's
//   call_engine_scale.cc    the autoscaler's view and its plan
//   call_engine_workers.cc  what workers say
//   call_engine_recovery.cc the journal read back
#pragma once

#include <atomic>
#include <deque>
#include <set>
#include <unordered_set>

#include "base/log.h"
#include "base/patient_clock.h"
#include "control/call_engine_state.h"
#include "sched/autoscaler.h"

namespace lydian::control {

class EngineCore : public WorkerEvents {
 public:
  EngineCore(EngineOptions options, Clock& clock);
  ~EngineCore() override;
  Status OpenJournal();

  Strand& strand() { return strand_; }
  WorkerRegistry& registry() { return registry_; }
  std::optional<TaskIdentity> IdentityOfTask(const std::string& task_id) const;
  void SetTaskSpecSource(TaskSpecSource* source) { spec_source_ = source; }
  void SetWorkspaceCount(std::function<size_t()> count) { workspace_count_ = std::move(count); }
  Pool& pool() { return pool_; }
  Journal& journal() { return *journal_; }
  uint64_t NewHandle() { return next_handle_.fetch_add(1); }

  // call_engine_calls.cc
  void CreateCall(NewCall request, std::function<void(Result<CreatedCall>)> reply);
  void PutInputs(Call* call, const std::string& function_id, std::vector<NewInput> inputs,
                 std::function<void(Result<std::vector<PutInput>>)> reply);
  Result<FunctionState*> FindFunction(const CallScope& scope, const std::string& function_id);
  void CancelCall(Call* call, bool terminate);

  // call_engine_paging.cc
  // Gives `found` the call: at once when it is in memory, later when it rests. NOT_FOUND outside the scope.
  void WithCall(const CallScope& scope, const std::string& call_id, std::function<void(Result<Call*>)> found);
  // The same for who may take the question back: not called any more after DropPoll or DropChunkWait of
  // `handle`.
  void Ask(uint64_t handle, const CallScope& scope, const std::string& call_id,
           std::function<void(Result<Call*>)> found);

  // call_engine_graph.cc
  static CallInfo InfoOf(const Call& call);
  void GraphOf(Call* root, std::function<void(Result<CallGraph>)> reply);
  void CallsOf(const FunctionState& function, std::function<void(Result<std::vector<CallInfo>>)> reply);

  // call_engine_outputs.cc
  void GetOutputs(uint64_t handle, Call* call, OutputsQuery query,
                  std::function<void(Result<OutputsPage>)> reply);
  void DropPoll(uint64_t handle);

  // call_engine_chunks.cc
  void PutChunks(Call* call, const std::string& task_id, std::vector<std::pair<uint64_t, std::string>> chunks,
                 std::function<void(Status)> reply);
  void NextChunks(uint64_t handle, Call* call, uint64_t last_index,
                  std::function<void(Result<DataChunks>)> reply);
  void DropChunkWait(uint64_t handle, const std::string& call_id);

  // call_engine_tasks.cc
  void PutFunction(const FunctionInfo& info, bool replace_tasks);
  void ActivateApp(const std::string& app_id);
  void StopApp(const std::string& app_id, const std::string& reason, uint32_t grace_ms,
               std::function<void()> done);
  void StopTaskById(const std::string& task_id, const std::string& reason, bool graceful,
                    std::function<void(Status)> done);
  void RunBuilder(const std::string& function_id, const std::string& input,
                  std::function<void(BuilderOutcome)> done);
  std::vector<TaskView> TaskViews() const;
  std::optional<TaskView> FindTaskView(const std::string& task_id) const;
  static TaskView ViewOf(const TaskRow& row);
  FunctionStats StatsOf(const FunctionState& function) const;
  FunctionState* function(const std::string& id);

 private:
  using OutputDone = std::function<void()>;

  static int64_t NowNanos() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
  double UnixSeconds() const { return clock_.UnixSeconds(); }

  // calls
  using CreatedReply = std::function<void(Result<CreatedCall>)>;
  struct Idempotent {
    Call* call = nullptr;  // null once it has left the memory
    std::string call_id;
    double at = 0;
    std::unique_ptr<std::vector<CreatedReply>> waiters;  // until it is committed
  };
  Idempotent& KeepKey(const std::string& digest, Call* call, const std::string& call_id, double at);
  void ForgetKeys();  // the old ones
  Status CheckRoom(const FunctionState& function, const std::vector<NewInput>& inputs) const;
  static Status CheckIndexes(const std::vector<NewInput>& inputs);
  Input* AddInput(Call* call, NewInput input, InputRow* row);
  void Hold(Input* input);  // counts it, until Forget
  void CallCommitted(Call* call, const std::vector<PutInput>& answer, Status status);
  void InputsCommitted(const std::string& call_id, const std::vector<uint32_t>& fresh, Status status);
  void Unfinished(Call* call, int64_t by);
  void Enqueue(Input* input, bool front);
  void TakeFromQueue(Input* input);
  void TakeFromTask(Input* input);
  void Detach(Input* input);  // from wherever it is
  void Forget(Input* input);  // destroys it
  // The end of an input. `committed` once it is in the journal.
  void Finish(Input* input, OutputView output, OutputDone committed = nullptr);
  void FinishWithText(Input* input, ResultStatus status, const std::string& text);
  void Finished(const std::string& call_id, uint32_t idx, OutputView output);
  // A failed attempt: another one, or the end with `output`.
  void AttemptFailed(Input* input, OutputView output, OutputDone committed = nullptr);
  Input* DelayedInput(const std::string& id, uint32_t attempt) const;  // null when it isn't any more
  void NextAttempt(const std::string& id, uint32_t attempt);
  void Requeue(Input* input);  // no attempt counted; a builder's goes to its own task again
  void FailQueued(FunctionState* function, ResultStatus status, const std::string& text,
                  SharedBytes result = nullptr);
  void FailSome(const std::string& function_id, size_t left, const OutputView& output);
  void CancelSome(const std::string& call_id, std::vector<uint32_t> left, bool terminate);
  void Acknowledge(Call* call);
  void ScheduleDrops();
  void DropAcknowledged();
  void DropCall(Call* call);
  void DropNow(const std::vector<Call*>& calls);
  void DropRows(std::vector<uint32_t> calls, std::function<void()> then = nullptr);
  void DropOldCalls(double now);  // by ages_
  void DropFunctions();
  void Housekeeping();

  // stored
  bool MustStore(const FunctionState& function) const;
  bool QueueHasRoom(const FunctionState& function, uint64_t more) const;
  void Store(Input* input);
  void CountStored(Call* call, const InputKey& key);
  struct Load;
  void Refill(FunctionState* function);
  void ReadStored(Load* load);
  void Loaded(const std::string& function_id, Load* load);
  void TakeLoaded(FunctionState* function, Load* load);
  static bool StillStored(Call* call, uint32_t idx);
  Input* BringIn(Call* call, const InputKey& key, InputRow row);
  void EndStored(Call* call, uint32_t first);
  Input* Claim(const std::string& input_id);
  void EndClaims();

  // paging
  void AddCall(std::unique_ptr<Call> call);
  void RemoveCall(Call* call);
  Call* ByNumber(uint32_t number) const;
  uint32_t BeginReading(uint32_t number);
  // Whether the call has left the memory since `begun`: what was read of it may be old.
  bool EndReading(uint32_t number, uint32_t begun);
  void ReadCall(const std::string& call_id, uint32_t number);
  Result<Call*> CallIn(const CallScope& scope, const std::string& call_id);
  void CallRead(const std::string& call_id, Result<StoredCall> stored);
  Call* TakeUp(StoredCall stored);
  static void RecoverOutput(Call* call, const OutputKey& key);
  static void RecoverChunk(Call* call, const ChunkKey& key);
  void Idle(Call* call);  // it has ended, or somebody has just looked at it
  void NotIdle(Call* call);
  static bool Waits(const Call& call);  // all that it has is a few inputs in the journal
  bool MayRest(const Call& call) const;
  void Wake(Call* call);  // something new comes to it
  void Leave(Call* call);
  std::string Named(const FunctionState& function, const std::string& text) const {
    return "Function " + function.info.name + ": " + text;
  }

  // outputs
  // What a poll gets. Some of it may be in the journal alone: `missing`, and the places in the page where it
  // goes.
  struct Collected {
    OutputsPage page;
    std::vector<uint32_t> missing;
    std::vector<size_t> places;
    uint64_t room = 0;    // bytes that these may have
    uint32_t cursor = 0;  // of the poll
    std::string_view incarnation;
    void SetCursor();  // of the page
  };
  void ServePoll(const std::shared_ptr<Poll>& poll);
  void AnswerNews(const std::shared_ptr<Poll>& poll, Collected collected);
  void AnswerPoll(const std::shared_ptr<Poll>& poll, Result<Collected> collected);
  void WakePolls(Call* call, uint32_t idx);
  void Remember(Call* call, OutputView output);
  void ForgetFront(Call* call);
  void ForgetRecent(Call* call);
  void TrimRecent();
  Collected Collect(Call* call, const Poll& poll) const;
  Status FillIn(uint32_t number, Collected* collected) const;
  void ReplyWithAll(Call* call, Collected collected, std::function<void(Result<OutputsPage>)> reply);
  void ServeChunks(Call* call);
  void ReadChunks(Call* call, ChunkWait* wait);
  Status CheckChunkRoom(const WorkspaceState& workspace, uint64_t more) const;
  void SetChunk(Call* call, uint64_t index, SharedBytes bytes);
  void DropChunk(Call* call, uint64_t index);
  void DropReadChunks(Call* call, uint64_t last_index);

  // leases
  void Dispatch(FunctionState* function);
  std::vector<TaskState*> TasksForWork(const FunctionState& function);  // may get leases now
  bool HasRoom(const std::string& worker_id);  // for leases; dispatches again once it has
  void DispatchBatches(FunctionState* function);
  void Lease(TaskState* task, Input* input, uint64_t batch);
  uint32_t PrefetchDepth(const TaskState& task) const;
  void HeadChanged(TaskState* task);
  void ArmDeadline(TaskState* task);
  void CheckDeadlines(TaskState* task);
  void ArmRecall(TaskState* task);
  void Recall(TaskState* task);
  void Ack(const std::string& worker_id, const LeaseRef& ref);
  void PostFlush();
  void FlushOutbox();
  void ArmAcks();
  struct Outbox {
    std::vector<Leases> leases;        // a message each; the last is open for more
    size_t open_bytes = 0, bytes = 0;  // of the open one, of all
    OutputAcks acks;
    bool flushed = false;  // leases left, with acknowledgements, in this turn of the timer
  };
  void FlushAcks(const std::string& worker_id, Outbox& out);
  void Write(Journal::Record record);
  void TakeOutputs(const std::string& worker_id, Outputs& outputs);
  void TakeOutput(const std::string& worker_id, Output& output);

  // tasks
  void StartTask(FunctionState* function, const std::string& worker_id,
                 std::shared_ptr<Builder> builder = nullptr);
  void SpecMade(const std::string& task_id, Result<TaskSpec> spec);
  void Started(TaskState* task, const TaskUpdate& update);
  void Ready(TaskState* task);
  void InitFailed(TaskState* task, const TaskUpdate& update);
  void Refused(TaskState* task, const TaskUpdate& update);
  void Closed(TaskState* task);
  void ProcessEnded(TaskState* task, const TaskExit& exit);
  void Exited(TaskState* task, const TaskUpdate& update);
  void StartFailed(FunctionState* function, const std::string& text, bool permanent);
  void SettleLeases(TaskState* task, const TaskExit& exit);
  // The task is over: its inputs are settled already.
  void EndTask(TaskState* task, const std::string& exit_text);
  void LoseTask(TaskState* task, const std::string& why);
  void SendStop(TaskState* task, StopTask::Mode mode, uint32_t grace_ms, const std::string& reason);
  void ArmStartup(TaskState* task);
  void TaskLogged(const std::string& app_id, std::vector<std::function<void(Status)>> waiters);
  void CheckAppStopped(AppState* app);
  void LogTaskState(const TaskState& task, int state, std::function<void()> stored = nullptr);
  void SaveTask(TaskState* task);
  void BuilderEnded(TaskState* task, const TaskUpdate* update, const std::string& text);
  void PlaceBuilder(FunctionState* function, std::shared_ptr<Builder> builder);
  AppState* app(const std::string& id);
  WorkspaceState* workspace(const std::string& id);
  TaskState* FindTask(const std::string& id);
  void SetIdentity(const TaskState& task);

  // scale
  void PostScale();
  void Scale();
  void DropStarts(FunctionState* function, const std::string& reason);

  // workers
  void OnWorkerHello(const std::string& worker_id, const Holdings& held, ForgetTasks* forget) override;
  void OnWorkerReady(const std::string& worker_id) override;
  void OnWorkerMessage(const std::string& worker_id, FromWorker message) override;
  void OnWorkerCapacity(const std::string& worker_id) override;
  void OnWorkerLost(const std::string& worker_id) override;
  void Adopt(TaskState* task, const RunningTask& running);
  void OnTaskUpdate(const std::string& worker_id, const TaskUpdate& update);
  void OnLogs(const std::string& worker_id, LogBatch& batch);
  void OnDemand(const InputDemand& demand);
  void OnGiveBack(const GiveBack& back);
  void HoldOff(TaskState* task);

  // recovery
  Status Recover();
  void RecoverApps(JournalVisitor* visitor);
  void RecoverCalls(JournalVisitor* visitor, std::vector<uint32_t>* orphans);
  void RecoverCall(StoredCall stored, std::vector<uint32_t>* orphans);
  void RecoverTask(TaskRow row);
  void RecoveryOver(const std::string& worker_id);

  const EngineOptions options_;
  const std::string incarnation_;
  Clock& clock_;
  PatientClock ages_;  // on the strand
  TaskSpecSource* spec_source_ = nullptr;
  std::function<size_t()> workspace_count_ = [] { return size_t{1}; };

  std::map<std::string, std::unique_ptr<AppState>> apps_;
  std::unordered_map<std::string, std::unique_ptr<FunctionState>> functions_;
  std::unordered_map<std::string_view, std::unique_ptr<Call>> calls_;  // keys are the calls' own ids
  std::unordered_map<uint32_t, Call*> by_number_;
  std::unordered_map<std::string_view, Input*> inputs_;  // keys are the inputs' own ids
  std::unordered_map<std::string, std::unique_ptr<TaskState>> tasks_;
  std::unordered_map<std::string, Idempotent> idempotent_;  // by KeyDigest
  std::deque<std::pair<double, std::string>> keys_;         // of these, by their time
  std::unordered_map<uint64_t, std::shared_ptr<Poll>> polls_;
  struct Acked {
    std::string call_id;
    int64_t due;
  };
  std::deque<Acked> acked_;
  uint64_t acked_bytes_ = 0;
  std::list<Call*> with_recent_;  // outputs in memory, by the last of them
  uint64_t recent_bytes_ = 0;
  std::list<Call*> idle_;  // ended, by when somebody was interested in them last
  uint64_t idle_bytes_ = 0;
  std::unordered_map<std::string, std::vector<std::function<void(const Status&)>>>
      paging_;  // being read, by id
  struct Reading {
    uint32_t readers = 0;
    uint32_t departures = 0;  // of the call from memory, meanwhile
  };
  std::unordered_map<uint32_t, Reading> reading_;  // calls by number
  // After a restart, by a hash of their ids: inputs in the journal that a container may hold or have
  // answered.
  std::unordered_map<uint64_t, InputKey> unclaimed_;
  std::unordered_set<uint64_t> claimed_;   // row ids: they stay in `stored` until it is their turn
  std::unordered_set<uint64_t> asking_;    // handles of those who wait for a call; who takes it back leaves
  std::unordered_set<uint32_t> dropping_;  // calls of which the journal still has rows
  bool drop_timer_ = false;
  uint32_t next_call_ = 1;
  uint64_t next_batch_ = 1;
  double start_ms_ = 0;        // of any function's containers, on average
  Held held_;                  // unfinished inputs
  uint64_t queued_bytes_ = 0;  // of the payloads in the queues
  uint64_t chunk_bytes_ = 0;   // of generators, those on their way into the journal too
  std::unordered_map<std::string, std::unique_ptr<WorkspaceState>> workspaces_;
  uint64_t waiting_inputs_ = 0;  // in the queues, and stored
  std::map<std::string, Outbox> outbox_;
  std::set<std::string> crowded_;  // workers whose streams are full: leases wait until they have drained
  bool flush_posted_ = false, scale_posted_ = false;
  bool acks_timer_ = false;
  std::optional<std::vector<Journal::Record>>
      written_;  // gathered while the outputs of one message are taken
  std::optional<std::pair<int64_t, Strand::TimerId>> scale_timer_;
  std::set<std::string>
      recovering_;  // workers whose tasks may still hold inputs: nothing is leased before they said
  std::atomic<uint64_t> next_handle_{1};
  std::vector<std::pair<FunctionState*, std::shared_ptr<Builder>>> waiting_builders_;

  mutable std::mutex identities_mutex_;  // guards identities_
  std::unordered_map<std::string, TaskIdentity> identities_;

  std::unique_ptr<Journal> journal_;
  Pool pool_;
  Pool results_pool_;    // apart: starts of containers don't wait for who reads old results
  Pool inputs_pool_;     // apart: inputs come from the journal whoever reads results
  Pool questions_pool_;  // apart: nor do results wait for who asks about all calls of a function
  Strand strand_;        // last: stops first
  WorkerRegistry registry_;
};

}  // namespace lydian::control
