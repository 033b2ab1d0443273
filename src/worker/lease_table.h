// What one container holds, in a file that is mapped: a worker that was killed learns from it what its
// containers were handed, how far their logs were acknowledged and whether they have their identity.
// docs/formats/lease-table.md.
//
// Thread-safety: the lease part belongs to the strand, the log part to the log thread; they touch different
// bytes. Durability: against the death of the process (the pages are the kernel's), not of the machine.
// Errors: a file of another form, or with a damaged record, is DATA_LOSS; a full table RESOURCE_EXHAUSTED.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace lydian::worker {

struct HeldLease {
  std::string input_id;
  std::string function_call_id;
  uint32_t attempt = 0;
  uint64_t epoch = 0;
  uint64_t batch = 0;  // of which answer to FunctionGetInputs it was part
};

class LeaseTable {
 public:
  // The most records that a new table may have: its disk is taken at once, and every search walks it.
  static constexpr uint64_t kMostPlaces = 32'768;
  // Makes the file, or opens it if it is there. INVALID_ARGUMENT beyond kMostPlaces.
  static Result<std::unique_ptr<LeaseTable>> Open(const std::string& path, uint64_t capacity);
  ~LeaseTable();
  LeaseTable(const LeaseTable&) = delete;
  LeaseTable& operator=(const LeaseTable&) = delete;

  Status Put(const HeldLease& lease);
  bool Remove(std::string_view input_id, uint32_t attempt);
  std::vector<HeldLease> Held() const;
  uint32_t places() const { return capacity_ - used_; }  // for more

  // The idempotency key of the question that the newest batch answers: a container that asks again with it
  // never got the answer. Set before the batch's leases are put: who dies in between has put some of them,
  // and knows whose they are.
  void SetLastAnswer(std::string_view key, uint64_t batch);
  std::string last_key() const;
  uint64_t last_batch() const;

  enum Flag : uint32_t { kIdentitySent = 1, kReady = 2, kStopping = 4, kKillSwitch = 8 };
  void SetFlag(Flag flag);
  bool flag(Flag flag) const;

  // Logs: acknowledged up to, and the ends of the batches that were sent and not acknowledged, oldest first
  // (at most kMostCuts).
  using Offsets = std::pair<uint64_t, uint64_t>;  // stdout, stderr
  static constexpr uint32_t kMostCuts = 64;
  Offsets log_acked() const;
  void SetLogAcked(Offsets acked);  // drops the cuts up to it
  bool AddLogCut(Offsets end);      // false when kMostCuts wait already
  std::vector<Offsets> log_cuts() const;

 private:
  struct Answer;
  struct Header;
  struct Record;
  const Answer* last_answer() const;  // null: there was none
  LeaseTable(void* memory, size_t bytes);
  Header& header() const;
  Record* records() const;

  void* memory_;
  size_t bytes_;
  uint32_t capacity_ = 0, used_ = 0;
};

}  // namespace lydian::worker
