// Answers of calls that create something, kept under the client's idempotency key: a client whose connection
// broke with a killed control asks the next one again, and must get the first answer. (While control lives,
// the router replays them from memory.) Thread-safety: the objects strand only.
#pragma once

#include <optional>
#include <string>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "store/database.h"

namespace lydian::control {

class Answers {
 public:
  Answers(store::Database* db, Clock* clock) : db_(db), clock_(clock) {}

  // One key for each caller, method and key of its.
  static std::string KeyOf(const std::string& workspace_id, const std::string& caller_id,
                           std::string_view method, std::string_view key) {
    return Sha256Hex(workspace_id + '\n' + caller_id + '\n' + std::string(method) + '\n' + std::string(key));
  }
  Result<std::optional<std::string>> Find(const std::string& key) {
    ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT response FROM answer WHERE key = ?", {key}));
    if (rows.empty()) return std::optional<std::string>();
    return std::optional<std::string>(rows[0].TakeText(0));
  }
  Status Keep(const std::string& key, const std::string& response) {
    double now = clock_->UnixSeconds();
    RETURN_IF_ERROR(db_->Execute("DELETE FROM answer WHERE at < ?", {now - kKeepSeconds}));
    return db_->Execute(
        "INSERT INTO answer (key, response, at) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
        {key, store::Blob{response}, now});
  }

 private:
  static constexpr double kKeepSeconds = 600;

  store::Database* db_;
  Clock* clock_;
};

}  // namespace lydian::control
