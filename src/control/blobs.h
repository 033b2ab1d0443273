// Which workspace a blob belongs to, and what it has announced to upload. The bytes and their signed URLs are
// the blob module's.
// Thread-safety: the objects strand only.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "control/scope.h"
#include "store/database.h"

namespace lydian::control {

// Of one workspace: uploads that were announced, have not come whole, and whose URLs still hold.
struct UploadLimits {
  size_t count = 4096;
  uint64_t bytes = uint64_t{128} << 30;
  Millis look_every{200};  // for what has come meanwhile, where the limit is reached: thousands of files
};

class Blobs {
 public:
  Blobs(store::Database* db, Clock* clock, UploadLimits limits = {})
      : db_(db), clock_(clock), limits_(limits) {}

  // A blob that the caller may upload for as many seconds. `stored` tells whether a blob has come; asked for
  // when the limit is near. RESOURCE_EXHAUSTED beyond it.
  Status Announce(const Scope& scope, const std::string& blob_id, uint64_t size, int64_t seconds,
                  const std::function<bool(const std::string& blob_id)>& stored);
  // The announced size. Ids are random and not guessable; a container sees those of its workspace, since
  // arguments come as blobs of users.
  Result<uint64_t> Get(const Scope& scope, const std::string& blob_id) {
    ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT size FROM blob WHERE id = ? AND workspace_id = ?",
                                           {blob_id, scope.workspace_id}));
    if (rows.empty()) return NoSuch("blob", "bl", blob_id);
    return static_cast<uint64_t>(rows[0].Int(0));
  }

  // Its bytes have become a file, and are gone.
  Status Forget(const std::string& blob_id) {
    return db_->Execute("DELETE FROM blob WHERE id = ?", {blob_id});
  }

 private:
  struct Upload {
    std::string id;
    uint64_t size = 0;
    double until = 0;
  };
  struct Uploads {
    std::deque<Upload> open;
    uint64_t bytes = 0;
    SteadyTime looked_at;
  };

  store::Database* db_;
  Clock* clock_;
  const UploadLimits limits_;
  std::map<std::string, Uploads> uploads_;  // by workspace; forgotten at a restart, as the bytes are
};

}  // namespace lydian::control
