// What a call remembers of its outputs: which there are, and the newest of them whole. All of them are in the
// journal; the rest is read from there.
//
//   OutputIndex    an entry of 12 bytes for every output, in the order in which they came
//   RecentOutputs  the last ones as they are delivered; whoever owns it drops from its front
//
// Thread-safety: none. Ownership: values.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "control/index_set.h"
#include "control/journal.h"

namespace lydian::control {

struct OutputView {
  uint32_t seq = 0, idx = 0;  // seq: from 1 on in a call, the cursor of a map's polls
  std::string input_id, task_id;
  int32_t status = 0, data_format = 0;
  SharedBytes result;  // modal.client.GenericResult; null when `text` says it all
  std::string text;
  double started_at = 0, created_at = 0;
  bool journalled = true;
};

class OutputIndex {
 public:
  // Behind all that are in. Each idx once.
  void Add(const OutputKey& entry);

  size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  const OutputKey& operator[](size_t position) const { return entries_[position]; }
  uint32_t last_seq() const { return entries_.empty() ? 0 : entries_.back().seq; }
  // The position of the first one behind `seq`.
  size_t Behind(uint32_t seq) const;
  // Positions of at most `most` outputs of the indexes from `first` to `last`, both included, by index. Costs
  // what it finds and what is asked for, however many there are.
  std::vector<size_t> InRange(uint32_t first, uint32_t last, size_t most);

  const OutputCounts& counts() const { return counts_; }
  size_t bytes() const;  // on the heap, about

 private:
  void Place(size_t position);

  std::vector<OutputKey> entries_;
  OutputCounts counts_;
  // By idx, position + 1: made when somebody asks by index for the first time. Indexes that lie far apart are
  // in `far`.
  struct Places {
    std::vector<uint32_t> near;
    std::unordered_map<uint32_t, uint32_t, IndexHash> far;
  };
  std::unique_ptr<Places> places_;
};

class RecentOutputs {
 public:
  // What one costs in memory.
  static uint64_t CostOf(const OutputView& output);

  void Add(OutputView output);
  const OutputView* Find(uint32_t seq) const;  // null: not one of these
  bool empty() const { return first_ == outputs_.size(); }
  const OutputView& front() const { return outputs_[first_]; }
  void DropFront();
  uint64_t bytes() const { return bytes_; }

 private:
  std::vector<OutputView> outputs_;  // by seq; those before first_ are gone
  size_t first_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace lydian::control
