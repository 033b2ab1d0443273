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
constexpr size_t kChunkBytes = size_t{4} << 20;
constexpr uint64_t kChunkCost = 200;  // of one without its bytes
// Of what its reader has, a synchronous generator keeps this much: more than can be on the way, should the
// connection break.
constexpr uint64_t kChunksBehind = uint64_t{8} << 20;
constexpr Millis kLongestPoll{55'000};

uint32_t CursorOf(const std::string& last_entry_id) {
  uint32_t cursor = 0;
  std::from_chars(last_entry_id.data(), last_entry_id.data() + last_entry_id.size(), cursor);
  return cursor;
}

uint64_t CostOfChunk(std::string_view bytes) { return bytes.size() + kChunkCost; }

bool Ranged(const OutputsQuery& query) { return query.start_idx.has_value(); }

// Somewhat less than the client gives us, so that our empty answer comes before its deadline.
Millis HoldFor(Millis timeout) {
  timeout = std::min(timeout, kLongestPoll);
  return timeout - std::min(Millis(500), timeout / 20);
}

}  // namespace

void EngineCore::GetOutputs(uint64_t handle, OutputsQuery query,
                            std::function<void(Result<OutputsPage>)> reply) {
  auto found = FindCall(query.scope, query.call_id);
  if (!found.ok()) return reply(found.status());
  Call* call = *found;
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
  poll->cursor = CursorOf(query.last_entry_id);
  poll->query = std::move(query);
  poll->reply = std::move(reply);
  call->polls.push_back(poll);
  polls_[handle] = poll;
  ServePoll(poll);
  if (!poll->reply) return;
  Millis hold = HoldFor(poll->query.timeout);
  if (hold.count() <= 0) return AnswerPoll(poll, Collect(*call, *poll));
  poll->deadline = strand_.PostAfter(hold, [this, handle] {
    auto late = polls_.find(handle);
    if (late == polls_.end()) return;
    std::shared_ptr<Poll> held = late->second;
    AnswerPoll(held, Collect(*held->call, *held));
  });
}

OutputsPage EngineCore::Collect(const Call& call, const Poll& poll) const {
  OutputsPage page;
  size_t most = poll.query.max_values == 0 ? kMostOutputs : std::min(poll.query.max_values, kMostOutputs);
  size_t bytes = 0;
  uint32_t last = poll.cursor;
  // By seq, with gaps only where earlier ones were dropped: the place of the cursor is found by halving.
  auto it =
      Ranged(poll.query)
          ? call.outputs.begin()
          : std::upper_bound(call.outputs.begin(), call.outputs.end(), poll.cursor,
                             [](uint32_t cursor, const OutputView& output) { return cursor < output.seq; });
  int64_t first_idx = poll.query.start_idx.value_or(0), last_idx = poll.query.end_idx.value_or(INT32_MAX);
  for (; it != call.outputs.end() && page.outputs.size() < most && bytes < kMostBytes; ++it) {
    if (Ranged(poll.query) && (int64_t{it->idx} < first_idx || int64_t{it->idx} > last_idx)) continue;
    bytes += it->result ? it->result->size() : it->text.size() + it->shelved_bytes;
    last = std::max(last, it->seq);
    page.outputs.push_back(*it);
  }
  page.last_entry_id = std::to_string(last) + "-0";
  page.unfinished = static_cast<int32_t>(call.unfinished);
  return page;
}

void EngineCore::ServePoll(const std::shared_ptr<Poll>& poll) {
  Call* call = poll->call;
  if (Ranged(poll->query)) {
    OutputsPage page = Collect(*call, *poll);
    if (page.outputs.empty()) {
      // Nothing is left that could come: the client raises "expired" for it, and asks on where it should
      // wait.
      return;
    }
    return AnswerNews(poll, std::move(page));
  }
  size_t news =
      call->outputs.empty() || call->outputs.back().seq <= poll->cursor
          ? 0
          : static_cast<size_t>(
                call->outputs.end() -
                std::upper_bound(call->outputs.begin(), call->outputs.end(), poll->cursor,
                                 [](uint32_t cursor, const OutputView& o) { return cursor < o.seq; }));
  if (news == 0) return;
  size_t many = poll->query.max_values == 0 ? kManyOutputs : std::min(poll->query.max_values, kManyOutputs);
  if (poll->coalesced || news >= many) return AnswerNews(poll, Collect(*call, *poll));
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
void EngineCore::AnswerNews(const std::shared_ptr<Poll>& poll, OutputsPage page) {
  Call* call = poll->call;
  const bool last = call->call_type == kCallUnary && poll->query.clear_on_success && call->synchronous() &&
                    call->unfinished == 0;
  AnswerPoll(poll, std::move(page));
  if (last) Acknowledge(call);
}

void EngineCore::AnswerPoll(const std::shared_ptr<Poll>& poll, Result<OutputsPage> page) {
  if (poll->deadline) strand_.CancelTimer(*poll->deadline);
  if (poll->coalesce) strand_.CancelTimer(*poll->coalesce);
  polls_.erase(poll->id);
  poll->call->polls.remove(poll);
  auto reply = std::move(poll->reply);
  poll->reply = nullptr;
  if (!reply) return;
  if (!page.ok()) return reply(page.status());
  ReplyWithResults(poll->call, std::move(page).value(), std::move(reply));
}

void EngineCore::DropPoll(uint64_t handle) {
  auto it = polls_.find(handle);
  if (it == polls_.end()) return;
  std::shared_ptr<Poll> poll = it->second;
  poll->reply = nullptr;
  AnswerPoll(poll, OutputsPage{});
}

void EngineCore::WakePolls(Call* call) {
  std::vector<std::shared_ptr<Poll>> waiting(call->polls.begin(), call->polls.end());
  for (const auto& poll : waiting) {
    if (poll->reply) ServePoll(poll);
  }
}

Status EngineCore::CheckChunkRoom(const WorkspaceState& workspace, uint64_t more) const {
  const uint64_t most = options_.max_chunk_bytes,
                 held = workspace.chunk_bytes + workspace.chunk_bytes_written;
  const auto full = [](const std::string& whose, uint64_t bytes) {
    return ResourceExhausted("generators of " + whose + " hold " + std::to_string(bytes >> 20) +
                             " MiB that nobody has read yet: read them, or yield less");
  };
  if (held + more > most / 2) return full("this workspace", held);
  if (chunk_bytes_ + more > most && held + more > most / kOwnShare)
    return full("all workspaces", chunk_bytes_);
  return {};
}

void EngineCore::PutChunks(Call* call, const std::string& task_id,
                           std::vector<std::pair<uint64_t, std::string>> chunks,
                           std::function<void(Status)> reply) {
  bool holds = task_id.empty();
  if (const TaskState* task = FindTask(task_id))
    holds |= std::any_of(task->leases.begin(), task->leases.end(),
                         [&](const Input* input) { return input->call == call; });
  if (!holds) return reply(PermissionDenied("this container has no input of function call " + call->id));
  uint64_t more = 0;
  for (const auto& [index, bytes] : chunks) more += CostOfChunk(bytes);
  WorkspaceState* workspace = call->function->workspace;
  if (Status room = CheckChunkRoom(*workspace, more); !room.ok()) return reply(room);
  std::vector<ChunkRow> rows;
  rows.reserve(chunks.size());
  for (auto& [index, bytes] : chunks) {
    if (index == 0 || index > UINT32_MAX) return reply(InvalidArgument("data chunks are numbered from 1"));
    rows.push_back(
        {call->number, static_cast<uint32_t>(index), std::make_shared<const std::string>(std::move(bytes))});
  }
  std::vector<ChunkRow> copy = rows;
  Journal::Record record = Journal::PutChunks(std::move(rows));
  workspace->chunk_bytes_written += more;
  chunk_bytes_ += more;
  record.done = [this, workspace, more, call_id = call->id, rows = std::move(copy),
                 reply = std::move(reply)](Status status) {
    workspace->chunk_bytes_written -= more;
    chunk_bytes_ -= more;
    auto it = calls_.find(call_id);
    if (status.ok() && it != calls_.end()) {
      for (const ChunkRow& row : rows) SetChunk(it->second.get(), row.idx, row.chunk);
      ServeChunks(it->second.get());
    }
    reply(status);
  };
  journal_->Append(std::move(record));
}

void EngineCore::SetChunk(Call* call, uint64_t index, SharedBytes bytes) {
  auto it = call->chunks.find(index);
  const uint64_t before = it == call->chunks.end() ? 0 : CostOfChunk(*it->second);
  const uint64_t after = bytes ? CostOfChunk(*bytes) : 0;
  call->chunk_bytes += after - before;
  chunk_bytes_ += after - before;
  call->function->workspace->chunk_bytes += after - before;
  if (bytes) {
    call->chunks[index] = std::move(bytes);
  } else if (it != call->chunks.end()) {
    call->chunks.erase(it);
  }
}

// Several at a time, also from the journal: a restart reads what it holds.
void EngineCore::DropReadChunks(Call* call, uint64_t last_index) {
  if (!call->synchronous()) return;  // whoever knows its id may read it from the start
  if (call->chunk_bytes <= 2 * kChunksBehind) return;
  const uint64_t first = call->chunks.begin()->first;
  uint64_t last = 0;
  while (call->chunk_bytes > kChunksBehind && call->chunks.begin()->first <= last_index) {
    last = call->chunks.begin()->first;
    SetChunk(call, last, nullptr);
  }
  if (last > 0)
    journal_->Append(
        Journal::DropChunks(call->number, static_cast<uint32_t>(first), static_cast<uint32_t>(last)));
}

void EngineCore::NextChunks(uint64_t handle, Call* call, uint64_t last_index,
                            std::function<void(Result<DataChunks>)> reply) {
  DropReadChunks(call, last_index);
  call->chunk_waits.push_back({handle, last_index, std::move(reply)});
  ServeChunks(call);
}

void EngineCore::ServeChunks(Call* call) {
  for (auto wait = call->chunk_waits.begin(); wait != call->chunk_waits.end();) {
    DataChunks found;
    size_t bytes = 0;
    // Without a gap: what comes out of order (a retry writes from 1 again) waits for what is missing.
    uint64_t next = wait->last_index + 1;
    for (auto it = call->chunks.lower_bound(next);
         it != call->chunks.end() && it->first == next && bytes < kChunkBytes; ++it, ++next) {
      bytes += it->second->size();
      found.chunks.emplace_back(it->first, it->second);
    }
    if (found.chunks.empty()) {
      ++wait;
      continue;
    }
    call->chunks_read_nanos = NowNanos();
    auto reply = std::move(wait->reply);
    wait = call->chunk_waits.erase(wait);
    reply(std::move(found));
  }
}

void EngineCore::DropChunkWait(uint64_t handle, const std::string& call_id) {
  auto it = calls_.find(call_id);
  if (it == calls_.end()) return;
  it->second->chunk_waits.remove_if([&](const ChunkWait& wait) { return wait.id == handle; });
}

}  // namespace lydian::control
