#include "control/index_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <unordered_map>

namespace lydian::control {
namespace {

TEST(IndexSetTest, DoesAsASetOfNumbers) {
  IndexSet set;
  std::set<uint32_t> model;
  std::mt19937 random(7);
  for (int i = 0; i < 20'000; ++i) {
    // Around the places where one block ends and the next begins, and anywhere.
    uint32_t index = i % 3 == 0 ? random() % 130 : i % 3 == 1 ? 500 + random() % 600 : random() % 50'000'001;
    if (random() % 3 == 0) {
      set.Erase(index);
      model.erase(index);
    } else {
      EXPECT_EQ(set.Insert(index), model.insert(index).second) << index;
    }
    EXPECT_EQ(set.Contains(index), model.contains(index)) << index;
  }
  for (uint32_t index = 0; index < 1200; ++index) EXPECT_EQ(set.Contains(index), model.contains(index));
}

TEST(IndexSetTest, CostsWhatIsInIt) {
  IndexSet far, full;
  far.Insert(50'000'000);
  EXPECT_LT(far.bytes(), 1000u);
  far.Erase(50'000'000);
  EXPECT_LT(far.bytes(), 500u);
  for (uint32_t index = 0; index < 1'000'000; ++index) full.Insert(index);
  EXPECT_LT(full.bytes(), 1'000'000u);
}

// Multiples of the number of places that a table of the standard library has: with the hash that it has for
// numbers all of them would lie in one.
TEST(IndexHashTest, ChosenIndexesLieApart) {
  std::unordered_map<uint32_t, int, IndexHash> table;
  table.reserve(1000);
  const uint32_t step = static_cast<uint32_t>(table.bucket_count());
  for (uint32_t i = 0; i < 1000; ++i) table[i * step] = 1;
  ASSERT_EQ(table.bucket_count(), step);
  size_t fullest = 0;
  for (size_t i = 0; i < step; ++i) fullest = std::max(fullest, table.bucket_size(i));
  EXPECT_LT(fullest, 20u);
}

}  // namespace
}  // namespace lydian::control
