// One SQLite connection with its cache of statements. Private to store/.
// Thread-safety: none; the owner locks.
#pragma once

#include <sqlite3.h>

#include <map>
#include <memory>
#include <string>

#include "store/database.h"

namespace lydian::store {

class SqliteConnection : public Session {
 public:
  static Result<std::unique_ptr<SqliteConnection>> Open(const std::string& path, bool writes, bool alone);
  ~SqliteConnection() override;

  Result<int64_t> Change(std::string_view sql, const Params& params = {}) override;
  Status ForEach(std::string_view sql, const Params& params,
                 const std::function<Status(Row& row)>& each) override;
  // Several statements without parameters, not kept.
  Status Script(const std::string& sql);
  bool in_transaction() const { return sqlite3_get_autocommit(handle_) == 0; }
  sqlite3* handle() const { return handle_; }
  Status Error(int code, std::string_view what) const;

 private:
  SqliteConnection(std::string path, sqlite3* handle) : path_(std::move(path)), handle_(handle) {}
  Result<sqlite3_stmt*> Prepare(std::string_view sql);
  Status Bind(sqlite3_stmt* statement, std::string_view sql, const Params& params);

  std::string path_;
  sqlite3* handle_;
  std::map<std::string, sqlite3_stmt*, std::less<>> statements_;
};

}  // namespace lydian::store
