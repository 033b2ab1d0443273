// Answers kept for repeats: the same caller, method and key within ten minutes gets the first answer again; a
// call that is still at work is joined. In memory and bounded; what must survive a restart is journalled by
// its handler.
//
// Thread-safety: all methods. Ownership: receivers are held until answered. Only OK answers are kept: an
// error may be passing, and a repeat runs again.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace lydian::rpc {

// Someone who waits for an answer.
class Receiver {
 public:
  virtual ~Receiver() = default;
  virtual void Answer(const Result<std::string>& answer) = 0;
  // Of the first: nobody waits any more, the work may be given up.
  virtual void GiveUp() = 0;
};

class IdempotencyStore {
 public:
  struct Entry {
    std::string key;
    bool done = false;
    SteadyTime expires;
    std::string response;
    std::vector<std::shared_ptr<Receiver>> receivers;  // while at work
    size_t present = 0;                                // of them, how many still wait
  };
  enum class Role {
    kFirst,   // run the handler, then Complete
    kJoined,  // the receiver is answered when the first is
    kReplay,  // *replay holds the answer
  };

  explicit IdempotencyStore(size_t most_bytes = size_t{64} << 20, Millis keep = std::chrono::minutes(10),
                            const Clock* clock = nullptr);

  Role Begin(std::string key, std::shared_ptr<Receiver> receiver, std::shared_ptr<Entry>* entry,
             std::string* replay);
  // Answers all who wait, and keeps an OK answer.
  void Complete(const std::shared_ptr<Entry>& entry, const Result<std::string>& answer);
  // A receiver's client has gone. When nobody waits any more, tells the first to give up. An answer that
  // comes all the same is kept for whoever repeats the call.
  void Leave(const std::shared_ptr<Entry>& entry);
  size_t bytes() const;

 private:
  void Evict(SteadyTime now, size_t room);  // mutex_ held

  const size_t most_bytes_;
  const Millis keep_;
  const Clock& clock_;
  mutable std::mutex mutex_;  // guards all below, and the entries
  std::unordered_map<std::string, std::shared_ptr<Entry>> entries_;
  std::deque<std::shared_ptr<Entry>> kept_;  // done, oldest first
  size_t bytes_ = 0;
};

}  // namespace lydian::rpc
