// The inputs of one container: leases that came from control, the container's question for inputs, outputs on
// their way to control.
//
// Life of an input: Add (queued) -> handed over, in the lease table -> Put: its output is in the spool, the
// container is answered, control is told -> Acked: both records are gone. What was never handed over goes
// back (GiveBack).
//
// Thread-safety: everything on the worker's strand. Ownership: table and spool are the task's. Replies are
// called on the strand, once each; one that is dropped unanswered belongs to a container that is gone.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/executor.h"
#include "base/status.h"
#include "lydian/worker.pb.h"
#include "worker/lease_table.h"
#include "worker/output_spool.h"

namespace lydian::worker {

// Leases, the kill switch, or an error.
struct Handed {
  std::vector<Lease> leases;
  bool kill_switch = false;
};

struct InputQuestion {
  std::string key;  // x-idempotency-key; "" = none
  uint32_t batch_max_size = 0;
  uint64_t batch_linger_ms = 0;
  std::function<void(Result<Handed>)> reply;
};

// What runs in the container when it is exactly one input, for its logs. Any thread.
class RunningInput {
 public:
  void Set(std::string input_id, std::string call_id);
  void Get(std::string* input_id, std::string* call_id) const;
  // Runs `fn` once, before the next Set returns: it must not block or call this. Replaces an earlier one.
  void OnNextSet(std::function<void()> fn);

 private:
  mutable std::mutex mutex_;  // guards all
  std::string input_id_, call_id_;
  std::function<void()> on_next_set_;
};

class InputDesk {
 public:
  struct Options {
    std::string task_id;
    uint32_t slots = 1;
    Strand* strand = nullptr;              // for the linger of batches
    std::function<void(FromWorker)> send;  // drops it when control is away: Resend repeats what counts
    // An output, under the same condition; `soon`: it need not go at once, its container has more to do.
    std::function<void(const Output& output, bool soon)> send_output;
    std::function<void()> on_ready;        // the first question
    std::function<void()> on_kill_switch;  // it was handed over
  };
  InputDesk(Options options, LeaseTable* table, OutputSpool* spool);
  ~InputDesk();

  void Ask(std::shared_ptr<InputQuestion> question);
  void Withdraw(
      const std::shared_ptr<InputQuestion>& question);  // the container gave up or broke its connection
  void Add(const Lease& lease);
  // One output of a container. `epoch` is filled in. `done` once it is safe: in the spool or, where that is
  // full, with control.
  void Put(Output output, std::function<void()> done);
  void Acked(const LeaseRef& lease);
  // Those not handed over go back; returns those that the container works on.
  std::vector<std::string> Cancel(const std::vector<std::string>& input_ids);

  // From now on every question is answered with the kill switch; queued leases go back.
  void Close();
  // The process is gone: questions are dropped, queued leases go back.
  void Abandon();

  bool asking() const { return question_ != nullptr; }
  bool ready() const { return ready_; }
  bool idle() const { return held_.empty(); }
  bool all_acked() const { return outputs_.empty(); }
  int last_output_status() const { return last_output_status_; }
  // Handed over or waiting here: a new connection tells control, which queues the rest again.
  std::vector<LeaseRef> Held() const;
  // After a new connection: outputs that control may not have, and what the container waits for.
  void Resend();
  std::shared_ptr<RunningInput> running_input() const { return running_; }

 private:
  using Key = std::pair<std::string, uint32_t>;  // input id, attempt
  struct Pending {
    Output output;
    bool spooled = false;
    std::vector<std::function<void()>> done;  // of those not spooled
  };

  void TakeSpooled();
  void TidySpool();
  void Serve();  // answers the question if there is something to answer it with
  void HandOver(std::vector<Lease> leases);
  void Answer(Result<Handed> answer);
  void GiveBackQueued();
  void GiveBackUndelivered();
  void SendDemand(bool first);
  void Forget(const Key& key);
  void UpdateRunning();

  Options options_;
  LeaseTable* table_;
  OutputSpool* spool_;
  std::shared_ptr<RunningInput> running_ = std::make_shared<RunningInput>();
  std::deque<Lease> queued_;
  std::map<Key, HeldLease> held_;
  std::map<Key, Pending> outputs_;
  std::deque<Key> recent_;  // acknowledged lately: the same output again is answered at once
  std::set<Key> recent_set_;
  std::shared_ptr<InputQuestion> question_;
  std::optional<Strand::TimerId> linger_;
  bool linger_over_ = false;
  std::string last_key_;
  std::vector<Lease> last_leases_;  // the newest answer, for a container that did not get it
  uint64_t batch_;
  bool adopted_answer_ = false;  // last_key_ is from before a restart: its leases are not in memory
  bool ready_ = false;
  bool closed_ = false;
  int last_output_status_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace lydian::worker
