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

Status LoadFunctions(store::Database& database, const JournalVisitor& visitor) {
  RETURN_IF_ERROR(database.ForEach("SELECT app_id, state FROM app", {}, [&](Row& row) -> Status {
    visitor.app(row.Text(0), row.Text(1));
    return {};
  }));
  return database.ForEach("SELECT function_id, app_id, info FROM function", {}, [&](Row& row) -> Status {
    ASSIGN_OR_RETURN(FunctionInfo info, DecodeFunction(row.Text(0), row.Text(1), row.Text(2)));
    visitor.function(std::move(info));
    return {};
  });
}

Status LoadCalls(store::Database& database, const JournalVisitor& visitor, double resting_since) {
  RETURN_IF_ERROR(database.ForEach("SELECT MAX(number) FROM call", {}, [&](Row& row) -> Status {
    visitor.last_call(static_cast<uint32_t>(row.Int(0)));
    return {};
  }));
  RETURN_IF_ERROR(
      EachCall(database, "SELECT " CALL_COLUMNS "WHERE resting_at = 0 ORDER BY number", {}, visitor.call));
  return EachCall(database,
                  "SELECT " CALL_COLUMNS "WHERE resting_at != 0 AND (resting_at < 0 OR resting_at >= ?)",
                  {resting_since}, [&](CallRow call) {
                    if (call.resting_at < 0) return visitor.dropping(call.number);
                    visitor.resting(std::move(call));
                  });
}

}  // namespace

Status Journal::Load(const JournalVisitor& visitor, double resting_since) {
  RETURN_IF_ERROR(LoadFunctions(*database_, visitor));
  RETURN_IF_ERROR(LoadCalls(*database_, visitor, resting_since));
  // By call: of those that rest, which may be millions, nothing is read. CROSS JOIN: in this order, where the
  // planner may walk all outputs for each call.
  RETURN_IF_ERROR(
      database_->ForEach("SELECT k.id, k.idx, k.status FROM call c CROSS JOIN output_key k ON k.id BETWEEN "
                         "c.number * 4294967296 AND "
                         "c.number * 4294967296 + 4294967295 WHERE c.resting_at = 0 ORDER BY c.number, k.id",
                         {}, [&](Row& row) -> Status {
                           visitor.output(CallOf(row), ReadKey(row));
                           return {};
                         }));
  RETURN_IF_ERROR(database_->ForEach(
      "SELECT id, input_id, method, attempt, payload FROM input ORDER BY id", {}, [&](Row& row) -> Status {
        visitor.input({CallOf(row), LowOf(row), static_cast<uint32_t>(row.Int(3)), row.TakeText(1),
                       row.TakeText(2), Share(row.TakeText(4))});
        return {};
      }));
  RETURN_IF_ERROR(database_->ForEach(
      "SELECT k.id, LENGTH(k.data) FROM call c CROSS JOIN chunk k ON k.id BETWEEN c.number * 4294967296 AND "
      "c.number * 4294967296 + 4294967295 WHERE c.resting_at = 0 ORDER BY c.number, k.id",
      {}, [&](Row& row) -> Status {
        visitor.chunk(CallOf(row), {LowOf(row), static_cast<uint64_t>(row.Int(1))});
        return {};
      }));
  return database_->ForEach(
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
  StoredCall stored;
  RETURN_IF_ERROR(EachCall(*database_, "SELECT " CALL_COLUMNS "WHERE number = ?", {number},
                           [&](CallRow call) { stored.row = std::move(call); }));
  if (stored.row.number == 0 || stored.row.resting_at == kDropping)
    return NotFound("no such call in the journal");
  RETURN_IF_ERROR(
      database_->ForEach("SELECT id, idx, status FROM output_key WHERE id BETWEEN ? AND ? ORDER BY id",
                         {RowId(number, 0), RowId(number, UINT32_MAX)}, [&](Row& row) -> Status {
                           stored.outputs.push_back(ReadKey(row));
                           return {};
                         }));
  RETURN_IF_ERROR(
      database_->ForEach("SELECT id, LENGTH(data) FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id",
                         {RowId(number, 0), RowId(number, UINT32_MAX)}, [&](Row& row) -> Status {
                           stored.chunks.push_back({LowOf(row), static_cast<uint64_t>(row.Int(1))});
                           return {};
                         }));
  return stored;
}

Status Journal::CallsOf(const std::string& function_id, size_t most,
                        const std::function<void(const CallRow&, const OutputCounts&)>& take) {
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
    take(call, counts);
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
