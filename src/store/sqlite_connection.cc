#include "store/sqlite_connection.h"

#include <atomic>
#include <cerrno>
#include <cstring>

#include "store/disk_failure.h"

namespace lydian::store {
namespace {

constexpr int kBusyMillis = 10'000;

// A statement goes back to the cache clean, whatever happened to it.
class Lent {
 public:
  explicit Lent(sqlite3_stmt* statement) : statement_(statement) {}
  ~Lent() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;

 private:
  sqlite3_stmt* statement_;
};

Row::Value Column(sqlite3_stmt* statement, int column) {
  switch (sqlite3_column_type(statement, column)) {
    case SQLITE_INTEGER:
      return static_cast<int64_t>(sqlite3_column_int64(statement, column));
    case SQLITE_FLOAT:
      return sqlite3_column_double(statement, column);
    case SQLITE_NULL:
      return std::monostate();
    default: {
      const void* data = sqlite3_column_blob(statement, column);  // for TEXT its UTF-8 bytes
      size_t size = static_cast<size_t>(sqlite3_column_bytes(statement, column));
      return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), size);
    }
  }
}

bool NoSpace(int error) { return error == ENOSPC || error == EDQUOT; }

std::atomic<const char*> shared_system{nullptr}, alone_system{kAloneSystem};

const char* FileSystem(bool alone) { return alone ? alone_system.load() : shared_system.load(); }

}  // namespace

void SetFileSystems(const char* shared, const char* alone) {
  shared_system = shared;
  alone_system = alone;
}

Result<std::unique_ptr<SqliteLog>> SqliteLog::Open(const std::string& database_path, bool alone) {
  std::unique_ptr<SqliteLog> log(new SqliteLog(database_path + "-wal"));
  sqlite3_vfs* system = sqlite3_vfs_find(FileSystem(alone));
  log->file_ = std::make_unique<uint64_t[]>(static_cast<size_t>(system->szOsFile) / sizeof(uint64_t) + 1);
  const int code =
      system->xOpen(system, log->path_.c_str(), log->file(), SQLITE_OPEN_WAL | SQLITE_OPEN_READONLY, nullptr);
  if (code != SQLITE_OK) return Internal("opening " + log->path_ + ": " + sqlite3_errstr(code));
  return log;
}

SqliteLog::~SqliteLog() {
  if (file_ != nullptr && file()->pMethods != nullptr) file()->pMethods->xClose(file());
}

Status SqliteLog::Sync() {
  const int code = file()->pMethods->xSync(file(), SQLITE_SYNC_NORMAL | SQLITE_SYNC_DATAONLY);
  if (code == SQLITE_OK) return {};
  return Status(Code::kInternal, "writing " + path_ + " to disk: " + sqlite3_errstr(code), errno);
}

Result<std::unique_ptr<SqliteConnection>> SqliteConnection::Open(const std::string& path, bool writes,
                                                                 bool alone, FailsAt fails_at) {
  sqlite3* handle = nullptr;
  int flags =
      (writes ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY) | SQLITE_OPEN_NOMUTEX;
  int code = sqlite3_open_v2(path.c_str(), &handle, flags, FileSystem(alone));
  std::unique_ptr<SqliteConnection> connection(new SqliteConnection(path, handle));
  connection->fails_at_ = fails_at;
  if (code != SQLITE_OK) return connection->Error(code, "opening");
  sqlite3_extended_result_codes(handle, 1);
  sqlite3_busy_timeout(handle, kBusyMillis);
  return connection;
}

SqliteConnection::~SqliteConnection() {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close_v2(handle_);
}

Status SqliteConnection::Error(int code, std::string_view what) const {
  int primary = code & 0xff;
  int error = handle_ == nullptr ? 0 : sqlite3_system_errno(handle_);
  if (primary == SQLITE_FULL || ((primary == SQLITE_IOERR || primary == SQLITE_CANTOPEN) && NoSpace(error))) {
    return Status(Code::kResourceExhausted, "no space left on " + path_, error == 0 ? ENOSPC : error);
  }
  std::string text = path_ + ": " + std::string(what.substr(0, 200)) + ": ";
  text += handle_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(handle_);
  switch (primary) {
    case SQLITE_CONSTRAINT:
      if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY)
        return AlreadyExists(text);
      return InvalidArgument(text);
    case SQLITE_TOOBIG:
      return InvalidArgument(text);
    case SQLITE_IOERR: {
      // Neither is the disk under the database: memory, and a folder for what a query sorts.
      if (code == SQLITE_IOERR_NOMEM || code == SQLITE_IOERR_GETTEMPPATH) return ResourceExhausted(text);
      Status status(Code::kInternal, text, error);
      if (fails_at_ != FailsAt::kNothing) DiskFailed(status);
      return status;
    }
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: {
      Status status = DataLoss(text);
      if (fails_at_ == FailsAt::kDamage) DiskFailed(status);
      return status;
    }
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_AUTH:
      return PermissionDenied(text);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return Unavailable(text);
    case SQLITE_NOMEM:
      return ResourceExhausted(text);
    default:
      return Status(Code::kInternal, text, error);
  }
}

Result<sqlite3_stmt*> SqliteConnection::Prepare(std::string_view sql) {
  auto it = statements_.find(sql);
  if (it != statements_.end()) return it->second;
  sqlite3_stmt* statement = nullptr;
  const char* tail = nullptr;
  int code = sqlite3_prepare_v3(handle_, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                                &statement, &tail);
  if (code != SQLITE_OK) return Error(code, sql);
  if (statement == nullptr) return InvalidArgument(path_ + ": an empty statement");
  statements_.emplace(sql, statement);
  return statement;
}

Status SqliteConnection::Bind(sqlite3_stmt* statement, std::string_view sql, const Params& params) {
  if (static_cast<size_t>(sqlite3_bind_parameter_count(statement)) != params.size()) {
    return Internal(path_ + ": " + std::string(sql) + ": wrong number of parameters");
  }
  for (size_t i = 0; i < params.size(); ++i) {
    int at = static_cast<int>(i) + 1, code = SQLITE_OK;
    const Param::Value& value = params[i].value();
    // An empty view may hold a null pointer, which would bind NULL.
    auto pointer = [](std::string_view text) { return text.data() == nullptr ? "" : text.data(); };
    if (const auto* integer = std::get_if<int64_t>(&value)) {
      code = sqlite3_bind_int64(statement, at, *integer);
    } else if (const auto* real = std::get_if<double>(&value)) {
      code = sqlite3_bind_double(statement, at, *real);
    } else if (const auto* text = std::get_if<std::string_view>(&value)) {
      code = sqlite3_bind_text64(statement, at, pointer(*text), text->size(), SQLITE_STATIC, SQLITE_UTF8);
    } else if (const auto* blob = std::get_if<Blob>(&value)) {
      code = sqlite3_bind_blob64(statement, at, pointer(blob->bytes), blob->bytes.size(), SQLITE_STATIC);
    } else {
      code = sqlite3_bind_null(statement, at);
    }
    if (code != SQLITE_OK) return Error(code, sql);
  }
  return {};
}

Result<int64_t> SqliteConnection::Change(std::string_view sql, const Params& params) {
  ASSIGN_OR_RETURN(sqlite3_stmt * statement, Prepare(sql));
  Lent lent(statement);
  RETURN_IF_ERROR(Bind(statement, sql, params));
  int code;
  while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
  }
  if (code != SQLITE_DONE) return Error(code, sql);
  return static_cast<int64_t>(sqlite3_changes64(handle_));
}

Status SqliteConnection::ForEach(std::string_view sql, const Params& params,
                                 const std::function<Status(Row&)>& each) {
  ASSIGN_OR_RETURN(sqlite3_stmt * statement, Prepare(sql));
  Lent lent(statement);
  RETURN_IF_ERROR(Bind(statement, sql, params));
  int code;
  while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
    int columns = sqlite3_column_count(statement);
    std::vector<Row::Value> values;
    values.reserve(static_cast<size_t>(columns));
    for (int i = 0; i < columns; ++i) values.push_back(Column(statement, i));
    Row row(std::move(values));
    RETURN_IF_ERROR(each(row));
  }
  if (code != SQLITE_DONE) return Error(code, sql);
  return {};
}

Status SqliteConnection::Script(const std::string& sql) {
  int code = sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? Status() : Error(code, sql);
}

}  // namespace lydian::store
