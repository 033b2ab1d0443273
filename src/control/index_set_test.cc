#include "control/index_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

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

}  // namespace
}  // namespace lydian::control
