#include "store/database.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/fd.h"
#include "base/log.h"
#include "store/checkpoint_plan.h"
#include "store/disk_failure.h"
#include "store/sqlite_connection.h"

namespace lydian::store {

int64_t Row::Int(size_t column) const {
  const Value& value = values_.at(column);
  if (const auto* integer = std::get_if<int64_t>(&value)) return *integer;
  if (const auto* real = std::get_if<double>(&value)) return static_cast<int64_t>(*real);
  return 0;
}

double Row::Real(size_t column) const {
  const Value& value = values_.at(column);
  if (const auto* real = std::get_if<double>(&value)) return *real;
  if (const auto* integer = std::get_if<int64_t>(&value)) return static_cast<double>(*integer);
  return 0;
}

const std::string& Row::Text(size_t column) const {
  static const std::string empty;
  const auto* text = std::get_if<std::string>(&values_.at(column));
  return text == nullptr ? empty : *text;
}

std::string Row::TakeText(size_t column) {
  auto* text = std::get_if<std::string>(&values_.at(column));
  return text == nullptr ? std::string() : std::move(*text);
}

Result<std::vector<Row>> Session::Query(std::string_view sql, const Params& params) {
  std::vector<Row> rows;
  RETURN_IF_ERROR(ForEach(sql, params, [&](Row& row) {
    rows.push_back(std::move(row));
    return Status();
  }));
  return rows;
}

namespace {

constexpr size_t kIdleReaders = 4;
// How long a checkpoint that starts the log anew waits for readers, and holds writers meanwhile. With one
// that takes longer the log grows, and it is tried again some thousand pages later.
constexpr int kReadersMillis = 20;

// A writer, some readers, and a thread that moves the log into the database on a connection of its own (3-15
// ms each time, which no commit has to wait for).
class SqliteDatabase : public Database {
 public:
  explicit SqliteDatabase(Sharing sharing) : alone_(sharing == Sharing::kAlone) {}
  ~SqliteDatabase() override {
    {
      std::lock_guard lock(checkpoint_mutex_);
      stopping_ = true;
    }
    checkpoint_wanted_.notify_one();
    if (checkpointer_.joinable()) checkpointer_.join();
  }

  Status Init(const std::string& path, const std::vector<Migration>& migrations) {
    path_ = path;
    // Made here, so that its mode (and that of the log beside it, which follows it) doesn't hang on the
    // umask.
    UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!file.valid()) return ErrnoStatus("opening " + path);
    file.reset();
    ASSIGN_OR_RETURN(writer_, SqliteConnection::Open(path, true, alone_));
    RETURN_IF_ERROR(writer_->Script(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON; "
        "PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-8192; PRAGMA journal_size_limit=67108864"));
    RETURN_IF_ERROR(Migrate(migrations));
    ASSIGN_OR_RETURN(log_, SqliteLog::Open(path, alone_));
    writer_->set_fails_at(SqliteConnection::FailsAt::kDamage);
    sqlite3_wal_hook(writer_->handle(), &SqliteDatabase::OnCommit, this);
    checkpointer_ = std::thread([this] { CheckpointLoop(); });
    return {};
  }

  Result<int64_t> Change(std::string_view sql, const Params& params) override {
    std::lock_guard lock(writer_mutex_);
    return writer_->Change(sql, params);
  }

  Status ForEach(std::string_view sql, const Params& params,
                 const std::function<Status(Row&)>& each) override {
    ASSIGN_OR_RETURN(auto reader, Borrow());
    Status status = reader->ForEach(sql, params, each);
    std::lock_guard lock(readers_mutex_);
    if (readers_.size() < kIdleReaders) readers_.push_back(std::move(reader));
    return status;
  }

  Status Transaction(const std::function<Status(Session&)>& body) override {
    std::lock_guard lock(writer_mutex_);
    RETURN_IF_ERROR(writer_->Execute("BEGIN IMMEDIATE"));
    Status status = body(*writer_);
    if (status.ok()) status = writer_->Execute("COMMIT");
    if (!status.ok() && writer_->in_transaction()) {
      Status undone = writer_->Execute("ROLLBACK");  // some errors (a full disk) have rolled back already
      if (!undone.ok()) LOG_ERROR("a transaction could not be rolled back", {{"error", undone}});
    }
    return status;
  }

  Status Sync() override {
    Status status = log_->Sync();
    if (!status.ok()) DiskFailed(status);
    return status;
  }

  const std::string& path() const override { return path_; }

 private:
  static int OnCommit(void* self, sqlite3*, const char*, int pages) {
    auto* database = static_cast<SqliteDatabase*>(self);
    const CheckpointPlan::Step step = database->plan_.AfterCommit(pages);
    if (step == CheckpointPlan::Step::kNone) return SQLITE_OK;
    {
      std::lock_guard lock(database->checkpoint_mutex_);
      database->wanted_ = step;
    }
    database->checkpoint_wanted_.notify_one();
    return SQLITE_OK;
  }

  Status Migrate(const std::vector<Migration>& migrations) {
    RETURN_IF_ERROR(writer_->Execute(
        "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)"));
    ASSIGN_OR_RETURN(auto rows, writer_->Query("SELECT COALESCE(MAX(version), 0) FROM schema_version"));
    int64_t have = rows[0].Int(0);
    int64_t newest = migrations.empty() ? 0 : migrations.back().version;
    if (have > newest) {
      return FailedPrecondition(path_ + " was written by a newer Lydian (its version is " +
                                std::to_string(have) + ", this program knows " + std::to_string(newest) +
                                ")");
    }
    for (const Migration& migration : migrations) {
      if (migration.version <= have) continue;
      RETURN_IF_ERROR(Transaction([&](Session& session) -> Status {
                        RETURN_IF_ERROR(writer_->Script(migration.sql));
                        return session.Execute(
                            "INSERT INTO schema_version (version, applied_at) VALUES (?, CURRENT_TIMESTAMP)",
                            {migration.version});
                      }).With("migration " + std::to_string(migration.version)));
    }
    return {};
  }

  Result<std::unique_ptr<SqliteConnection>> Borrow() {
    {
      std::lock_guard lock(readers_mutex_);
      if (!readers_.empty()) {
        auto reader = std::move(readers_.back());
        readers_.pop_back();
        return reader;
      }
    }
    return SqliteConnection::Open(path_, false, alone_, SqliteConnection::FailsAt::kErrors);
  }

  void CheckpointLoop() {
    pthread_setname_np(pthread_self(), "checkpoint");
    auto connection = SqliteConnection::Open(path_, true, alone_, SqliteConnection::FailsAt::kDamage);
    if (!connection.ok()) {
      LOG_ERROR("no connection for checkpoints: the log of the database grows",
                {{"path", path_}, {"error", connection.status()}});
      return;
    }
    // A connection that has read nothing yet doesn't know of the log, and its checkpoints would do nothing.
    Status ready = (*connection)->Execute("SELECT COUNT(*) FROM schema_version");
    if (!ready.ok()) LOG_WARN("the checkpoint connection can't read", {{"error", ready}});
    sqlite3_busy_timeout((*connection)->handle(), kReadersMillis);
    std::unique_lock lock(checkpoint_mutex_);
    while (!stopping_) {
      if (wanted_ == CheckpointPlan::Step::kNone) {
        checkpoint_wanted_.wait(lock);
        continue;
      }
      const bool restart =
          std::exchange(wanted_, CheckpointPlan::Step::kNone) == CheckpointPlan::Step::kRestart;
      lock.unlock();
      Checkpoint(**connection, restart);
      lock.lock();
    }
  }

  void Checkpoint(SqliteConnection& connection, bool restart) {
    // Passive first even when it will restart: what then remains for the part that holds writers is small.
    int code =
        sqlite3_wal_checkpoint_v2(connection.handle(), nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
    if (code == SQLITE_OK && restart) {
      // Between two transactions, so that its short patience goes to readers alone.
      std::lock_guard writing(writer_mutex_);
      code = sqlite3_wal_checkpoint_v2(connection.handle(), nullptr, SQLITE_CHECKPOINT_RESTART, nullptr,
                                       nullptr);
    }
    if (code != SQLITE_OK && (code & 0xff) != SQLITE_BUSY) {
      LOG_WARN("checkpoint failed", {{"error", connection.Error(code, "checkpoint")}});
    }
  }

  const bool alone_;
  std::string path_;
  std::unique_ptr<SqliteLog> log_;
  std::mutex writer_mutex_;  // guards writer_ and plan_
  std::unique_ptr<SqliteConnection> writer_;
  CheckpointPlan plan_;
  std::mutex readers_mutex_;  // guards readers_
  std::vector<std::unique_ptr<SqliteConnection>> readers_;
  std::mutex checkpoint_mutex_;  // guards the two below
  CheckpointPlan::Step wanted_ = CheckpointPlan::Step::kNone;
  bool stopping_ = false;
  std::condition_variable checkpoint_wanted_;
  std::thread checkpointer_;
};

}  // namespace

Result<std::unique_ptr<Database>> Database::Open(const std::string& path,
                                                 const std::vector<Migration>& migrations, Sharing sharing) {
  auto database = std::make_unique<SqliteDatabase>(sharing);
  RETURN_IF_ERROR(database->Init(path, migrations));
  return std::unique_ptr<Database>(std::move(database));
}

}  // namespace lydian::store
