// One SQLite connection with its cache of statements. Private to store/.
// Thread-safety: none; the owner locks. SqliteLog: every method, from any thread.
#pragma once

#include <sqlite3.h>

#include <map>
#include <memory>
#include <string>

#include "store/database.h"

namespace lydian::store {

// The file system of SQLite's that locks a file once for the process, so that its connections share the index
// of the log in memory.
constexpr const char* kAloneSystem = "unix-excl";

// Whose files are opened from now on, by their names with SQLite. For tests.
void SetFileSystems(const char* shared, const char* alone);

// The log of a database that is open, to be put on the disk while others write it.
class SqliteLog {
 public:
  static Result<std::unique_ptr<SqliteLog>> Open(const std::string& database_path, bool alone);
  ~SqliteLog();
  SqliteLog(const SqliteLog&) = delete;
  SqliteLog& operator=(const SqliteLog&) = delete;

  Status Sync();

 private:
  explicit SqliteLog(std::string path) : path_(std::move(path)) {}
  sqlite3_file* file() { return reinterpret_cast<sqlite3_file*>(file_.get()); }

  std::string path_;  // SQLite keeps a pointer to it
  std::unique_ptr<uint64_t[]> file_;
};

class SqliteConnection : public Session {
 public:
  // What is the disk's failure (store/disk_failure.h). Damage that one who only reads has met he can tell his
  // asker, since nothing was changed.
  enum class FailsAt { kNothing, kErrors, kDamage /* too */ };
  static Result<std::unique_ptr<SqliteConnection>> Open(const std::string& path, bool writes, bool alone,
                                                        FailsAt fails_at = FailsAt::kNothing);
  ~SqliteConnection() override;

  Result<int64_t> Change(std::string_view sql, const Params& params = {}) override;
  Status ForEach(std::string_view sql, const Params& params,
                 const std::function<Status(Row& row)>& each) override;
  // Several statements without parameters, not kept.
  Status Script(const std::string& sql);
  bool in_transaction() const { return sqlite3_get_autocommit(handle_) == 0; }
  sqlite3* handle() const { return handle_; }
  Status Error(int code, std::string_view what) const;
  void set_fails_at(FailsAt fails_at) { fails_at_ = fails_at; }

 private:
  SqliteConnection(std::string path, sqlite3* handle) : path_(std::move(path)), handle_(handle) {}
  Result<sqlite3_stmt*> Prepare(std::string_view sql);
  Status Bind(sqlite3_stmt* statement, std::string_view sql, const Params& params);

  std::string path_;
  sqlite3* handle_;
  FailsAt fails_at_ = FailsAt::kNothing;
  std::map<std::string, sqlite3_stmt*, std::less<>> statements_;
};

}  // namespace lydian::store
