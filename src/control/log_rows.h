// The tables of logs.db and how lines are read from them: docs/formats/log-store.md. Private to the log
// store. Thread-safety: pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "control/log_store.h"
#include "store/database.h"

namespace lydian::control {

std::vector<store::Migration> LogMigrations();

// The row id of line `seq` of a stream: a stream's lie together, in their order.
int64_t LogRowId(int64_t stream, uint64_t seq);

constexpr uint64_t kLogRowBytes = 200;  // of a row beside its text, with what SQLite adds
size_t LogBytes(const LogRecord& record);

bool MatchesFilter(const LogFilter& filter, const LogRecord& record);

constexpr size_t kLogPageBytes = 1 << 20;

// A page being filled: what matches, up to its bounds.
struct LogPageFill {
  LogStore::Page page;
  size_t bytes = 0, most;
  uint64_t last = 0;  // looked at, matching or not
  bool full() const { return page.records.size() >= most || bytes >= kLogPageBytes; }
  void Offer(const LogFilter& filter, LogRecord record);
};

// Both read slices of some thousand rows, so that no statement holds a state of the database for long, and
// end with CANCELLED between two when `wanted` says no.

// A page of the lines behind `after` up to `last`.
Result<LogPageFill> ReadLogPage(store::Database& database, int64_t stream, uint64_t after, uint64_t last,
                                const LogFilter& filter, size_t most, const std::function<bool()>& wanted);

// From the end until it has `most` lines or bytes, or what comes is older than the filter's beginning by so
// much that no clock's step explains it. In their order.
Result<LogStore::Page> ReadNewestLogs(store::Database& database, int64_t stream, const LogFilter& filter,
                                      const std::string& text, size_t most, uint64_t most_bytes,
                                      const std::function<bool()>& wanted);

}  // namespace lydian::control
