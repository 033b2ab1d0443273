#include <algorithm>
#include <charconv>

#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

// A map's poll is answered at once with this many outputs; each answer costs the client about as much as two
// more outputs in it.
constexpr size_t kManyOutputs = 50;
constexpr Millis kLastCoalesce{2};  // ... or after this, when no input is unfinished
constexpr size_t kMostOutputs = 1000;
constexpr size_t kMostBytes = size_t{16} << 20;
constexpr Millis kLongestPoll{55'000};

// 0, that is all from the start, for one of another incarnation: the outputs that it has counted may be lost
// with the machine's power, and others have their numbers. Clients know what they have by its index.
uint32_t CursorOf(std::string_view last_entry_id, std::string_view incarnation) {
  uint32_t cursor = 0;
  const char* end = last_entry_id.data() + last_entry_id.size();
  const auto [rest, error] = std::from_chars(last_entry_id.data(), end, cursor);
  if (error != std::errc() || rest == end || *rest != '-') return 0;
  return std::string_view(rest + 1, end) == incarnation ? cursor : 0;
}

bool Ranged(const OutputsQuery& query) { return query.start_idx.has_value(); }

uint32_t FirstOf(const OutputsQuery& query) {
  return static_cast<uint32_t>(std::max(query.start_idx.value_or(0), 0));
}
uint32_t LastOf(const OutputsQuery& query) {
  return static_cast<uint32_t>(std::max(query.end_idx.value_or(INT32_MAX), 0));
}

// Somewhat less than the client gives us, so that our empty answer comes before its deadline.
Millis HoldFor(Millis timeout) {
  timeout = std::min(timeout, kLongestPoll);
  return timeout - std::min(Millis(500), timeout / 20);
}

}  // namespace

void EngineCore::GetOutputs(uint64_t handle, Call* call, OutputsQuery query,
                            std::function<void(Result<OutputsPage>)> reply) {
  // The end of a map: the client has all it wants. It asks from the start again, and doesn't read the answer.
  if (query.clear_on_success && !Ranged(query) && call->call_type == kCallMap) {
    OutputsPage page;
    page.last_entry_id = query.last_entry_id;
    page.unfinished = static_cast<int32_t>(call->unfinished);
    if (call->synchronous()) Acknowledge(call);
    return reply(std::move(page));
  }
  auto poll = std::make_shared<Poll>();
  poll->id = handle;
  poll->call = call;
  poll->cursor = CursorOf(query.last_entry_id, incarnation_);
  poll->query = std::move(query);
  poll->reply = std::move(reply);
  // What a map's reader has got needs no memory; should the answer have been lost, the journal has it.
  while (!Ranged(poll->query) && call->synchronous() && !call->recent.empty() &&
         call->recent.front().seq <= poll->cursor && call->recent.front().journalled) {
    ForgetFront(call);
  }
  call->polls.push_back(poll);
  polls_[handle] = poll;
  ServePoll(poll);
  if (!poll->reply) return;
  Millis hold = HoldFor(poll->query.timeout);
  if (hold.count() <= 0) return AnswerPoll(poll, Collect(call, *poll));
  poll->deadline = strand_.PostAfter(hold, [this, handle] {
    auto late = polls_.find(handle);
    if (late == polls_.end()) return;
    std::shared_ptr<Poll> held = late->second;
    AnswerPoll(held, Collect(held->call, *held));
    Idle(held->call);
  });
}

void EngineCore::Collected::SetCursor() {
  uint32_t last = cursor;
  for (const OutputView& output : page.outputs) last = std::max(last, output.seq);
  page.last_entry_id = std::to_string(last) + "-" + std::string(incarnation);
}

EngineCore::Collected EngineCore::Collect(Call* call, const Poll& poll) const {
  Collected out;
  out.cursor = poll.cursor;
  out.incarnation = incarnation_;
  const size_t most =
      poll.query.max_values == 0 ? kMostOutputs : std::min(poll.query.max_values, kMostOutputs);
  std::vector<size_t> positions;
  if (Ranged(poll.query)) {
    positions = call->outputs.InRange(FirstOf(poll.query), LastOf(poll.query), most);
  } else {
    const size_t first = call->outputs.Behind(poll.cursor);
    for (size_t i = first; i < call->outputs.size() && i - first < most; ++i) positions.push_back(i);
  }
  size_t bytes = 0;
  for (const size_t position : positions) {
    if (bytes >= kMostBytes) break;
    const OutputKey& key = call->outputs[position];
    if (const OutputView* known = call->recent.Find(key.seq)) {
      bytes += known->result ? known->result->size() : known->text.size();
      out.page.outputs.push_back(*known);
      continue;
    }
    out.missing.push_back(key.seq);
    out.places.push_back(out.page.outputs.size());
    out.page.outputs.emplace_back().seq = key.seq;
  }
  out.room = kMostBytes - std::min(bytes, kMostBytes);
  out.page.unfinished = static_cast<int32_t>(call->unfinished);
  out.SetCursor();
  return out;
}

void EngineCore::ServePoll(const std::shared_ptr<Poll>& poll) {
  Call* call = poll->call;
  if (Ranged(poll->query)) {
    // Without news nothing may be left that could come: the client raises "expired" for it, and asks on where
    // it should wait.
    if (call->outputs.InRange(FirstOf(poll->query), LastOf(poll->query), 1).empty()) return;
    return AnswerNews(poll, Collect(call, *poll));
  }
  const size_t news = call->outputs.size() - call->outputs.Behind(poll->cursor);
  if (news == 0) return;
  size_t many = poll->query.max_values == 0 ? kManyOutputs : std::min(poll->query.max_values, kManyOutputs);
  if (poll->coalesced || news >= many) return AnswerNews(poll, Collect(call, *poll));
  // With nothing unfinished it is the end, unless the client is about to put more in.
  const bool last = call->unfinished == 0 && !poll->last;
  if (poll->coalesce && !last) return;
  if (poll->coalesce) strand_.CancelTimer(*poll->coalesce);
  poll->last = last;
  const Millis wait = last ? std::min(options_.map_coalesce, kLastCoalesce) : options_.map_coalesce;
  poll->coalesce = strand_.PostAfter(wait, [this, handle = poll->id] {
    auto it = polls_.find(handle);
    if (it == polls_.end()) return;
    std::shared_ptr<Poll> gathered = it->second;
    gathered->coalesced = true;
    ServePoll(gathered);
  });
}

// Who asks to clear what it gets has all of a unary call then.
void EngineCore::AnswerNews(const std::shared_ptr<Poll>& poll, Collected collected) {
  Call* call = poll->call;
  const bool last = call->call_type == kCallUnary && poll->query.clear_on_success && call->synchronous() &&
                    call->unfinished == 0;
  AnswerPoll(poll, std::move(collected));
  if (last) Acknowledge(call);
}

void EngineCore::AnswerPoll(const std::shared_ptr<Poll>& poll, Result<Collected> collected) {
  if (poll->deadline) strand_.CancelTimer(*poll->deadline);
  if (poll->coalesce) strand_.CancelTimer(*poll->coalesce);
  polls_.erase(poll->id);
  Call* call = poll->call;
  call->polls.remove(poll);
  auto reply = std::move(poll->reply);
  poll->reply = nullptr;
  if (reply && !collected.ok()) return reply(collected.status());
  if (reply) ReplyWithAll(call, std::move(collected).value(), std::move(reply));
}

void EngineCore::DropPoll(uint64_t handle) {
  asking_.erase(handle);
  auto it = polls_.find(handle);
  if (it == polls_.end()) return;
  std::shared_ptr<Poll> poll = it->second;
  poll->reply = nullptr;
  AnswerPoll(poll, Collected{});
  if (poll->call->polls.empty()) Idle(poll->call);
}

void EngineCore::WakePolls(Call* call, uint32_t idx) {
  std::vector<std::shared_ptr<Poll>> waiting;
  for (const auto& poll : call->polls) {
    if (!Ranged(poll->query) || (idx >= FirstOf(poll->query) && idx <= LastOf(poll->query)))
      waiting.push_back(poll);
  }
  for (const auto& poll : waiting) {
    if (poll->reply) ServePoll(poll);
  }
}

}  // namespace lydian::control
