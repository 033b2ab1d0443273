// What is read back from the journal: all that lives, at a start; one call or a few of its rows, later.
#include <deque>

#include "base/log.h"
#include "control/journal_schema.h"

namespace lydian::control {

using store::Row;

namespace {

SharedBytes Share(std::string bytes) { return std::make_shared<const std::string>(std::move(bytes)); }

uint32_t CallOf(const Row& row) { return static_cast<uint32_t>(static_cast<uint64_t>(row.Int(0)) >> 32); }
uint32_t LowOf(const Row& row) { return static_cast<uint32_t>(row.Int(0)); }

// After "SELECT number, call_id, function_id, app_id, parent_input_id, idempotency_key, call_type,
// invocation_type, created_at, cancelled, resting_at FROM call".
CallRow ReadCall(Row& row) {
  CallRow call;
  call.number = static_cast<uint32_t>(row.Int(0));
  call.call_id = row.TakeText(1);
  call.function_id = row.TakeText(2);
  call.app_id = row.TakeText(3);
  call.parent_input_id = row.TakeText(4);
  call.idempotency_key = row.TakeText(5);
  call.call_type = static_cast<int32_t>(row.Int(6));
  call.invocation_type = static_cast<int32_t>(row.Int(7));
  call.created_at = row.Real(8);
  call.cancelled = row.Int(9) != 0;
  call.resting_at = row.Real(10);
  return call;
}

OutputKey ReadKey(Row& row) {
  return {LowOf(row), static_cast<uint32_t>(row.Int(1)), static_cast<int32_t>(row.Int(2))};
}

#define CALL_COLUMNS                                                                                     \
  "number, call_id, function_id, app_id, parent_input_id, idempotency_key, call_type, invocation_type, " \
  "created_at, cancelled, resting_at FROM call "

Status EachCall(store::Database& database, std::string_view sql, const store::Params& params,
                const std::function<void(CallRow)>& take) {
  return database.ForEach(sql, params, [&](Row& row) -> Status {
    take(ReadCall(row));
    return {};
  });
}

void SetAside(std::string_view table, const std::string& id, std::string_view why) {
  LOG_ERROR("a damaged row of the journal is left aside",
            {{"table", table}, {"id", id.substr(0, 60)}, {"error", why}});
}

Status LoadFunctions(store::Database& database, const JournalVisitor& visitor) {
  RETURN_IF_ERROR(database.ForEach("SELECT app_id, state FROM app", {}, [&](Row& row) -> Status {
    if (row.Text(0).empty() || (row.Text(1) != "active" && row.Text(1) != "stopped")) {
      SetAside("app", row.Text(0), "its state is none: '" + row.Text(1).substr(0, 40) + "'");
      return {};
    }
    visitor.app(row.Text(0), row.Text(1));
    return {};
  }));
  return database.ForEach("SELECT function_id, app_id, info FROM function", {}, [&](Row& row) -> Status {
    auto info = DecodeFunction(row.Text(0), row.Text(1), row.Text(2));
    if (info.ok()) {
      visitor.function(std::move(info).value());
    } else {
      SetAside("function", row.Text(0), info.status().message());
      visitor.damaged_function(row.Text(0));
    }
    return {};
  });
}

InputKey ReadInputKey(Row& row) { return {CallOf(row), LowOf(row), static_cast<uint32_t>(row.Int(1))}; }

// By call: of those that rest, which may be millions, nothing is read. CROSS JOIN: in this order, where the
// planner may walk all rows for each call.
#define OF_CALLS(condition)                                                                          \
  " k ON k.id BETWEEN c.number * 4294967296 AND c.number * 4294967296 + 4294967295 WHERE " condition \
  " c.number BETWEEN ? AND ? ORDER BY c.number, k.id"
#define LIVE_AND_ALL(columns, table)                                                     \
  {                                                                                      \
    "SELECT " columns " FROM call c CROSS JOIN " table OF_CALLS("c.resting_at = 0 AND"), \
        "SELECT " columns " FROM call c CROSS JOIN " table OF_CALLS("")                  \
  }

// What belongs to the calls, which are in order of their numbers: all that have a number between, or of these
// those that don't rest.
Status ReadParts(store::Database& database, std::vector<StoredCall>* calls, bool live) {
  static constexpr std::string_view kOutputs[] = LIVE_AND_ALL("k.id, k.idx, k.status", "output_key");
  static constexpr std::string_view kInputs[] = LIVE_AND_ALL("k.id, LENGTH(k.payload)", "input");
  static constexpr std::string_view kChunks[] = LIVE_AND_ALL("k.id, LENGTH(k.data)", "chunk");
  const size_t which = live ? 0 : 1;
  const store::Params range = {calls->front().row.number, calls->back().row.number};
  const auto each = [&](std::string_view sql, const std::function<void(StoredCall&, Row&)>& take) {
    size_t at = 0;
    return database.ForEach(sql, range, [&](Row& row) -> Status {
      while (at < calls->size() && (*calls)[at].row.number < CallOf(row)) ++at;
      if (at < calls->size() && (*calls)[at].row.number == CallOf(row)) take((*calls)[at], row);
      return {};
    });
  };
  RETURN_IF_ERROR(
      each(kOutputs[which], [](StoredCall& call, Row& row) { call.outputs.push_back(ReadKey(row)); }));
  RETURN_IF_ERROR(
      each(kInputs[which], [](StoredCall& call, Row& row) { call.inputs.push_back(ReadInputKey(row)); }));
  return each(kChunks[which], [](StoredCall& call, Row& row) {
    call.chunks.push_back({LowOf(row), static_cast<uint64_t>(row.Int(1))});
  });
}

Status LoadCalls(store::Database& database, const JournalVisitor& visitor) {
  constexpr size_t kAtOnce = 1000;
  for (int64_t after = -1;;) {
    const int64_t before = after;
    std::vector<StoredCall> calls;
    RETURN_IF_ERROR(EachCall(
        database, "SELECT " CALL_COLUMNS "WHERE resting_at = 0 AND number > ? ORDER BY number LIMIT ?",
        {after, kAtOnce}, [&](CallRow row) {
          after = row.number;
          if (row.number != 0 && !row.call_id.empty() && !row.function_id.empty()) {
            calls.emplace_back().row = std::move(row);
          } else {
            SetAside("call", std::to_string(row.number), "its id or its function is missing");
          }
        }));
    if (after == before) return {};
    if (calls.empty()) continue;
    RETURN_IF_ERROR(ReadParts(database, &calls, true));
    for (StoredCall& call : calls) visitor.call(std::move(call));
  }
}

Status LoadTasks(store::Database& database, const JournalVisitor& visitor) {
  return database.ForEach(
      "SELECT task_id, function_id, app_id, worker_id, container_id, function_name, workspace_id, "
      "environment, state, ip, exit_text, "
      "restricted, ended, pid, enqueued_at, started_at, finished_at, builder, stop_mode FROM task WHERE "
      "ended = "
      "0",
      {}, [&](Row& row) -> Status {
        visitor.task(ReadTask(row));
        return {};
      });
}

}  // namespace

Status Journal::Load(const JournalVisitor& visitor, double resting_since) {
  RETURN_IF_ERROR(LoadFunctions(*database_, visitor));
  RETURN_IF_ERROR(LoadTasks(*database_, visitor));
  RETURN_IF_ERROR(database_->ForEach("SELECT MAX(number) FROM call", {}, [&](Row& row) -> Status {
    visitor.last_call(static_cast<uint32_t>(row.Int(0)));
    return {};
  }));
  RETURN_IF_ERROR(LoadCalls(*database_, visitor));
  return EachCall(*database_,
                  "SELECT " CALL_COLUMNS "WHERE resting_at != 0 AND (resting_at < 0 OR resting_at >= ?)",
                  {resting_since}, [&](CallRow call) {
                    if (call.resting_at < 0) return visitor.dropping(call.number);
                    visitor.resting(std::move(call));
                  });
}

Result<std::vector<InputRow>> Journal::Inputs(const std::vector<InputKey>& keys) {
  std::vector<InputRow> all;
  all.reserve(keys.size());
  for (const InputKey& key : keys) {
    InputRow& input = all.emplace_back();
    input.call = key.call;
    input.idx = key.idx;
    RETURN_IF_ERROR(database_->ForEach("SELECT input_id, method, attempt, payload FROM input WHERE id = ?",
                                       {RowId(key.call, key.idx)}, [&](Row& row) -> Status {
                                         input.input_id = row.TakeText(0);
                                         input.method = row.TakeText(1);
                                         input.attempt = static_cast<uint32_t>(row.Int(2));
                                         input.payload = Share(row.TakeText(3));
                                         return {};
                                       }));
  }
  return all;
}

Result<std::vector<InputKey>> Journal::InputKeys(uint32_t call, uint32_t first, size_t most) {
  std::vector<InputKey> keys;
  RETURN_IF_ERROR(
      database_->ForEach("SELECT id, LENGTH(payload) FROM input WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
                         {RowId(call, first), RowId(call, UINT32_MAX), most}, [&](Row& row) -> Status {
                           keys.push_back(ReadInputKey(row));
                           return {};
                         }));
  return keys;
}

Result<std::vector<OutputRow>> Journal::Outputs(uint32_t call, const std::vector<uint32_t>& seqs,
                                                uint64_t most_bytes) {
  std::vector<OutputRow> all;
  uint64_t bytes = 0;
  for (const uint32_t seq : seqs) {
    if (bytes > most_bytes) break;
    bool found = false;
    RETURN_IF_ERROR(database_->ForEach(
        "SELECT id, idx, input_id, task_id, status, data_format, result, text, started_at, created_at FROM "
        "output WHERE id = ?",
        {RowId(call, seq)}, [&](Row& row) -> Status {
          OutputRow& output = all.emplace_back();
          output.call = call;
          output.seq = seq;
          output.idx = static_cast<uint32_t>(row.Int(1));
          output.input_id = row.TakeText(2);
          output.task_id = row.TakeText(3);
          output.status = static_cast<int32_t>(row.Int(4));
          output.data_format = static_cast<int32_t>(row.Int(5));
          if (!row.IsNull(6)) output.result = Share(row.TakeText(6));
          output.text = row.TakeText(7);
          output.started_at = row.Real(8);
          output.created_at = row.Real(9);
          bytes += (output.result ? output.result->size() : 0) + output.text.size();
          found = true;
          return {};
        }));
    if (!found) return NotFound("a result that was asked for has been dropped meanwhile");
  }
  return all;
}

Result<std::vector<ChunkRow>> Journal::Chunks(uint32_t call, uint32_t first, uint64_t most_bytes) {
  std::vector<ChunkRow> all;
  uint64_t bytes = 0;
  for (uint32_t idx = first; bytes <= most_bytes; ++idx) {
    const size_t before = all.size();
    RETURN_IF_ERROR(database_->ForEach("SELECT id, data FROM chunk WHERE id = ?", {RowId(call, idx)},
                                       [&](Row& row) -> Status {
                                         all.push_back({call, idx, Share(row.TakeText(1))});
                                         return {};
                                       }));
    if (all.size() == before) break;
    bytes += all.back().chunk->size();
  }
  return all;
}

Result<StoredCall> Journal::FindCall(uint32_t number) {
  std::vector<StoredCall> found;
  RETURN_IF_ERROR(EachCall(*database_, "SELECT " CALL_COLUMNS "WHERE number = ?", {number},
                           [&](CallRow call) { found.emplace_back().row = std::move(call); }));
  if (found.empty() || found[0].row.resting_at == kDropping) return NotFound("no such call in the journal");
  RETURN_IF_ERROR(ReadParts(*database_, &found, false));
  return std::move(found[0]);
}

Status Journal::CallsOf(const std::string& function_id, size_t most,
                        const std::function<void(const CallRow&, const OutputCounts&, uint32_t)>& take) {
  std::vector<CallRow> calls;
  RETURN_IF_ERROR(EachCall(*database_,
                           "SELECT " CALL_COLUMNS
                           "WHERE function_id = ? AND resting_at >= 0 ORDER BY number DESC LIMIT ?",
                           {function_id, most}, [&](CallRow call) { calls.push_back(std::move(call)); }));
  for (const CallRow& call : calls) {
    OutputCounts counts;
    RETURN_IF_ERROR(
        database_->ForEach("SELECT status, COUNT(*) FROM output_key WHERE id BETWEEN ? AND ? GROUP BY status",
                           {RowId(call.number, 0), RowId(call.number, UINT32_MAX)}, [&](Row& row) -> Status {
                             counts.Add(static_cast<int32_t>(row.Int(0)), static_cast<uint32_t>(row.Int(1)));
                             return {};
                           }));
    uint32_t pending = 0;
    if (call.resting_at == 0) {
      RETURN_IF_ERROR(database_->ForEach("SELECT COUNT(*) FROM input WHERE id BETWEEN ? AND ?",
                                         {RowId(call.number, 0), RowId(call.number, UINT32_MAX)},
                                         [&](Row& row) -> Status {
                                           pending = static_cast<uint32_t>(row.Int(0));
                                           return {};
                                         }));
    }
    take(call, counts, pending);
  }
  return {};
}

Result<GraphRows> Journal::Graph(uint32_t root, size_t most) {
  GraphRows graph;
  std::deque<CallRow> todo;
  const auto take = [&](CallRow call) {
    if (call.resting_at != kDropping) todo.push_back(std::move(call));
  };
  RETURN_IF_ERROR(EachCall(*database_, "SELECT " CALL_COLUMNS "WHERE number = ?", {root}, take));
  size_t inputs = 0;
  bool crowded = false;  // more calls than are looked at
  const auto read = [&](std::string_view sql, GraphRows::OneCall* call) {
    const uint32_t number = call->row.number;
    return database_->ForEach(
        sql, {RowId(number, 0), RowId(number, UINT32_MAX), most - inputs}, [&](Row& row) -> Status {
          call->inputs.push_back({row.Text(0), row.Text(1), static_cast<uint32_t>(row.Int(2)),
                                  static_cast<int32_t>(row.Int(3))});
          ++inputs;
          return {};
        });
  };
  for (; !todo.empty() && inputs < most; todo.pop_front()) {
    GraphRows::OneCall& call = graph.calls.emplace_back();
    call.row = std::move(todo.front());
    RETURN_IF_ERROR(
        read("SELECT input_id, task_id, idx, status FROM output WHERE id BETWEEN ? AND ? LIMIT ?", &call));
    RETURN_IF_ERROR(
        read("SELECT input_id, '', id & 4294967295, 0 FROM input WHERE id BETWEEN ? AND ? LIMIT ?", &call));
    for (const GraphRows::Node& node : call.inputs) {
      if (todo.size() >= most) break;
      RETURN_IF_ERROR(EachCall(
          *database_, "SELECT " CALL_COLUMNS "WHERE parent_input_id = ? AND parent_input_id != '' LIMIT ?",
          {node.input_id, most - todo.size()}, take));
    }
    crowded |= todo.size() >= most;
  }
  graph.truncated = crowded || inputs >= most;
  return graph;
}

Result<std::vector<Journal::OldCall>> Journal::OldCalls(double sync, double stopped, double async,
                                                        size_t most) {
  std::vector<OldCall> old;
  RETURN_IF_ERROR(database_->ForEach(
      "SELECT number, call_id FROM call WHERE resting_at != 0 AND resting_at > 0 AND resting_at < ? AND "
      "(resting_at < ? OR (invocation_type IN (1, 4) AND (resting_at < ? OR app_id IN (SELECT app_id FROM "
      "app "
      "WHERE state = 'stopped')))) ORDER BY resting_at LIMIT ?",
      {std::max(stopped, async), async, sync, most}, [&](Row& row) -> Status {
        old.push_back({static_cast<uint32_t>(row.Int(0)), row.Text(1)});
        return {};
      }));
  return old;
}

Result<std::vector<std::string>> Journal::WithoutCalls(const std::vector<std::string>& function_ids) {
  std::vector<std::string> without;
  for (const std::string& id : function_ids) {
    bool called = false;
    RETURN_IF_ERROR(database_->ForEach("SELECT number FROM call WHERE function_id = ? LIMIT 1", {id},
                                       [&](Row&) -> Status {
                                         called = true;
                                         return {};
                                       }));
    if (!called) without.push_back(id);
  }
  return without;
}

}  // namespace lydian::control
