// Which inputs of a call were put: a set of indexes that costs what is in it, not what its largest is. A map
// fills it from 0 on, a bit each; one index of fifty millions alone costs a node.
// Thread-safety: none. Ownership: a value.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace lydian::control {

// Callers choose indexes: without a secret in it, a hash table's places could be chosen with them, all the
// same one.
struct IndexHash {
  size_t operator()(uint32_t index) const {
    uint64_t mixed = (index ^ kSecret) * 0x9E3779B97F4A7C15;
    mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93;
    return mixed ^ mixed >> 32;
  }

 private:
  static const uint64_t kSecret;  // of the process
};

class IndexSet {
 public:
  bool Contains(uint32_t index) const {
    if (index < kFirst) return (first_ & Bit(index)) != 0;
    if (!blocks_) return false;
    auto block = blocks_->find(index / kBlock);
    return block != blocks_->end() && (block->second[index % kBlock / 64] & Bit(index)) != 0;
  }
  // False when it was in already.
  bool Insert(uint32_t index) {
    if (index >= kFirst && !blocks_) blocks_ = std::make_unique<Blocks>();
    uint64_t& word = index < kFirst ? first_ : (*blocks_)[index / kBlock][index % kBlock / 64];
    if ((word & Bit(index)) != 0) return false;
    word |= Bit(index);
    return true;
  }
  void Erase(uint32_t index) {
    if (index < kFirst) {
      first_ &= ~Bit(index);
      return;
    }
    if (!blocks_) return;
    auto block = blocks_->find(index / kBlock);
    if (block == blocks_->end()) return;
    block->second[index % kBlock / 64] &= ~Bit(index);
    if (block->second == Block{}) blocks_->erase(block);
  }
  // On the heap, about.
  size_t bytes() const {
    if (!blocks_) return 0;
    return blocks_->size() * (sizeof(Block) + 4 * sizeof(void*)) + blocks_->bucket_count() * sizeof(void*);
  }

 private:
  static constexpr uint32_t kFirst = 64, kBlock = 512;
  using Block = std::array<uint64_t, kBlock / 64>;
  static uint64_t Bit(uint32_t index) { return uint64_t{1} << (index % 64); }

  uint64_t first_ = 0;  // the indexes below kFirst: all that most calls have
  using Blocks = std::unordered_map<uint32_t, Block, IndexHash>;
  std::unique_ptr<Blocks> blocks_;
};

}  // namespace lydian::control
