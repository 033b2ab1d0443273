// Which workspace a blob belongs to. The bytes and their signed URLs are the blob module's.
// Thread-safety: the objects strand only.
#pragma once

#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "control/scope.h"
#include "store/database.h"

namespace lydian::control {

class Blobs {
 public:
  Blobs(store::Database* db, Clock* clock) : db_(db), clock_(clock) {}

  Status Note(const Scope& scope, const std::string& blob_id, uint64_t size) {
    return db_->Execute("INSERT INTO blob (id, workspace_id, size, created_at) VALUES (?, ?, ?, ?)",
                        {blob_id, scope.workspace_id, size, clock_->UnixSeconds()});
  }
  // The announced size. Ids are random and not guessable; a container sees those of its workspace, since
  // arguments come as blobs of users.
  Result<uint64_t> Get(const Scope& scope, const std::string& blob_id) {
    ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT size FROM blob WHERE id = ? AND workspace_id = ?",
                                           {blob_id, scope.workspace_id}));
    if (rows.empty()) return NoSuch("blob", "bl", blob_id);
    return static_cast<uint64_t>(rows[0].Int(0));
  }

 private:
  store::Database* db_;
  Clock* clock_;
};

}  // namespace lydian::control
