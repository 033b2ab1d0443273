// The journal of calls (calls.db): every call, input and output is in it before anybody is told that it
// exists.
//
// Group commit: a thread of its own takes whatever has gathered and commits it as one transaction; what comes
// meanwhile is the next group. There is no timer: an idle journal commits at once. Callbacks run in order on
// the engine's strand (through `post`).
//
// Thread-safety: Append and the record makers from any thread. Load before the first Append.
// Errors: on a full disk a record fails with RESOURCE_EXHAUSTED, unless it is `must` (an output, a task's
// end): those stay in memory, unacknowledged, and are written once there is room, and so they do whatever
// else keeps them from being written, unless it is their own content. What was committed is on the disk a
// second later at most. A disk that fails ends the process (store/disk_failure.h). docs/formats/journal.md.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/executor.h"
#include "base/status.h"
#include "control/engine.h"
#include "store/database.h"

namespace lydian::control {

using SharedBytes = std::shared_ptr<const std::string>;

struct CallRow {
  uint32_t number = 0;  // grows; the upper half of the row ids of its inputs, outputs and chunks
  std::string call_id, function_id, app_id, parent_input_id, idempotency_key;
  int32_t call_type = 0, invocation_type = 0;
  double created_at = 0;
  bool cancelled = false;
  // Since when nothing of it is in memory: its last output's time. 0: it is in memory.
  double resting_at = 0;
};

struct InputRow {
  uint32_t call = 0, idx = 0, attempt = 0;
  std::string input_id, method;
  SharedBytes payload;
};

struct OutputRow {
  uint32_t call = 0, seq = 0, idx = 0;
  std::string input_id, task_id;
  int32_t status = 0, data_format = 0;
  SharedBytes result;  // a container's; null when `text` says what went wrong
  std::string text;
  double started_at = 0, created_at = 0;
};

// What is kept of every output in memory while its call is.
struct OutputKey {
  uint32_t seq = 0, idx = 0;
  int32_t status = 0;
};

// How outputs ended.
struct OutputCounts {
  uint32_t succeeded = 0, failed = 0, timed_out = 0, cancelled = 0;
  void Add(int32_t status, uint32_t count = 1);
};

struct ChunkKey {
  uint32_t idx = 0;
  uint64_t bytes = 0;
};

struct ChunkRow {
  uint32_t call = 0, idx = 0;
  SharedBytes chunk;  // modal.client.DataChunk
};

struct TaskRow {
  std::string task_id, function_id, app_id, worker_id, container_id, function_name, workspace_id, environment,
      state, ip, exit_text;
  bool restricted = false, ended = false;
  bool builder = false;                     // runs for a layer, and whoever asked is only in memory
  std::optional<StopTask::Mode> stop_mode;  // the hardest that was asked for
  int pid = 0;
  double enqueued_at = 0, started_at = 0, finished_at = 0;
};

// Of an unfinished input, what is kept in memory while it waits in the journal alone.
struct InputKey {
  uint32_t call = 0, idx = 0;
  uint32_t bytes = 0;  // of its payload
};

// A call as it is taken up from the journal: without payloads, results and generators' data.
struct StoredCall {
  CallRow row;
  std::vector<OutputKey> outputs;  // by seq
  std::vector<InputKey> inputs;    // unfinished ones, by idx
  std::vector<ChunkKey> chunks;    // by idx
};

// Who takes what a restarted engine finds, in this order. A row that makes no sense is left where it is, with
// an error in the log: it keeps nothing else from being read.
struct JournalVisitor {
  std::function<void(const std::string& app_id, const std::string& state)> app;  // "active", "stopped"
  std::function<void(FunctionInfo)> function;
  std::function<void(const std::string& function_id)> damaged_function;
  std::function<void(TaskRow)> task;               // alive ones
  std::function<void(uint32_t number)> last_call;  // the highest number in use
  std::function<void(StoredCall)> call;            // those that don't rest, by number
  std::function<void(uint32_t number)> dropping;   // was being dropped, in part
  std::function<void(CallRow)> resting;            // of these the newest, for their idempotency keys
};

// For questions about a call and what it called.
struct GraphRows {
  struct Node {
    std::string input_id, task_id;
    uint32_t idx = 0;
    int32_t status = 0;  // 0: not finished
  };
  struct OneCall {
    CallRow row;
    std::vector<Node> inputs;
  };
  std::vector<OneCall> calls;
  bool truncated = false;
};

class Journal {
 public:
  struct Record {
    std::function<Status(store::Session&)> apply;
    std::function<void(Status)> done;  // on the strand; may be null
    bool durable = false;              // on the disk before done
    bool must = false;                 // fails for its own content alone: else it waits
  };

  // `post` runs a function on the engine's strand.
  static Result<std::unique_ptr<Journal>> Open(const std::string& path, std::function<void(Task)> post);
  ~Journal();  // writes what has gathered

  // `resting_since`: calls that rest since then are told to `resting`.
  Status Load(const JournalVisitor& visitor, double resting_since);
  // With `alone`, when nothing else is about to come, the record is committed on the calling thread if that
  // is possible: a commit takes less time than waking the journal's thread. `done` never runs within the
  // call.
  void Append(Record record, bool alone = false);
  void Append(std::vector<Record> group, bool alone = false);  // one transaction if all goes well

  // Record makers: what to write, without callbacks.
  static Record PutCall(CallRow call, std::vector<InputRow> inputs);
  static Record PutInputs(std::vector<InputRow> inputs);
  static Record Finish(std::vector<OutputRow> outputs);  // outputs in, their inputs out
  static Record SetAttempt(uint32_t call, uint32_t idx, uint32_t attempt);
  static Record SetCancelled(uint32_t call);
  static Record PutChunks(std::vector<ChunkRow> chunks);
  static Record DropChunks(uint32_t call, uint32_t first, uint32_t last);  // both included
  static Record Rest(uint32_t call, double since);                         // 0: it is in memory again
  // About a thousand rows of them; `left` gets the calls of which there are more. Those are neither loaded
  // nor found any more.
  static Record DropCalls(std::vector<uint32_t> calls, std::shared_ptr<std::vector<uint32_t>> left);
  static Record PutTask(TaskRow task);
  static Record DropTasks(double finished_before);
  static Record PutFunction(FunctionInfo info);
  static Record DropFunctions(std::vector<std::string> function_ids);
  static Record PutApp(std::string app_id, std::string state);

  // Blocking reads for questions about the past; from a pool.
  Result<TaskRow> TaskById(const std::string& task_id);
  // Those of these blobs that an unfinished input, a result or a generator's data names.
  Result<std::set<std::string>> BlobsInUse(const std::vector<std::string>& blob_ids);
  // In the order of `seqs`, until they are more than `most_bytes`, but one. NOT_FOUND when one isn't there
  // any more.
  Result<std::vector<OutputRow>> Outputs(uint32_t call, const std::vector<uint32_t>& seqs,
                                         uint64_t most_bytes);
  // From `first` on without a gap, until they are more than `most_bytes`, but one.
  Result<std::vector<ChunkRow>> Chunks(uint32_t call, uint32_t first, uint64_t most_bytes);
  // One for each key, in their order; without a payload when it isn't there any more.
  Result<std::vector<InputRow>> Inputs(const std::vector<InputKey>& keys);
  // Of a call, at most `most`, by idx from `first` on.
  Result<std::vector<InputKey>> InputKeys(uint32_t call, uint32_t first, size_t most);
  // NOT_FOUND when it isn't there or is being dropped.
  Result<StoredCall> FindCall(uint32_t number);
  // The newest `most` of a function, by number from the highest on, how their outputs ended, and how many
  // inputs haven't.
  Status CallsOf(const std::string& function_id, size_t most,
                 const std::function<void(const CallRow&, const OutputCounts&, uint32_t pending)>& take);
  // `root` and what its inputs called, in breadth, up to `most` inputs, with `most` calls waiting for theirs.
  Result<GraphRows> Graph(uint32_t root, size_t most);
  struct OldCall {
    uint32_t number = 0;
    std::string call_id;
  };
  // Resting calls whose time is over, at most `most`: synchronous ones since `sync`, those of stopped apps
  // since `stopped`, all others since `async`.
  Result<std::vector<OldCall>> OldCalls(double sync, double stopped, double async, size_t most);
  // Which of these functions have no call.
  Result<std::vector<std::string>> WithoutCalls(const std::vector<std::string>& function_ids);

 private:
  Journal(std::unique_ptr<store::Database> database, std::function<void(Task)> post);
  void Loop();
  void CommitGroup(std::vector<Record>& group);
  Status Write(std::vector<Record>& group);
  bool SyncIsDue() const;  // so old is what isn't on the disk
  void Sync(std::unique_lock<std::mutex>& lock);

  std::unique_ptr<store::Database> database_;
  std::function<void(Task)> post_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::vector<Record> gathered_;
  bool stopping_ = false;
  bool committing_ =
      false;  // who has set it may touch the database and `waiting_` and `unsynced_since_` without the mutex
  bool sync_armed_ = false;  // the thread will look at unsynced_ by itself
  // Since when something committed is not on the disk yet.
  std::optional<SteadyTime> unsynced_since_;
  std::vector<Record> waiting_;  // `must` records without room, in order
  std::thread thread_;
};

}  // namespace lydian::control
