// What the stores hold, and whether rows and files agree: for `lydian store du` and `lydian store verify`.
// Thread-safety: any thread but the objects strand; everything blocks. Ownership: what is given outlives it.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "control/collector.h"
#include "control/log_store.h"
#include "control/tokens.h"

namespace lydian::control {

class StoreCheck {
 public:
  StoreCheck(store::Database* db, Collector* collector, Tokens* tokens, LogStore* logs, std::string state_dir)
      : db_(db), collector_(collector), tokens_(tokens), logs_(logs), state_dir_(std::move(state_dir)) {}

  // After the collector's Stop: waits for what is being looked at.
  void Stop() { std::lock_guard over(mutex_); }

  struct Usage {
    std::string kind, workspace, app;  // the last two: names; empty where it is nobody's alone
    uint64_t count = 0, bytes = 0;
    std::string place;  // below the state folder
  };
  Result<std::vector<Usage>> Measure(std::vector<std::string>* notes);

  struct Damage {
    std::string kind, id, what, mend;
  };
  struct Verdict {
    std::vector<Damage> damages;
    uint64_t checked = 0;
    std::vector<std::string> notes;
  };
  // Reads every file of mounts and contexts, here and on the workers. What it can mend it mends: a content
  // that is damaged or missing is asked of its client again, an image without its layers is built again.
  Result<Verdict> Verify();

 private:
  Status Going() const;  // UNAVAILABLE once the collector was stopped
  std::string NameOf(const std::string& workspace_id) const;
  Status VerifyBlobs(Verdict* verdict);
  Status VerifyObjects(Verdict* verdict);
  Status VerifyStrays(Verdict* verdict);
  Status VerifyWorkers(Verdict* verdict);

  store::Database* db_;
  Collector* collector_;
  Tokens* tokens_;
  LogStore* logs_;
  const std::string state_dir_;
  std::mutex mutex_;  // held while something is looked at
};

}  // namespace lydian::control
