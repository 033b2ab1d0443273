// Logs of apps and builds: appended by the engine (tasks), the image service (builds) and the system; read by
// AppGetLogs, AppFetchLogs, ImageJoinStreaming and the app's page. Kept on disk (logs.db), read back after a
// restart.
//
// A stream ("ap-..." or "im-...") has entries in order, each with a cursor "<seq>-0" that only grows. `done`
// closes a stream: it stays readable, and a reader that comes later is told so. A stream, and all of them
// together, have a quota of bytes, and lines an age: the oldest make room, also while more are written, and
// one line in their place says so. Who asks for what is gone goes on with the oldest that is there.
//
// Thread-safety: every method from any thread. Append returns before the entry is on disk; `stored` runs (on
// the store's thread) once it is written to the kernel.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace lydian::control {

struct LogRecord {
  uint64_t seq = 0;  // set by the store
  int64_t unix_nanos = 0;
  int file_descriptor = 1;  // 1 stdout, 2 stderr, 3 info; 0 = no text: a task state
  int task_state = 0;       // modal.client.TaskState, when file_descriptor is 0
  std::string task_id, function_id, root_function_id, input_id, function_call_id, container_id;
  std::string data;  // valid UTF-8
};

struct LogFilter {
  std::string task_id, function_id, function_call_id;
  int file_descriptor = 0;  // 0 = all
  bool text_only = false;   // no task states
  int64_t since_nanos = 0, until_nanos = INT64_MAX;
};

class LogStore {
 public:
  virtual ~LogStore() = default;
  virtual void Append(const std::string& stream, std::vector<LogRecord> records,
                      std::function<void()> stored = nullptr) = 0;
  virtual void MarkDone(const std::string& stream) = 0;
  virtual void Reopen(const std::string& stream) = 0;  // a build that runs again under the same id

  struct Page {
    std::vector<LogRecord> records;  // after the cursor, in order, up to `most` records or about 1 MiB
    bool done = false;               // the stream is closed and this page holds its end
  };
  // Reply comes at once if there is anything (or done), else when there is, or empty after `wait`. Returns a
  // handle; destroying it takes the question back.
  virtual std::shared_ptr<void> Read(const std::string& stream, uint64_t after_seq, const LogFilter& filter,
                                     size_t most, int64_t wait_millis,
                                     std::function<void(Result<Page>)> reply) = 0;

  // The newest `most` records, in order, about a page at most; at once.
  virtual std::shared_ptr<void> ReadNewest(const std::string& stream, size_t most,
                                           std::function<void(Result<Page>)> reply) {
    return Read(stream, 0, {}, most, 0, std::move(reply));
  }

  // The last `most` records (about `bytes` of them at most) that match and have `text` in them, in order,
  // read from the end of the stream.
  virtual std::shared_ptr<void> ReadLast(const std::string& stream, const LogFilter& filter,
                                         const std::string& text, size_t most, uint64_t bytes,
                                         std::function<void(Result<Page>)> reply) = 0;

  struct StreamSize {
    std::string stream;
    uint64_t bytes = 0;
  };
  // What each has on disk, about. Blocks.
  virtual Result<std::vector<StreamSize>> Sizes() { return std::vector<StreamSize>(); }

  // Of a container, read from its spools up to these offsets: what is already stored up to there is dropped,
  // whole.
  virtual void AppendFromTask(const std::string& stream, std::vector<LogRecord> records,
                              const std::string& task_id, uint64_t stdout_offset, uint64_t stderr_offset,
                              std::function<void()> stored) {
    (void)task_id, (void)stdout_offset, (void)stderr_offset;
    Append(stream, std::move(records), std::move(stored));
  }
  // How far the task's spools are stored; 0, 0 for an unknown one. On the store's thread.
  virtual void TaskOffsets(const std::string& task_id,
                           std::function<void(uint64_t stdout_offset, uint64_t stderr_offset)> reply) {
    (void)task_id;
    reply(0, 0);
  }
};

struct LogQuota {
  uint64_t stream_bytes = uint64_t{256} << 20;  // of an app or a build
  uint64_t total_bytes = uint64_t{4} << 30;     // the largest ones make room
  double age_secs = 30 * 86'400;                // of a line, also while its app lives
};

// Opens or creates the store at `path` (logs.db). `clock`: by which lines grow old.
Result<std::unique_ptr<LogStore>> OpenLogStore(const std::string& path, LogQuota quota = {},
                                               Clock& clock = SystemClock());

}  // namespace lydian::control
