#include "api/turns.h"

#include <gtest/gtest.h>

#include <future>
#include <vector>

namespace lydian::api {
namespace {

class TurnsTest : public ::testing::Test {
 protected:
  void Take(const std::string& workspace) {
    On([&] {
      turns_->Take(workspace, [this, workspace](std::shared_ptr<void> turn) {
        begun_ += workspace;
        held_.push_back(std::move(turn));
      });
    });
  }
  // Ends the oldest.
  void End() {
    On([&] { held_.erase(held_.begin()); });
    On([] {});  // what was posted meanwhile
  }
  template <typename Fn>
  void On(Fn fn) {
    std::promise<void> done;
    strand_.Post([&] {
      fn();
      done.set_value();
    });
    done.get_future().wait();
  }

  Strand strand_{"turns"};
  std::shared_ptr<Turns> turns_ = std::make_shared<Turns>(&strand_, 3, 2);
  std::string begun_;
  std::vector<std::shared_ptr<void>> held_;
};

TEST_F(TurnsTest, OneWorkspaceWaitsForItself) {
  for (int i = 0; i < 5; ++i) Take("a");
  EXPECT_EQ(begun_, "aa");
  Take("b");
  Take("b");
  Take("c");
  EXPECT_EQ(begun_, "aab") << "three at once";
  for (int i = 0; i < 8; ++i) {
    if (!held_.empty()) End();
  }
  // In turn, although the a's have asked first.
  EXPECT_EQ(begun_, "aabcabaa");
}

TEST_F(TurnsTest, ATurnThatIsGivenBackAtOnceIsFree) {
  int begun = 0;
  for (int i = 0; i < 10; ++i) On([&] { turns_->Take("a", [&](const std::shared_ptr<void>&) { ++begun; }); });
  On([] {});
  EXPECT_EQ(begun, 10);
}

}  // namespace
}  // namespace lydian::api
