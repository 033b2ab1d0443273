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
          {2, R"sql(
ALTER TABLE call ADD COLUMN resting_at REAL NOT NULL DEFAULT 0;
CREATE INDEX call_live ON call (number) WHERE resting_at = 0;
CREATE INDEX call_resting ON call (resting_at) WHERE resting_at != 0;
CREATE INDEX call_of_function ON call (function_id, number);
CREATE INDEX call_of_parent ON call (parent_input_id) WHERE parent_input_id != '';
CREATE TABLE output_key (id INTEGER PRIMARY KEY, idx INTEGER NOT NULL, status INTEGER NOT NULL);
INSERT INTO output_key SELECT id, idx, status FROM output;
)sql"},
          // The blob that a row's message names, '' for none. NULL: written before this column was.
          {3, R"sql(
ALTER TABLE input ADD COLUMN blob TEXT;
ALTER TABLE output ADD COLUMN blob TEXT;
ALTER TABLE chunk ADD COLUMN blob TEXT;
CREATE INDEX input_by_blob ON input (blob) WHERE blob != '';
CREATE INDEX output_by_blob ON output (blob) WHERE blob != '';
CREATE INDEX chunk_by_blob ON chunk (blob) WHERE blob != '';
CREATE INDEX input_unread ON input (id) WHERE blob IS NULL;
CREATE INDEX output_unread ON output (id) WHERE blob IS NULL;
CREATE INDEX chunk_unread ON chunk (id) WHERE blob IS NULL;
)sql"},
          // stop_mode: of StopTask, and one more; 0 for a task that isn't being stopped.
          {4, R"sql(
ALTER TABLE task ADD COLUMN builder INTEGER NOT NULL DEFAULT 0;
ALTER TABLE task ADD COLUMN stop_mode INTEGER NOT NULL DEFAULT 0;
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

const std::string_view kSelectTaskById =
    "SELECT task_id, function_id, app_id, worker_id, container_id, function_name, workspace_id, environment, "
    "state, ip, exit_text, "
    "restricted, ended, pid, enqueued_at, started_at, finished_at, builder, stop_mode FROM task WHERE "
    "task_id = ?";

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
  task.builder = row.Int(17) != 0;
  if (const int64_t mode = row.Int(18); mode > 0 && StopTask::Mode_IsValid(static_cast<int>(mode - 1)))
    task.stop_mode = static_cast<StopTask::Mode>(mode - 1);
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
      RETURN_IF_ERROR(session.Execute("INSERT INTO output_key (id, idx, status) VALUES (?, ?, ?)",
                                      {RowId(output.call, output.seq), output.idx, output.status}));
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

Journal::Record Journal::Rest(uint32_t call, double since) {
  Record record;
  record.must = true;
  record.apply = [=](Session& session) {
    return session.Execute("UPDATE call SET resting_at = ? WHERE number = ?", {since, call});
  };
  return record;
}

namespace {

// The rows of a call; how many of `most` are left over.
Result<int64_t> DropRows(Session& session, uint32_t call, int64_t most) {
  static constexpr std::string_view kDrop[] = {
      "DELETE FROM input WHERE id IN (SELECT id FROM input WHERE id BETWEEN ? AND ? LIMIT ?)",
      "DELETE FROM output WHERE id IN (SELECT id FROM output WHERE id BETWEEN ? AND ? LIMIT ?)",
      "DELETE FROM output_key WHERE id IN (SELECT id FROM output_key WHERE id BETWEEN ? AND ? LIMIT ?)",
      "DELETE FROM chunk WHERE id IN (SELECT id FROM chunk WHERE id BETWEEN ? AND ? LIMIT ?)"};
  for (const std::string_view sql : kDrop) {
    if (most == 0) break;
    ASSIGN_OR_RETURN(int64_t gone, session.Change(sql, {RowId(call, 0), RowId(call, UINT32_MAX), most}));
    most -= gone;
  }
  return most;
}

}  // namespace

Journal::Record Journal::DropCalls(std::vector<uint32_t> calls, std::shared_ptr<std::vector<uint32_t>> left) {
  constexpr int64_t kMostRows = 2000;
  Record record;
  record.must = true;
  record.apply = [calls = std::move(calls), left = std::move(left)](Session& session) -> Status {
    int64_t most = kMostRows;
    left->clear();
    for (const uint32_t call : calls) {
      if (most > 0) {
        ASSIGN_OR_RETURN(most, DropRows(session, call, most));
      }
      if (most > 0) {
        --most;
        RETURN_IF_ERROR(session.Execute("DELETE FROM call WHERE number = ?", {call}));
        continue;
      }
      left->push_back(call);
      RETURN_IF_ERROR(session.Execute("UPDATE call SET resting_at = ? WHERE number = ? AND resting_at != ?",
                                      {kDropping, call, kDropping}));
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
        "ip, exit_text, restricted, ended, pid, enqueued_at, started_at, finished_at, builder, stop_mode) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task_id) DO UPDATE "
        "SET "
        "worker_id = excluded.worker_id, "
        "container_id = excluded.container_id, state = excluded.state, ip = excluded.ip, exit_text = "
        "excluded.exit_text, "
        "ended = excluded.ended, pid = excluded.pid, started_at = excluded.started_at, finished_at = "
        "excluded.finished_at, stop_mode = excluded.stop_mode",
        {task.task_id, task.function_id, task.app_id, task.worker_id, task.container_id, task.function_name,
         task.workspace_id, task.environment, task.state, task.ip, task.exit_text, task.restricted,
         task.ended, task.pid, task.enqueued_at, task.started_at, task.finished_at, task.builder,
         task.stop_mode ? *task.stop_mode + 1 : 0});
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

}  // namespace lydian::control
