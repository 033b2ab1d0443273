// What the call engine holds in memory. Private to call_engine*.cc; only touched on the engine's strand.
// Ownership: an app its functions, a call its unfinished inputs and its outputs; the engine all apps, calls
// and tasks.
#pragma once

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "control/call_engine.h"
#include "control/index_set.h"
#include "control/output_index.h"

namespace lydian::control {

// The id of call `number`: its last six characters say the number, so that a call that isn't in memory is
// found by its key. Whether the rest is right shows the journal's row.
std::string MakeCallId(uint32_t number);
std::optional<uint32_t> CallNumberIn(std::string_view call_id);
// The same for the same place in the same call, so that an answer can be given again without having been
// kept.
std::string InputId(const std::string& call_id, uint32_t idx);
// Of an idempotency key, short enough to need no memory beside the string itself. "" of "".
std::string KeyDigest(const std::string& key);

// What is held for someone: unfinished inputs and their payloads.
struct Held {
  uint64_t inputs = 0, bytes = 0;
  void Add(uint64_t size) { ++inputs, bytes += size; }
  void Remove(uint64_t size) { --inputs, bytes -= size; }
};

struct Call;
struct FunctionState;
struct TaskState;

struct Input {
  enum class State {
    kJournalling,  // not in the journal yet: nobody knows of it
    kQueued,       // in the function's queue
    kDelayed,      // waits for its next attempt
    kLeased,       // a task holds it
    kFinishing,    // its output is on its way into the journal
  };
  Call* call = nullptr;
  uint32_t idx = 0;
  uint32_t attempt = 0;
  State state = State::kJournalling;
  bool cancelled = false;
  uint32_t bytes = 0;  // of the payload, as it is counted
  std::string id, method;
  SharedBytes payload;
  // kQueued
  std::list<Input*>::iterator queue_at;
  int64_t queued_nanos = 0;
  // kLeased
  TaskState* task = nullptr;
  std::list<Input*>::iterator lease_at;
  uint64_t epoch = 0;
  int64_t leased_nanos = 0;  // when the task could begin it
  uint64_t batch = 0;
  bool recalled = false;
  // kDelayed
  std::optional<Strand::TimerId> timer;
};

struct Poll {
  uint64_t id = 0;
  Call* call = nullptr;
  OutputsQuery query;
  uint32_t cursor = 0;  // of last_entry_id
  std::function<void(Result<OutputsPage>)> reply;
  std::optional<Strand::TimerId> deadline, coalesce;
  bool coalesced = false;  // the gathering time is over
  bool last = false;       // gathers for the shorter time
};

struct ChunkWait {
  uint64_t id = 0;
  uint64_t last_index = 0;
  bool reading = false;  // in the journal
  std::function<void(Result<DataChunks>)> reply;
};

struct Call {
  uint32_t number = 0;
  std::string id, parent_input_id, idempotency_key;
  FunctionState* function = nullptr;
  int32_t call_type = kCallUnary, invocation_type = kSync;
  double created_at = 0;
  bool committed = false, cancelled = false;
  bool acked = false;  // in the queue to be dropped
  uint32_t total = 0, unfinished = 0;
  uint32_t stored = 0;  // of the unfinished: in the journal alone
  uint32_t next_seq = 1;
  IndexSet seen;  // by idx: put already, finished ones too
  std::unordered_map<uint32_t, std::unique_ptr<Input>, IndexHash> inputs;  // unfinished in memory, by idx
  OutputIndex outputs;                                                     // journalled
  RecentOutputs recent;                                                    // of these, in memory
  uint64_t output_bytes = 0;
  std::optional<std::list<Call*>::iterator> recent_at;  // in with_recent_
  uint32_t readers = 0;                                 // of rows in the journal
  std::list<std::shared_ptr<Poll>> polls;
  struct Chunk {
    uint64_t bytes = 0;
    SharedBytes data;  // null: in the journal alone
  };
  std::map<uint64_t, Chunk> chunks;
  uint64_t chunk_bytes = 0;    // of those in memory
  uint64_t chunks_stored = 0;  // of all
  std::list<ChunkWait> chunk_waits;
  int64_t chunks_read_nanos = 0;
  double finished_at = 0;
  std::optional<std::list<Call*>::iterator> idle_at;  // in idle_
  uint64_t idle_bytes = 0;                            // counted while it is there
  bool resting = false;                               // the journal has it as resting
  // A builder's call lives in memory alone and tells this.
  std::function<void(const OutputView&)> builder;

  bool synchronous() const { return invocation_type == kSync || invocation_type == kSyncLegacy; }
};

struct Builder {
  std::string input;  // payload
  std::function<void(BuilderOutcome)> done;
  std::unique_ptr<Call> call;
  std::optional<OutputView> output;
  uint32_t tries = 0;
};

struct TaskState {
  enum class State {
    kMaking,    // its spec is being made
    kStarting,  // sent to the worker
    kReady,
    kStopping,  // no more inputs
  };
  std::string id;
  FunctionState* function = nullptr;
  std::string worker_id;
  State state = State::kMaking;
  TaskRow row;
  std::list<Input*> leases;    // in the order in which they were sent
  bool retired = false;        // of an older definition
  bool missing = false;        // not named by a worker that came back
  bool closed = false;         // its worker says that it takes no more inputs
  bool process_ended = false;  // and what it held is settled
  bool killed_for_timeout = false, cancel_killed = false;
  bool used = false;  // single_use: has had its input
  std::optional<StopTask::Mode> stop_sent;
  StopTask stop;
  uint32_t given_back = 0;        // times in a row that it gave back what it wasn't asked for
  int64_t leases_not_before = 0;  // for that reason
  int64_t idle_since = 0;
  int64_t begun_nanos = 0;  // when its start was decided
  int64_t head_nanos = 0;   // since when it works on the first of `leases`
  uint64_t open_batch = 0;  // the newest batch, and how many inputs went into it
  size_t open_batch_size = 0;
  std::optional<Strand::TimerId> deadline, recall, startup;
  std::vector<std::function<void(Status)>> stop_waiters;
  std::shared_ptr<Builder> builder;

  bool alive_for_work() const {
    return state != State::kStopping && !retired && !missing && !closed && builder == nullptr;
  }
};

struct AppState {
  std::string id;
  bool active = false, stopped = false;
  std::string stop_reason;
  std::vector<FunctionState*> functions;
  size_t tasks = 0;  // not ended, with logs not stored
  std::vector<std::function<void()>> stop_waiters;
};

constexpr uint64_t kOwnShare = 100;  // this part of what all have is each workspace's own, however full it is

// A budget of its own for each workspace, so that what one does slows itself alone.
struct WorkspaceState {
  size_t number = 0;  // in the order in which they were met
  Held held;
  uint64_t chunk_bytes = 0;
  uint64_t chunk_bytes_written = 0;  // on their way into the journal
  // By the id of an input: synchronous calls that it made and that are not finished.
  std::unordered_map<std::string, uint32_t> blocking_calls;
};

struct FunctionState {
  FunctionInfo info;
  AppState* app = nullptr;
  WorkspaceState* workspace = nullptr;
  Held held;
  std::list<Input*> queue;    // those that come next
  uint64_t queued_bytes = 0;  // of their payloads
  // Those behind, in the journal alone (call_engine_stored.cc). Some may have ended or been claimed.
  std::deque<InputKey> stored;
  uint64_t stored_count = 0;  // that wait: in `stored`, or being loaded
  bool loading = false;
  std::vector<Task> after_load;
  uint64_t delayed = 0, leased = 0;
  std::vector<TaskState*> tasks;  // alive; builders' too
  uint32_t start_failures = 0;
  int64_t not_before = 0;  // back-off
  std::string last_start_error;
  double start_ms = 0;  // of a container, until it was ready; 0 = unknown
  double run_ms = 0;    // moving average of an input's time in a container; 0 = unknown
  uint64_t calls = 0;   // in memory

  uint64_t waiting() const { return queue.size() + stored_count; }
};

}  // namespace lydian::control
