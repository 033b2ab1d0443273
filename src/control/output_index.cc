#include "control/output_index.h"

#include <algorithm>

#include "control/call_engine.h"

namespace lydian::control {
namespace {

// An index below this, or below a few times the number of outputs, has a place in an array.
constexpr size_t kNear = 1024, kNearFactor = 4;

}  // namespace

void OutputCounts::Add(int32_t status, uint32_t count) {
  switch (static_cast<ResultStatus>(status)) {
    case ResultStatus::kSuccess:
      succeeded += count;
      break;
    case ResultStatus::kTerminated:
      cancelled += count;
      break;
    case ResultStatus::kTimeout:
      timed_out += count;
      break;
    default:
      failed += count;
      break;
  }
}

void OutputIndex::Add(const OutputKey& entry) {
  entries_.push_back(entry);
  counts_.Add(entry.status);
  if (places_) Place(entries_.size() - 1);
}

size_t OutputIndex::Behind(uint32_t seq) const {
  auto it = std::upper_bound(entries_.begin(), entries_.end(), seq,
                             [](uint32_t cursor, const OutputKey& entry) { return cursor < entry.seq; });
  return static_cast<size_t>(it - entries_.begin());
}

void OutputIndex::Place(size_t position) {
  const uint32_t idx = entries_[position].idx;
  const auto place = static_cast<uint32_t>(position + 1);
  auto& [near, far] = *places_;
  if (idx < near.size()) {
    near[idx] = place;
  } else if (idx < kNear + kNearFactor * entries_.size()) {
    // What was far for fewer outputs stays in `far`.
    near.resize(std::max<size_t>(idx + 1, near.size() * 3 / 2));
    near[idx] = place;
  } else {
    far[idx] = place;
  }
}

std::vector<size_t> OutputIndex::InRange(uint32_t first, uint32_t last, size_t most) {
  if (!places_) {
    places_ = std::make_unique<Places>();
    for (size_t i = 0; i < entries_.size(); ++i) Place(i);
  }
  const auto& [near, far] = *places_;
  std::vector<size_t> found;
  const uint64_t end = std::min<uint64_t>(uint64_t{last} + 1, near.size());
  for (uint64_t idx = first; idx < end && found.size() < most; ++idx) {
    if (near[idx] != 0) found.push_back(near[idx] - 1);
  }
  if (far.empty()) return found;
  if (uint64_t{last} - first >= far.size()) {
    for (const auto& [idx, place] : far) {
      if (idx >= first && idx <= last && found.size() < most) found.push_back(place - 1);
    }
    return found;
  }
  for (uint64_t idx = first; idx <= last && found.size() < most; ++idx) {
    auto it = far.find(static_cast<uint32_t>(idx));
    if (it != far.end()) found.push_back(it->second - 1);
  }
  return found;
}

size_t OutputIndex::bytes() const {
  size_t places = 0;
  if (places_) places = places_->near.capacity() * sizeof(uint32_t) + places_->far.size() * 4 * sizeof(void*);
  return entries_.capacity() * sizeof(OutputKey) + places;
}

uint64_t RecentOutputs::CostOf(const OutputView& output) {
  return sizeof(OutputView) + output.text.size() + output.input_id.size() + output.task_id.size() +
         (output.result ? output.result->size() + sizeof(std::string) : 0);
}

void RecentOutputs::Add(OutputView output) {
  bytes_ += CostOf(output);
  outputs_.push_back(std::move(output));
}

const OutputView* RecentOutputs::Find(uint32_t seq) const {
  auto it = std::lower_bound(outputs_.begin() + static_cast<ptrdiff_t>(first_), outputs_.end(), seq,
                             [](const OutputView& output, uint32_t wanted) { return output.seq < wanted; });
  return it != outputs_.end() && it->seq == seq ? &*it : nullptr;
}

void RecentOutputs::DropFront() {
  bytes_ -= CostOf(outputs_[first_]);
  outputs_[first_++] = OutputView();
  if (first_ == outputs_.size()) {
    outputs_ = {};
    first_ = 0;
  } else if (first_ >= 64 && first_ >= outputs_.size() / 2) {
    outputs_.erase(outputs_.begin(), outputs_.begin() + static_cast<ptrdiff_t>(first_));
    first_ = 0;
  }
}

}  // namespace lydian::control
