#include "rpc/idempotency.h"

namespace lydian::rpc {
namespace {
// What an entry costs beside its texts: the node, the deque's slot, the control block.
constexpr size_t kOverhead = 256;

size_t Cost(const IdempotencyStore::Entry& entry) {
  return entry.key.size() * 2 + entry.response.size() + kOverhead;
}
}  // namespace

IdempotencyStore::IdempotencyStore(size_t most_bytes, Millis keep, const Clock* clock)
    : most_bytes_(most_bytes), keep_(keep), clock_(clock ? *clock : SystemClock()) {}

IdempotencyStore::Role IdempotencyStore::Begin(std::string key, std::shared_ptr<Receiver> receiver,
                                               std::shared_ptr<Entry>* entry, std::string* replay) {
  std::lock_guard lock(mutex_);
  Evict(clock_.Now(), 0);
  std::shared_ptr<Entry>& slot = entries_[key];
  if (slot && slot->done) {
    *replay = slot->response;
    return Role::kReplay;
  }
  const bool first = !slot;
  if (first) {
    slot = std::make_shared<Entry>();
    slot->key = std::move(key);
  }
  slot->receivers.push_back(std::move(receiver));
  ++slot->present;
  *entry = slot;
  return first ? Role::kFirst : Role::kJoined;
}

void IdempotencyStore::Complete(const std::shared_ptr<Entry>& entry, const Result<std::string>& answer) {
  std::vector<std::shared_ptr<Receiver>> receivers;
  {
    std::lock_guard lock(mutex_);
    if (entry->done) return;
    receivers.swap(entry->receivers);
    auto it = entries_.find(entry->key);
    const bool listed = it != entries_.end() && it->second == entry;
    if (answer.ok() && listed) {
      entry->response = *answer;
      entry->done = true;
      const SteadyTime now = clock_.Now();
      entry->expires = now + keep_;
      if (Cost(*entry) <= most_bytes_) {
        Evict(now, Cost(*entry));
        bytes_ += Cost(*entry);
        kept_.push_back(entry);
      } else {
        entries_.erase(it);
      }
    } else if (listed) {
      entries_.erase(it);
    }
  }
  for (const std::shared_ptr<Receiver>& receiver : receivers) receiver->Answer(answer);
}

void IdempotencyStore::Leave(const std::shared_ptr<Entry>& entry) {
  std::shared_ptr<Receiver> first;
  {
    std::lock_guard lock(mutex_);
    if (entry->present == 0 || --entry->present > 0 || entry->receivers.empty()) return;
    first = entry->receivers.front();
  }
  first->GiveUp();
}

size_t IdempotencyStore::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

void IdempotencyStore::Evict(SteadyTime now, size_t room) {
  while (!kept_.empty() && (kept_.front()->expires <= now || bytes_ + room > most_bytes_)) {
    bytes_ -= Cost(*kept_.front());
    entries_.erase(kept_.front()->key);
    kept_.pop_front();
  }
}

}  // namespace lydian::rpc
