#include "control/log_rows.h"

#include <algorithm>

namespace lydian::control {

std::vector<store::Migration> LogMigrations() {
  return {{1, R"sql(
CREATE TABLE stream (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, done INTEGER NOT NULL, changed_at INTEGER NOT NULL);
CREATE TABLE log (
  id INTEGER PRIMARY KEY, unix_nanos INTEGER NOT NULL, fd INTEGER NOT NULL, task_state INTEGER NOT NULL, task_id TEXT NOT NULL,
  function_id TEXT NOT NULL, root_function_id TEXT NOT NULL, input_id TEXT NOT NULL, function_call_id TEXT NOT NULL,
  container_id TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE spool (task_id TEXT PRIMARY KEY, stdout_offset INTEGER NOT NULL, stderr_offset INTEGER NOT NULL, at INTEGER NOT NULL);
)sql"},
          {2, R"sql(
ALTER TABLE stream ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE stream ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
UPDATE stream SET bytes = (SELECT COALESCE(SUM(LENGTH(CAST(data AS BLOB)) + 200), 0) FROM log
  WHERE id > stream.number * 4294967296 AND id < (stream.number + 1) * 4294967296);
)sql"},
          {3, "CREATE INDEX stream_by_bytes ON stream (bytes);"},
          {4, "CREATE INDEX spool_by_time ON spool (at);"}};
}

int64_t LogRowId(int64_t stream, uint64_t seq) {
  return (stream << 32) | static_cast<int64_t>(seq & UINT32_MAX);
}

size_t LogBytes(const LogRecord& record) { return record.data.size() + kLogRowBytes; }

bool MatchesFilter(const LogFilter& filter, const LogRecord& record) {
  return (filter.task_id.empty() || filter.task_id == record.task_id) &&
         (filter.function_id.empty() || filter.function_id == record.function_id ||
          filter.function_id == record.root_function_id) &&
         (filter.function_call_id.empty() || filter.function_call_id == record.function_call_id) &&
         (!filter.text_only || record.file_descriptor != 0) &&
         (filter.file_descriptor == 0 || filter.file_descriptor == record.file_descriptor) &&
         record.unix_nanos >= filter.since_nanos && record.unix_nanos <= filter.until_nanos;
}

void LogPageFill::Offer(const LogFilter& filter, LogRecord record) {
  last = record.seq;
  if (!MatchesFilter(filter, record)) return;
  bytes += LogBytes(record);
  page.records.push_back(std::move(record));
}

namespace {

constexpr int64_t kSliceRows = 4096;

#define LOG_COLUMNS                                                                    \
  "id, unix_nanos, fd, task_state, task_id, function_id, root_function_id, input_id, " \
  "function_call_id, container_id, data FROM log WHERE id > ? AND id <= ? AND unix_nanos BETWEEN ? AND ? "

LogRecord ReadLogRecord(store::Row& row) {
  LogRecord record;
  record.seq = static_cast<uint64_t>(row.Int(0)) & UINT32_MAX;
  record.unix_nanos = row.Int(1);
  record.file_descriptor = static_cast<int>(row.Int(2));
  record.task_state = static_cast<int>(row.Int(3));
  record.task_id = row.TakeText(4);
  record.function_id = row.TakeText(5);
  record.root_function_id = row.TakeText(6);
  record.input_id = row.TakeText(7);
  record.function_call_id = row.TakeText(8);
  record.container_id = row.TakeText(9);
  record.data = row.TakeText(10);
  return record;
}

// The first id of those asked for, `otherwise` without one.
Result<int64_t> FirstId(store::Database& database, std::string_view sql, const store::Params& params,
                        int64_t otherwise) {
  RETURN_IF_ERROR(database.ForEach(sql, params, [&](store::Row& row) -> Status {
    otherwise = row.Int(0);
    return {};
  }));
  return otherwise;
}

Status Unwanted() { return Cancelled("whoever asked has gone"); }

}  // namespace

Result<LogPageFill> ReadLogPage(store::Database& database, int64_t stream, uint64_t after, uint64_t last,
                                const LogFilter& filter, size_t most, const std::function<bool()>& wanted) {
  LogPageFill filling{{}, 0, most};
  Status end = Cancelled("");  // how the walk is ended at a full page
  const int64_t end_id = LogRowId(stream, last);
  for (int64_t from = LogRowId(stream, after); from < end_id;) {
    if (!wanted()) return Unwanted();
    ASSIGN_OR_RETURN(const int64_t to, FirstId(database,
                                               "SELECT id FROM log WHERE id > ? AND id <= ? ORDER BY id "
                                               "LIMIT 1 OFFSET ?",
                                               {from, end_id, kSliceRows - 1}, end_id));
    const Status status =
        database.ForEach("SELECT " LOG_COLUMNS "ORDER BY id",
                         {from, to, filter.since_nanos, filter.until_nanos}, [&](store::Row& row) -> Status {
                           if (filling.full()) return end;
                           filling.Offer(filter, ReadLogRecord(row));
                           return {};
                         });
    if (status.code() == Code::kCancelled) return filling;
    if (!status.ok()) return status;
    from = to;
  }
  // It came to the end: lines that have gone since don't make it ask for them again.
  filling.last = last;
  return filling;
}

Result<LogStore::Page> ReadNewestLogs(store::Database& database, int64_t stream, const LogFilter& filter,
                                      const std::string& text, size_t most, uint64_t most_bytes,
                                      const std::function<bool()>& wanted) {
  constexpr int64_t kSlack = int64_t{3600} * 1'000'000'000;
  LogStore::Page page;
  uint64_t bytes = 0;
  bool over = false;
  Status end = Cancelled("");  // how the walk is ended
  const int64_t begin = LogRowId(stream, 0);
  for (int64_t to = LogRowId(stream, UINT32_MAX); to > begin && !over;) {
    if (!wanted()) return Unwanted();
    ASSIGN_OR_RETURN(const int64_t first, FirstId(database,
                                                  "SELECT id FROM log WHERE id > ? AND id <= ? ORDER BY id "
                                                  "DESC LIMIT 1 OFFSET ?",
                                                  {begin, to, kSliceRows - 1}, begin + 1));
    // Older ones are read for the slack's sake; what is younger than its end is passed over.
    const Status status =
        database.ForEach("SELECT " LOG_COLUMNS "ORDER BY id DESC", {first - 1, to, 0, filter.until_nanos},
                         [&](store::Row& row) -> Status {
                           over = page.records.size() >= most || bytes >= most_bytes ||
                                  (filter.since_nanos > kSlack && row.Int(1) < filter.since_nanos - kSlack);
                           if (over) return end;
                           LogRecord record = ReadLogRecord(row);
                           if (!MatchesFilter(filter, record) || record.data.find(text) == std::string::npos)
                             return {};
                           bytes += LogBytes(record);
                           page.records.push_back(std::move(record));
                           return {};
                         });
    if (!status.ok() && status.code() != Code::kCancelled) return status;
    to = first - 1;
  }
  std::reverse(page.records.begin(), page.records.end());
  return page;
}

}  // namespace lydian::control
