// Generators' data: journalled as it comes, read without a gap, dropped behind its reader.
#include <algorithm>

#include "control/call_engine_core.h"

namespace lydian::control {
namespace {

constexpr size_t kChunkBytes = size_t{4} << 20;
constexpr uint64_t kChunkCost = 200;  // of one without its bytes
// Of what its reader has, a synchronous generator keeps this much: more than can be on the way, should the
// connection break.
constexpr uint64_t kChunksBehind = uint64_t{8} << 20;

}  // namespace

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
  for (const auto& [index, bytes] : chunks) more += bytes.size() + kChunkCost;
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

void EngineCore::DropChunk(Call* call, uint64_t index) {
  auto it = call->chunks.find(index);
  if (it == call->chunks.end()) return;
  const uint64_t cost = it->second.data ? it->second.bytes + kChunkCost : 0;
  for (uint64_t* held : {&call->chunk_bytes, &chunk_bytes_, &call->function->workspace->chunk_bytes})
    *held -= cost;
  call->chunks_stored -= it->second.bytes;
  call->chunks.erase(it);
}

void EngineCore::SetChunk(Call* call, uint64_t index, SharedBytes data) {
  DropChunk(call, index);
  const uint64_t bytes = data->size();
  for (uint64_t* held : {&call->chunk_bytes, &chunk_bytes_, &call->function->workspace->chunk_bytes})
    *held += bytes + kChunkCost;
  call->chunks_stored += bytes;
  call->chunks[index] = {bytes, std::move(data)};
}

// Several at a time, also from the journal: a restart reads what it holds.
void EngineCore::DropReadChunks(Call* call, uint64_t last_index) {
  if (!call->synchronous()) return;  // whoever knows its id may read it from the start
  if (call->chunks_stored <= 2 * kChunksBehind) return;
  const uint64_t first = call->chunks.begin()->first;
  uint64_t last = 0;
  while (call->chunks_stored > kChunksBehind && call->chunks.begin()->first <= last_index) {
    last = call->chunks.begin()->first;
    DropChunk(call, last);
  }
  if (last > 0)
    journal_->Append(
        Journal::DropChunks(call->number, static_cast<uint32_t>(first), static_cast<uint32_t>(last)));
}

void EngineCore::NextChunks(uint64_t handle, Call* call, uint64_t last_index,
                            std::function<void(Result<DataChunks>)> reply) {
  DropReadChunks(call, last_index);
  call->chunk_waits.push_back({handle, last_index, false, std::move(reply)});
  ServeChunks(call);
}

void EngineCore::ServeChunks(Call* call) {
  for (auto wait = call->chunk_waits.begin(); wait != call->chunk_waits.end();) {
    if (wait->reading) {
      ++wait;
      continue;
    }
    DataChunks found;
    size_t bytes = 0;
    // Without a gap: what comes out of order (a retry writes from 1 again) waits for what is missing.
    uint64_t next = wait->last_index + 1;
    auto it = call->chunks.find(next);
    const bool stored = it != call->chunks.end() && it->second.data == nullptr;
    for (; it != call->chunks.end() && it->first == next && it->second.data && bytes < kChunkBytes;
         ++it, ++next) {
      bytes += it->second.bytes;
      found.chunks.emplace_back(it->first, it->second.data);
    }
    if (found.chunks.empty()) {
      if (stored) ReadChunks(call, &*wait);
      ++wait;
      continue;
    }
    call->chunks_read_nanos = NowNanos();
    auto reply = std::move(wait->reply);
    wait = call->chunk_waits.erase(wait);
    reply(std::move(found));
  }
}

// Those that are in the journal alone.
void EngineCore::ReadChunks(Call* call, ChunkWait* wait) {
  wait->reading = true;
  ++call->readers;
  results_pool_.Post([this, number = call->number, call_id = call->id, handle = wait->id,
                      first = static_cast<uint32_t>(wait->last_index + 1)] {
    auto rows = std::make_shared<Result<std::vector<ChunkRow>>>(journal_->Chunks(number, first, kChunkBytes));
    strand_.Post([this, call_id, handle, rows] {
      auto it = calls_.find(call_id);
      if (it == calls_.end()) return;
      Call* call = it->second.get();
      --call->readers;
      auto wait = std::find_if(call->chunk_waits.begin(), call->chunk_waits.end(),
                               [&](const ChunkWait& one) { return one.id == handle; });
      if (wait == call->chunk_waits.end()) return Idle(call);
      wait->reading = false;
      if (rows->ok() && (*rows)->empty()) return;  // dropped meanwhile: somebody else has read on
      call->chunks_read_nanos = NowNanos();
      auto reply = std::move(wait->reply);
      call->chunk_waits.erase(wait);
      Idle(call);
      if (!rows->ok()) return reply(rows->status());
      DataChunks found;
      for (ChunkRow& row : **rows) found.chunks.emplace_back(row.idx, std::move(row.chunk));
      reply(std::move(found));
    });
  });
}

void EngineCore::DropChunkWait(uint64_t handle, const std::string& call_id) {
  asking_.erase(handle);
  auto it = calls_.find(call_id);
  if (it == calls_.end()) return;
  it->second->chunk_waits.remove_if([&](const ChunkWait& wait) { return wait.id == handle; });
  Idle(it->second.get());
}

}  // namespace lydian::control
