// What the log store holds in memory, on its strand: what waits to be written, who asks, and what is known of
// each stream. Private to the log store. Thread-safety: none.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "control/log_store.h"

namespace lydian::control {

struct LogChange {
  enum Kind { kAppend, kDone, kReopen } kind;
  std::string stream;
  std::vector<LogRecord> records;
  std::function<void()> stored;
  std::string task_id;
  uint64_t stdout_offset = 0, stderr_offset = 0;
};
// Held by the asker alone; the store has weak pointers.
struct LogQuestion {
  std::string stream;
  uint64_t after = 0;
  LogFilter filter;
  size_t most = 0;
  SteadyTime deadline;
  bool timer_set = false;
  std::function<void(Result<LogStore::Page>)> reply;
};
struct LogStreamState {
  int64_t number = 0;  // 0 = nothing stored
  uint64_t last = 0;
  bool done = false;
  uint64_t bytes = 0, dropped = 0;  // stored; lines that made room
  uint64_t trimmed = 0;             // the line that says so
  std::deque<LogRecord> tail;
  size_t tail_bytes = 0;
  std::vector<std::weak_ptr<LogQuestion>> waiting;
};

// Without what it holds of lines and readers: what a transaction that fails takes back.
inline LogStreamState Scalars(const LogStreamState& state) {
  LogStreamState copy;
  copy.number = state.number, copy.last = state.last, copy.done = state.done;
  copy.bytes = state.bytes, copy.dropped = state.dropped, copy.trimmed = state.trimmed;
  return copy;
}

}  // namespace lydian::control
