#include "control/journal_schema.h"

#include "control/blob_ids.h"
#include "lydian/journal.pb.h"

namespace lydian::control {

using store::Blob;
using store::Row;
using store::Session;

std::vector<store::Migration> JournalMigrations() {
  return {{1, R"sql(
CREATE TABLE call (
  number INTEGER PRIMARY KEY, call_id TEXT NOT NULL, function_id TEXT NOT NULL, app_id TEXT NOT NULL,
  parent_input_id TEXT NOT NULL, idempotency_key TEXT NOT NULL, call_type INTEGER NOT NULL, invocation_type INTEGER NOT NULL,
  created_at REAL NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0);
CREATE TABLE input (
  id INTEGER PRIMARY KEY, input_id TEXT NOT NULL, method TEXT NOT NULL, attempt INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE output (
  id INTEGER PRIMARY KEY, idx INTEGER NOT NULL, input_id TEXT NOT NULL, task_id TEXT NOT NULL, status INTEGER NOT NULL,
  data_format INTEGER NOT NULL, result BLOB, text TEXT NOT NULL, started_at REAL NOT NULL, created_at REAL NOT NULL);
CREATE TABLE chunk (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE task (
  task_id TEXT PRIMARY KEY, function_id TEXT NOT NULL, app_id TEXT NOT NULL, worker_id TEXT NOT NULL, container_id TEXT NOT NULL,
  function_name TEXT NOT NULL, workspace_id TEXT NOT NULL, environment TEXT NOT NULL, state TEXT NOT NULL, ip TEXT NOT NULL,
  exit_text TEXT NOT NULL, restricted INTEGER NOT NULL, ended INTEGER NOT NULL, pid INTEGER NOT NULL,
  enqueued_at REAL NOT NULL, started_at REAL NOT NULL, finished_at REAL NOT NULL);
CREATE INDEX task_alive ON task (ended) WHERE ended = 0;
CREATE TABLE function (function_id TEXT PRIMARY KEY, app_id TEXT NOT NULL, info BLOB NOT NULL);
CREATE TABLE app (app_id TEXT PRIMARY KEY, state TEXT NOT NULL);
)sql"},
          // The blob that a row's message names, '' for none. NULL: written before this column was.
          {2, R"sql(
ALTER TABLE input ADD COLUMN blob TEXT;
ALTER TABLE output ADD COLUMN blob TEXT;
ALTER TABLE chunk ADD COLUMN blob TEXT;
CREATE INDEX input_by_blob ON input (blob) WHERE blob != '';
CREATE INDEX output_by_blob ON output (blob) WHERE blob != '';
CREATE INDEX chunk_by_blob ON chunk (blob) WHERE blob != '';
CREATE INDEX input_unread ON input (id) WHERE blob IS NULL;
CREATE INDEX output_unread ON output (id) WHERE blob IS NULL;
CREATE INDEX chunk_unread ON chunk (id) WHERE blob IS NULL;
)sql"}};
}

namespace {

std::string EncodeFunction(const FunctionInfo& info) {
  JournalFunction out;
  out.set_workspace_id(info.workspace_id);
  out.set_environment(info.environment);
  out.set_name(info.name);
  out.set_slots(info.slots);
  out.set_target_slots(info.target_slots);
  out.set_batch_max_size(info.batch_max_size);
  out.set_batch_linger_ms(info.batch_linger_ms);
  out.set_retries(info.retry.retries);
  out.set_backoff_coefficient(info.retry.backoff_coefficient);
  out.set_initial_delay_ms(info.retry.initial_delay_ms);
  out.set_max_delay_ms(info.retry.max_delay_ms);
  out.set_timeout_secs(info.timeout_secs);
  out.set_startup_timeout_secs(info.startup_timeout_secs);
  out.set_min_containers(info.min_containers);
  out.set_max_containers(info.max_containers);
  out.set_buffer_containers(info.buffer_containers);
  out.set_scaledown_window_secs(info.scaledown_window_secs);
  out.set_single_use(info.single_use);
  out.set_generator(info.generator);
  *out.mutable_limits() = info.limits;
  return out.SerializeAsString();
}

Result<FunctionInfo> DecodeFunction(const std::string& id, const std::string& app_id,
                                    const std::string& bytes) {
  JournalFunction in;
  if (!in.ParseFromString(bytes)) return DataLoss("the journal's row of function " + id + " can't be read");
  FunctionInfo info;
  info.function_id = id;
  info.app_id = app_id;
  info.workspace_id = in.workspace_id();
  info.environment = in.environment();
  info.name = in.name();
  info.slots = in.slots();
  info.target_slots = in.target_slots();
  info.batch_max_size = in.batch_max_size();
  info.batch_linger_ms = in.batch_linger_ms();
  info.retry = {in.retries(), in.backoff_coefficient(), in.initial_delay_ms(), in.max_delay_ms()};
  info.timeout_secs = in.timeout_secs();
  info.startup_timeout_secs = in.startup_timeout_secs();
  info.min_containers = in.min_containers();
  info.max_containers = in.max_containers();
  info.buffer_containers = in.buffer_containers();
  info.scaledown_window_secs = in.scaledown_window_secs();
  info.single_use = in.single_use();
  info.generator = in.generator();
  info.limits = in.limits();
  return info;
}

SharedBytes Share(std::string bytes) { return std::make_shared<const std::string>(std::move(bytes)); }

uint32_t CallOf(const Row& row) { return static_cast<uint32_t>(static_cast<uint64_t>(row.Int(0)) >> 32); }
uint32_t LowOf(const Row& row) { return static_cast<uint32_t>(row.Int(0)); }

Status InsertInputs(Session& session, const std::vector<InputRow>& inputs) {
  for (const InputRow& input : inputs) {
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO input (id, input_id, method, attempt, payload, blob) VALUES (?, ?, ?, ?, ?, ?)",
        {RowId(input.call, input.idx), input.input_id, input.method, input.attempt, Blob{*input.payload},
         BlobIdIn(*input.payload, kInputBlobField)}));
  }
  return {};
}

}  // namespace

const std::string_view kSelectTaskById =
    "SELECT task_id, function_id, app_id, worker_id, container_id, function_name, workspace_id, environment, "
    "state, ip, exit_text, "
    "restricted, ended, pid, enqueued_at, started_at, finished_at FROM task WHERE task_id = ?";

TaskRow ReadTask(Row& row) {
  TaskRow task;
  task.task_id = row.Text(0);
  task.function_id = row.Text(1);
  task.app_id = row.Text(2);
  task.worker_id = row.Text(3);
  task.container_id = row.Text(4);
  task.function_name = row.Text(5);
  task.workspace_id = row.Text(6);
  task.environment = row.Text(7);
  task.state = row.Text(8);
  task.ip = row.Text(9);
  task.exit_text = row.Text(10);
  task.restricted = row.Int(11) != 0;
  task.ended = row.Int(12) != 0;
  task.pid = static_cast<int>(row.Int(13));
  task.enqueued_at = row.Real(14);
  task.started_at = row.Real(15);
  task.finished_at = row.Real(16);
  return task;
}

Journal::Record Journal::PutCall(CallRow call, std::vector<InputRow> inputs) {
  Record record;
  record.apply = [call = std::move(call), inputs = std::move(inputs)](Session& session) -> Status {
    RETURN_IF_ERROR(
        session.Execute("INSERT INTO call (number, call_id, function_id, app_id, parent_input_id, "
                        "idempotency_key, call_type, invocation_type, "
                        "created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        {call.number, call.call_id, call.function_id, call.app_id, call.parent_input_id,
                         call.idempotency_key, call.call_type, call.invocation_type, call.created_at}));
    return InsertInputs(session, inputs);
  };
  return record;
}

Journal::Record Journal::PutInputs(std::vector<InputRow> inputs) {
  Record record;
  record.apply = [inputs = std::move(inputs)](Session& session) { return InsertInputs(session, inputs); };
  return record;
}

Journal::Record Journal::Finish(std::vector<OutputRow> outputs) {
  Record record;
  record.must = true;
  record.apply = [outputs = std::move(outputs)](Session& session) -> Status {
    for (const OutputRow& output : outputs) {
      RETURN_IF_ERROR(session.Execute("DELETE FROM input WHERE id = ?", {RowId(output.call, output.idx)}));
      RETURN_IF_ERROR(session.Execute(
          "INSERT INTO output (id, idx, input_id, task_id, status, data_format, result, text, started_at, "
          "created_at, blob) "
          "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
          {RowId(output.call, output.seq), output.idx, output.input_id, output.task_id, output.status,
           output.data_format,
           output.result == nullptr ? store::Param(nullptr) : store::Param(Blob{*output.result}), output.text,
           output.started_at, output.created_at,
           output.result == nullptr ? "" : BlobIdIn(*output.result, kResultBlobField)}));
    }
    return {};
  };
  return record;
}

Journal::Record Journal::SetAttempt(uint32_t call, uint32_t idx, uint32_t attempt) {
  Record record;
  record.must = true;
  record.apply = [=](Session& session) {
    return session.Execute("UPDATE input SET attempt = ? WHERE id = ?", {attempt, RowId(call, idx)});
  };
  return record;
}

Journal::Record Journal::SetCancelled(uint32_t call) {
  Record record;
  record.must = true;
  record.apply = [=](Session& session) {
    return session.Execute("UPDATE call SET cancelled = 1 WHERE number = ?", {call});
  };
  return record;
}

Journal::Record Journal::PutChunks(std::vector<ChunkRow> chunks) {
  Record record;
  record.apply = [chunks = std::move(chunks)](Session& session) -> Status {
    for (const ChunkRow& chunk : chunks) {
      RETURN_IF_ERROR(session.Execute(
          "INSERT INTO chunk (id, data, blob) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET data = "
          "excluded.data, blob = excluded.blob",
          {RowId(chunk.call, chunk.idx), Blob{*chunk.chunk}, BlobIdIn(*chunk.chunk, kChunkBlobField)}));
    }
    return {};
  };
  return record;
}

Journal::Record Journal::DropChunks(uint32_t call, uint32_t first, uint32_t last) {
  Record record;
  record.must = true;
  record.apply = [=](Session& session) {
    return session.Execute("DELETE FROM chunk WHERE id BETWEEN ? AND ?",
                           {RowId(call, first), RowId(call, last)});
  };
  return record;
}

Journal::Record Journal::DropCalls(std::vector<uint32_t> calls) {
  Record record;
  record.must = true;
  record.apply = [calls = std::move(calls)](Session& session) -> Status {
    for (uint32_t call : calls) {
      int64_t first = RowId(call, 0), last = RowId(call, UINT32_MAX);
      RETURN_IF_ERROR(session.Execute("DELETE FROM input WHERE id BETWEEN ? AND ?", {first, last}));
      RETURN_IF_ERROR(session.Execute("DELETE FROM output WHERE id BETWEEN ? AND ?", {first, last}));
      RETURN_IF_ERROR(session.Execute("DELETE FROM chunk WHERE id BETWEEN ? AND ?", {first, last}));
      RETURN_IF_ERROR(session.Execute("DELETE FROM call WHERE number = ?", {call}));
    }
    return {};
  };
  return record;
}

Journal::Record Journal::PutTask(TaskRow task) {
  Record record;
  record.must = true;
  record.apply = [task = std::move(task)](Session& session) {
    return session.Execute(
        "INSERT INTO task (task_id, function_id, app_id, worker_id, container_id, function_name, "
        "workspace_id, environment, state, "
        "ip, exit_text, restricted, ended, pid, enqueued_at, started_at, finished_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task_id) DO UPDATE SET "
        "worker_id = excluded.worker_id, "
        "container_id = excluded.container_id, state = excluded.state, ip = excluded.ip, exit_text = "
        "excluded.exit_text, "
        "ended = excluded.ended, pid = excluded.pid, started_at = excluded.started_at, finished_at = "
        "excluded.finished_at",
        {task.task_id, task.function_id, task.app_id, task.worker_id, task.container_id, task.function_name,
         task.workspace_id, task.environment, task.state, task.ip, task.exit_text, task.restricted,
         task.ended, task.pid, task.enqueued_at, task.started_at, task.finished_at});
  };
  return record;
}

Journal::Record Journal::DropTasks(double finished_before) {
  Record record;
  record.must = true;
  record.apply = [=](Session& session) {
    return session.Execute("DELETE FROM task WHERE ended = 1 AND finished_at < ?", {finished_before});
  };
  return record;
}

Journal::Record Journal::PutFunction(FunctionInfo info) {
  Record record;
  record.must = true;
  record.apply = [info = std::move(info)](Session& session) {
    std::string bytes = EncodeFunction(info);
    return session.Execute(
        "INSERT INTO function (function_id, app_id, info) VALUES (?, ?, ?) ON CONFLICT (function_id) DO "
        "UPDATE SET "
        "app_id = excluded.app_id, info = excluded.info",
        {info.function_id, info.app_id, Blob{bytes}});
  };
  return record;
}

Journal::Record Journal::DropFunctions(std::vector<std::string> function_ids) {
  Record record;
  record.must = true;
  record.apply = [ids = std::move(function_ids)](Session& session) -> Status {
    for (const std::string& id : ids)
      RETURN_IF_ERROR(session.Execute("DELETE FROM function WHERE function_id = ?", {id}));
    return {};
  };
  return record;
}

Journal::Record Journal::PutApp(std::string app_id, std::string state) {
  Record record;
  record.must = true;
  record.apply = [app_id = std::move(app_id), state = std::move(state)](Session& session) {
    return session.Execute(
        "INSERT INTO app (app_id, state) VALUES (?, ?) ON CONFLICT (app_id) DO UPDATE SET state = "
        "excluded.state",
        {app_id, state});
  };
  return record;
}

Status ReadOldBlobIds(store::Database& database) {
  struct Table {
    std::string select, update;
    int field;
  };
  constexpr int kRows = 200;
  for (const Table& table : {Table{"SELECT id, payload FROM input WHERE blob IS NULL LIMIT ?",
                                   "UPDATE input SET blob = ? WHERE id = ?", kInputBlobField},
                             Table{"SELECT id, result FROM output WHERE blob IS NULL LIMIT ?",
                                   "UPDATE output SET blob = ? WHERE id = ?", kResultBlobField},
                             Table{"SELECT id, data FROM chunk WHERE blob IS NULL LIMIT ?",
                                   "UPDATE chunk SET blob = ? WHERE id = ?", kChunkBlobField}}) {
    for (bool more = true; more;) {
      ASSIGN_OR_RETURN(auto rows, database.Query(table.select, {kRows}));
      more = !rows.empty();
      RETURN_IF_ERROR(database.Transaction([&](Session& session) -> Status {
        for (const Row& row : rows) {
          RETURN_IF_ERROR(session.Execute(
              table.update, {row.IsNull(1) ? "" : BlobIdIn(row.Text(1), table.field), row.Int(0)}));
        }
        return {};
      }));
    }
  }
  return {};
}

Result<std::set<std::string>> Journal::BlobsInUse(const std::vector<std::string>& blob_ids) {
  std::set<std::string> used;
  for (const std::string& id : blob_ids) {
    RETURN_IF_ERROR(database_->ForEach(
        "SELECT 1 FROM input WHERE blob = ? AND blob != '' UNION ALL SELECT 1 FROM output WHERE blob = ? AND "
        "blob != '' UNION ALL SELECT 1 FROM chunk WHERE blob = ? AND blob != ''",
        {id, id, id}, [&](Row&) -> Status {
          used.insert(id);
          return {};
        }));
  }
  return used;
}

Result<std::vector<SharedBytes>> Journal::Results(uint32_t call, const std::vector<uint32_t>& seqs) {
  std::vector<SharedBytes> all;
  all.reserve(seqs.size());
  for (const uint32_t seq : seqs) {
    SharedBytes result;
    RETURN_IF_ERROR(database_->ForEach("SELECT result FROM output WHERE id = ?", {RowId(call, seq)},
                                       [&](store::Row& row) -> Status {
                                         result = Share(row.TakeText(0));
                                         return {};
                                       }));
    if (result == nullptr) return NotFound("a result that was asked for has been dropped meanwhile");
    all.push_back(std::move(result));
  }
  return all;
}

Result<JournalContents> Journal::Load() {
  JournalContents all;
  RETURN_IF_ERROR(
      database_->ForEach("SELECT number, call_id, function_id, app_id, parent_input_id, idempotency_key, "
                         "call_type, invocation_type, created_at, "
                         "cancelled FROM call ORDER BY number",
                         {}, [&](Row& row) -> Status {
                           CallRow call;
                           call.number = static_cast<uint32_t>(row.Int(0));
                           call.call_id = row.Text(1);
                           call.function_id = row.Text(2);
                           call.app_id = row.Text(3);
                           call.parent_input_id = row.Text(4);
                           call.idempotency_key = row.Text(5);
                           call.call_type = static_cast<int32_t>(row.Int(6));
                           call.invocation_type = static_cast<int32_t>(row.Int(7));
                           call.created_at = row.Real(8);
                           call.cancelled = row.Int(9) != 0;
                           all.calls.push_back(std::move(call));
                           return {};
                         }));
  RETURN_IF_ERROR(database_->ForEach(
      "SELECT id, input_id, method, attempt, payload FROM input ORDER BY id", {}, [&](Row& row) -> Status {
        InputRow input{CallOf(row), LowOf(row),  static_cast<uint32_t>(row.Int(3)),
                       row.Text(1), row.Text(2), Share(row.TakeText(4))};
        all.inputs.push_back(std::move(input));
        return {};
      }));
  RETURN_IF_ERROR(database_->ForEach(
      "SELECT id, idx, input_id, task_id, status, data_format, LENGTH(result), text, started_at, "
      "created_at FROM output ORDER BY id",
      {}, [&](Row& row) -> Status {
        OutputRow output;
        output.call = CallOf(row);
        output.seq = LowOf(row);
        output.idx = static_cast<uint32_t>(row.Int(1));
        output.input_id = row.Text(2);
        output.task_id = row.Text(3);
        output.status = static_cast<int32_t>(row.Int(4));
        output.data_format = static_cast<int32_t>(row.Int(5));
        if (!row.IsNull(6)) output.result_bytes = static_cast<uint64_t>(row.Int(6));
        output.text = row.Text(7);
        output.started_at = row.Real(8);
        output.created_at = row.Real(9);
        all.outputs.push_back(std::move(output));
        return {};
      }));
  RETURN_IF_ERROR(database_->ForEach("SELECT id, data FROM chunk ORDER BY id", {}, [&](Row& row) -> Status {
    all.chunks.push_back({CallOf(row), LowOf(row), Share(row.TakeText(1))});
    return {};
  }));
  RETURN_IF_ERROR(database_->ForEach(
      "SELECT task_id, function_id, app_id, worker_id, container_id, function_name, workspace_id, "
      "environment, state, ip, exit_text, "
      "restricted, ended, pid, enqueued_at, started_at, finished_at FROM task WHERE ended = 0",
      {}, [&](Row& row) -> Status {
        all.tasks.push_back(ReadTask(row));
        return {};
      }));
  RETURN_IF_ERROR(
      database_->ForEach("SELECT function_id, app_id, info FROM function", {}, [&](Row& row) -> Status {
        ASSIGN_OR_RETURN(FunctionInfo info, DecodeFunction(row.Text(0), row.Text(1), row.Text(2)));
        all.functions.push_back(std::move(info));
        return {};
      }));
  RETURN_IF_ERROR(database_->ForEach("SELECT app_id, state FROM app", {}, [&](Row& row) -> Status {
    all.apps.emplace_back(row.Text(0), row.Text(1));
    return {};
  }));
  return all;
}

}  // namespace lydian::control
