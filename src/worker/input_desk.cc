#include "worker/input_desk.h"

#include <algorithm>

#include "base/log.h"
#include "worker/link_limits.h"

namespace lydian::worker {
namespace {
constexpr size_t kRecent = 4096;

LeaseRef Ref(const HeldLease& lease) {
  LeaseRef ref;
  ref.set_input_id(lease.input_id);
  ref.set_attempt(lease.attempt);
  ref.set_epoch(lease.epoch);
  return ref;
}
}  // namespace

void RunningInput::Set(std::string input_id, std::string call_id) {
  std::function<void()> told;
  {
    std::lock_guard lock(mutex_);
    if (input_id == input_id_ && call_id == call_id_) return;
    input_id_ = std::move(input_id);
    call_id_ = std::move(call_id);
    told.swap(on_next_set_);
  }
  if (told) told();
}
void RunningInput::OnNextSet(std::function<void()> fn) {
  std::lock_guard lock(mutex_);
  on_next_set_ = std::move(fn);
}
void RunningInput::Get(std::string* input_id, std::string* call_id) const {
  std::lock_guard lock(mutex_);
  *input_id = input_id_;
  *call_id = call_id_;
}

InputDesk::InputDesk(Options options, LeaseTable* table, OutputSpool* spool)
    : options_(std::move(options)), table_(table), spool_(spool) {
  last_key_ = table_->last_key();
  batch_ = table_->last_batch();
  for (HeldLease& lease : table_->Held()) held_.emplace(Key{lease.input_id, lease.attempt}, lease);
  adopted_answer_ = !last_key_.empty();
  ready_ = table_->flag(LeaseTable::kReady);
  closed_ = table_->flag(LeaseTable::kStopping);
  TakeSpooled();
  UpdateRunning();
}

// Outputs that the worker before this one had taken. The table says which of them control may not have.
void InputDesk::TakeSpooled() {
  for (Output& output : spool_->TakeFound()) {
    const Key key{output.input_id(), output.attempt()};
    const auto held = held_.find(key);
    if (held == held_.end() || outputs_.contains(key)) {
      spool_->Forget();
      continue;
    }
    output.set_epoch(held->second.epoch);
    last_output_status_ = output.status();
    Pending& pending = outputs_[key];
    pending.output = std::move(output);
    pending.spooled = true;
  }
}

InputDesk::~InputDesk() {
  *alive_ = false;
  if (linger_) options_.strand->CancelTimer(*linger_);
}

void InputDesk::Ask(std::shared_ptr<InputQuestion> question) {
  // One in flight: an older one belongs to a connection that broke.
  if (question_) Answer(Cancelled("the container asked again"));
  if (!question->key.empty() && question->key == last_key_) {
    if (adopted_answer_) {
      GiveBackUndelivered();
    } else if (!last_leases_.empty()) {
      question->reply(Handed{last_leases_, false});
      return;
    }
  }
  adopted_answer_ = false;
  last_leases_.clear();
  question_ = std::move(question);
  if (!ready_) {
    ready_ = true;
    table_->SetFlag(LeaseTable::kReady);
    options_.on_ready();
    SendDemand(true);
  }
  Serve();
}

void InputDesk::Withdraw(const std::shared_ptr<InputQuestion>& question) {
  if (question_ != question) return;
  question_ = nullptr;
  if (linger_) options_.strand->CancelTimer(*linger_);
  linger_.reset();
  linger_over_ = false;
}

void InputDesk::Add(const Lease& lease) {
  if (closed_) {
    FromWorker message;
    message.mutable_give_back()->set_task_id(options_.task_id);
    LeaseRef* ref = message.mutable_give_back()->add_leases();
    ref->set_input_id(lease.input_id());
    ref->set_attempt(lease.attempt());
    ref->set_epoch(lease.epoch());
    options_.send(std::move(message));
    return;
  }
  // Sent again after a broken connection.
  const Key key{lease.input_id(), lease.attempt()};
  if (auto it = held_.find(key); it != held_.end()) {
    it->second.epoch = lease.epoch();
    table_->Remove(key.first, key.second);
    if (Status status = table_->Put(it->second); !status.ok()) LOG_ERROR("lease table", {{"error", status}});
    if (auto pending = outputs_.find(key); pending != outputs_.end())
      pending->second.output.set_epoch(lease.epoch());
    return;
  }
  for (Lease& queued : queued_) {
    if (queued.input_id() == lease.input_id()) {
      queued = lease;
      return;
    }
  }
  queued_.push_back(lease);
  Serve();
}

void InputDesk::Serve() {
  if (!question_) return;
  if (closed_) {
    table_->SetFlag(LeaseTable::kKillSwitch);
    Answer(Handed{{}, true});
    options_.on_kill_switch();
    return;
  }
  if (queued_.empty()) return;
  const uint32_t places = table_->places();
  if (places == 0) return;  // control is behind: its acknowledgements make room
  const size_t most = std::min(places, std::max<uint32_t>(1, question_->batch_max_size));
  // A batch is of one method: that of the oldest.
  const std::string& method = queued_.front().method_name();
  const auto matching = static_cast<size_t>(std::count_if(
      queued_.begin(), queued_.end(), [&](const Lease& lease) { return lease.method_name() == method; }));
  if (matching < most && question_->batch_linger_ms > 0 && !linger_over_) {
    if (!linger_) {
      linger_ = options_.strand->PostAfter(Millis(question_->batch_linger_ms), [this, alive = alive_] {
        if (!*alive) return;
        linger_.reset();
        linger_over_ = true;
        Serve();
      });
    }
    return;
  }
  std::vector<Lease> leases;
  for (auto it = queued_.begin(); it != queued_.end() && leases.size() < most;) {
    if (it->method_name() != method && !leases.empty()) {
      ++it;
      continue;
    }
    if (!leases.empty() && it->method_name() != leases.front().method_name()) {
      ++it;
      continue;
    }
    leases.push_back(std::move(*it));
    it = queued_.erase(it);
  }
  HandOver(std::move(leases));
}

void InputDesk::HandOver(std::vector<Lease> leases) {
  // The answer is noted before its leases: however much of this is done when the worker dies, the container
  // asks again with this key, and what was noted for it goes back.
  table_->SetLastAnswer(question_->key, ++batch_);
  for (const Lease& lease : leases) {
    HeldLease held{lease.input_id(), lease.function_call_id(), lease.attempt(), lease.epoch(), batch_};
    if (Status status = table_->Put(held); !status.ok()) {
      // More than it has slots for: control's mistake; it gets the rest back.
      LOG_ERROR("a lease has no place", {{"task_id", options_.task_id}, {"error", status}});
      FromWorker message;
      message.mutable_give_back()->set_task_id(options_.task_id);
      *message.mutable_give_back()->add_leases() = Ref(held);
      options_.send(std::move(message));
      continue;
    }
    held_.insert_or_assign(Key{held.input_id, held.attempt}, held);
    last_leases_.push_back(lease);
  }
  if (last_leases_.empty()) return;
  last_key_ = question_->key;
  UpdateRunning();
  Answer(Handed{last_leases_, false});
}

void InputDesk::Answer(Result<Handed> answer) {
  auto question = std::exchange(question_, nullptr);
  if (linger_) options_.strand->CancelTimer(*linger_);
  linger_.reset();
  linger_over_ = false;
  question->reply(std::move(answer));
}

void InputDesk::GiveBackUndelivered() {
  FromWorker message;
  message.mutable_give_back()->set_task_id(options_.task_id);
  for (auto it = held_.begin(); it != held_.end();) {
    if (it->second.batch != batch_ || outputs_.contains(it->first)) {
      ++it;
      continue;
    }
    *message.mutable_give_back()->add_leases() = Ref(it->second);
    table_->Remove(it->first.first, it->first.second);
    it = held_.erase(it);
  }
  UpdateRunning();
  if (message.give_back().leases_size() > 0) options_.send(std::move(message));
}

void InputDesk::Put(Output output, std::function<void()> done) {
  const Key key{output.input_id(), output.attempt()};
  if (auto it = outputs_.find(key); it != outputs_.end()) {
    if (it->second.spooled) return done();
    it->second.done.push_back(std::move(done));
    return;
  }
  auto held = held_.find(key);
  if (held == held_.end() || recent_set_.contains(key)) {
    // Acknowledged before, or taken away meanwhile: the container must not ask for ever.
    if (held == held_.end() && !recent_set_.contains(key)) {
      LOG_WARN("an output of an input that the container doesn't hold is dropped",
               {{"task_id", options_.task_id}, {"input_id", key.first}, {"attempt", key.second}});
    }
    done();
    return;
  }
  output.set_epoch(held->second.epoch);
  output.set_task_id(options_.task_id);
  last_output_status_ = output.status();
  Pending& pending = outputs_[key];
  pending.output = std::move(output);
  const Status spooled = spool_->Add(pending.output);
  pending.spooled = spooled.ok();
  if (!pending.spooled) {
    LOG_WARN("an output is kept by control alone", {{"task_id", options_.task_id}, {"why", spooled}});
    pending.done.push_back(std::move(done));
  }
  UpdateRunning();
  options_.send_output(pending.output, /*soon=*/pending.spooled && !queued_.empty());
  const bool safe = pending.spooled;
  if (spool_->crowded()) TidySpool();
  if (safe) done();  // NOLINT(bugprone-use-after-move): moved only if not. It runs on while control is told
}

void InputDesk::TidySpool() {
  std::vector<const Output*> needed;
  for (const auto& [key, pending] : outputs_) {
    if (pending.spooled) needed.push_back(&pending.output);
  }
  if (Status status = spool_->Rewrite(needed); !status.ok()) {
    LOG_WARN("a spool of outputs stays large", {{"task_id", options_.task_id}, {"why", status}});
  }
}

void InputDesk::Acked(const LeaseRef& lease) {
  const Key key{lease.input_id(), lease.attempt()};
  auto it = outputs_.find(key);
  if (it == outputs_.end()) return;
  std::vector<std::function<void()>> done = std::move(it->second.done);
  if (it->second.spooled) spool_->Forget();
  outputs_.erase(it);
  Forget(key);
  recent_.push_back(key);
  recent_set_.insert(key);
  if (recent_.size() > kRecent) {
    recent_set_.erase(recent_.front());
    recent_.pop_front();
  }
  for (auto& answer : done) answer();
  Serve();  // the table has a place again
}

void InputDesk::Forget(const Key& key) {
  held_.erase(key);
  table_->Remove(key.first, key.second);
  UpdateRunning();
}

std::vector<std::string> InputDesk::Cancel(const std::vector<std::string>& input_ids) {
  std::vector<std::string> running;
  FromWorker message;
  message.mutable_give_back()->set_task_id(options_.task_id);
  for (const std::string& id : input_ids) {
    for (auto it = queued_.begin(); it != queued_.end();) {
      if (it->input_id() != id) {
        ++it;
        continue;
      }
      LeaseRef* ref = message.mutable_give_back()->add_leases();
      ref->set_input_id(id);
      ref->set_attempt(it->attempt());
      ref->set_epoch(it->epoch());
      it = queued_.erase(it);
    }
    for (const auto& [key, held] : held_) {
      if (key.first == id && !outputs_.contains(key)) running.push_back(id);
    }
  }
  if (message.give_back().leases_size() > 0) options_.send(std::move(message));
  return running;
}

void InputDesk::GiveBackQueued() {
  if (queued_.empty()) return;
  FromWorker message;
  message.mutable_give_back()->set_task_id(options_.task_id);
  for (const Lease& lease : queued_) {
    LeaseRef* ref = message.mutable_give_back()->add_leases();
    ref->set_input_id(lease.input_id());
    ref->set_attempt(lease.attempt());
    ref->set_epoch(lease.epoch());
  }
  queued_.clear();
  options_.send(std::move(message));
}

void InputDesk::Close() {
  if (!closed_) {
    closed_ = true;
    table_->SetFlag(LeaseTable::kStopping);
    GiveBackQueued();
  }
  Serve();
}

void InputDesk::Abandon() {
  closed_ = true;
  GiveBackQueued();
  if (question_) Answer(Cancelled("the container has ended"));
}

std::vector<LeaseRef> InputDesk::Held() const {
  std::vector<LeaseRef> refs;
  for (const auto& [key, held] : held_) refs.push_back(Ref(held));
  for (const Lease& lease : queued_) {
    LeaseRef ref;
    ref.set_input_id(lease.input_id());
    ref.set_attempt(lease.attempt());
    ref.set_epoch(lease.epoch());
    refs.push_back(std::move(ref));
  }
  return refs;
}

void InputDesk::Resend() {
  std::vector<const Output*> outputs;
  for (const auto& [key, pending] : outputs_) outputs.push_back(&pending.output);
  SendInParts(outputs, options_.send);
  if (ready_ && !closed_) SendDemand(true);
}

void InputDesk::SendDemand(bool first) {
  FromWorker message;
  InputDemand* demand = message.mutable_demand();
  demand->set_task_id(options_.task_id);
  const size_t taken = held_.size() - outputs_.size() + queued_.size();
  demand->set_free_slots(taken >= options_.slots ? 0 : static_cast<uint32_t>(options_.slots - taken));
  demand->set_ready(first);
  options_.send(std::move(message));
}

void InputDesk::UpdateRunning() {
  const HeldLease* only = nullptr;
  for (const auto& [key, held] : held_) {
    if (outputs_.contains(key)) continue;  // done; control has only not heard of it yet
    if (only != nullptr) {
      running_->Set("", "");
      return;
    }
    only = &held;
  }
  running_->Set(only == nullptr ? "" : only->input_id, only == nullptr ? "" : only->function_call_id);
}

}  // namespace lydian::worker
