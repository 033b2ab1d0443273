#include "rpc/idempotency.h"

#include <gtest/gtest.h>

namespace lydian::rpc {
namespace {

struct Waiter : Receiver {
  void Answer(const Result<std::string>& result) override {
    answers.push_back(result.ok() ? *result : result.status().ToString());
  }
  void GiveUp() override { ++given_up; }
  std::vector<std::string> answers;
  int given_up = 0;
};

using Role = IdempotencyStore::Role;

struct IdempotencyTest : testing::Test {
  Role Begin(const std::string& key) {
    waiters.push_back(std::make_shared<Waiter>());
    entries.emplace_back();
    return store.Begin(key, waiters.back(), &entries.back(), &replay);
  }
  FakeClock clock;
  IdempotencyStore store{10'000, std::chrono::minutes(10), &clock};
  std::vector<std::shared_ptr<Waiter>> waiters;
  std::vector<std::shared_ptr<IdempotencyStore::Entry>> entries;
  std::string replay;
};

TEST_F(IdempotencyTest, KeepsForTenMinutes) {
  EXPECT_EQ(Begin("k"), Role::kFirst);
  store.Complete(entries[0], std::string("answer"));
  clock.Advance(std::chrono::minutes(9));
  EXPECT_EQ(Begin("k"), Role::kReplay);
  EXPECT_EQ(replay, "answer");
  clock.Advance(std::chrono::minutes(1));
  EXPECT_EQ(Begin("k"), Role::kFirst);
  EXPECT_EQ(store.bytes(), 0u);
}

TEST_F(IdempotencyTest, AllWhoJoinedAreAnswered) {
  EXPECT_EQ(Begin("k"), Role::kFirst);
  EXPECT_EQ(Begin("k"), Role::kJoined);
  EXPECT_EQ(Begin("other"), Role::kFirst);
  store.Complete(entries[0], Unavailable("later"));
  store.Complete(entries[0], std::string("twice"));
  EXPECT_EQ(waiters[0]->answers, std::vector<std::string>{"UNAVAILABLE: later"});
  EXPECT_EQ(waiters[1]->answers, std::vector<std::string>{"UNAVAILABLE: later"});
  EXPECT_TRUE(waiters[2]->answers.empty());
  EXPECT_EQ(Begin("k"), Role::kFirst);  // errors are not kept
}

TEST_F(IdempotencyTest, GivesUpWhenTheLastHasLeft) {
  Begin("k");
  Begin("k");
  store.Leave(entries[0]);
  EXPECT_EQ(waiters[0]->given_up, 0);
  store.Leave(entries[1]);
  EXPECT_EQ(waiters[0]->given_up, 1);
  EXPECT_EQ(waiters[1]->given_up, 0);
  store.Complete(entries[0],
                 std::string("all the same"));  // the work was done: a repeat must not do it again
  EXPECT_EQ(Begin("k"), Role::kReplay);
}

TEST_F(IdempotencyTest, BoundedByBytes) {
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(Begin(std::to_string(i)), Role::kFirst);
    store.Complete(entries.back(), std::string(1000, 'x'));
    EXPECT_LE(store.bytes(), 10'000u);
  }
  EXPECT_EQ(Begin("99"), Role::kReplay);
  EXPECT_EQ(Begin("0"), Role::kFirst);
  EXPECT_EQ(Begin("large"), Role::kFirst);
  store.Complete(entries.back(), std::string(20'000, 'x'));
  EXPECT_EQ(waiters.back()->answers.size(), 1u);
  EXPECT_EQ(Begin("large"), Role::kFirst);
  EXPECT_LE(store.bytes(), 10'000u);
}

}  // namespace
}  // namespace lydian::rpc
