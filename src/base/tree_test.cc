#include "base/tree.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <thread>

#include "base/ids.h"

namespace lydian {
namespace {

class TreeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = ::testing::TempDir() + "/tree-" + RandomHex(8);
    ASSERT_TRUE(MakeDirs(dir_).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }

  // As a program does that wants to break those who clean up: each level by a relative path.
  static void MakeDeep(const std::string& at, int levels) {
    UniqueFd folder(::open(at.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(folder.valid());
    for (int i = 0; i < levels; ++i) {
      ASSERT_EQ(::mkdirat(folder.get(), "d", 0755), 0);
      folder.reset(::openat(folder.get(), "d", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      ASSERT_TRUE(folder.valid());
    }
    UniqueFd file(::openat(folder.get(), "file", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    ASSERT_TRUE(file.valid());
  }

  UniqueFd Open(const std::string& path) {
    return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }

  std::string dir_;
};

// Runs on a thread, with few descriptors.
template <typename F>
void WithFewDescriptors(F run) {
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  struct rlimit few = before;
  few.rlim_cur = 64;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  std::thread thread(run);
  thread.join();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

// Deeper than it has descriptors; 40,000 levels are among the attacks that the client tests try.
TEST_F(TreeTest, RemovesWhatIsDeeperThanItHasDescriptors) {
  MakeDeep(dir_, 1'000);
  WithFewDescriptors([&] {
    Status removed = RemoveTree(dir_ + "/d");
    EXPECT_TRUE(removed.ok()) << removed;
  });
  EXPECT_FALSE(Exists(dir_ + "/d"));
}

TEST_F(TreeTest, RemovesWideFoldersOfFolders) {
  for (int i = 0; i < 600; ++i) {
    const std::string sub = dir_ + "/wide/" + std::to_string(i);
    ASSERT_TRUE(MakeDirs(sub).ok());
    ASSERT_TRUE(WriteFileAtomic(sub + "/file", "x").ok());
    ASSERT_TRUE(WriteFileAtomic(dir_ + "/wide/f" + std::to_string(i), "x").ok());
  }
  auto size = MeasureTree(Open(dir_ + "/wide").get());
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(size->entries, 1800u);
  EXPECT_EQ(size->depth, 1u);
  Status removed = RemoveTree(dir_ + "/wide");
  EXPECT_TRUE(removed.ok()) << removed;
}

TEST_F(TreeTest, FollowsNoLink) {
  ASSERT_TRUE(MakeDirs(dir_ + "/canary").ok());
  ASSERT_TRUE(WriteFileAtomic(dir_ + "/canary/kept", "x").ok());
  ASSERT_TRUE(MakeDirs(dir_ + "/tree/sub").ok());
  ASSERT_EQ(::symlink((dir_ + "/canary").c_str(), (dir_ + "/tree/sub/link").c_str()), 0);
  ASSERT_EQ(::symlink("../../canary", (dir_ + "/tree/sub/up").c_str()), 0);
  auto size = MeasureTree(Open(dir_ + "/tree").get());
  ASSERT_TRUE(size.ok());
  EXPECT_EQ(size->entries, 3u);
  EXPECT_TRUE(RemoveTree(dir_ + "/tree").ok());
  EXPECT_TRUE(Exists(dir_ + "/canary/kept"));
}

TEST_F(TreeTest, KeepsToItsLimits) {
  MakeDeep(dir_, 20);
  UniqueFd root = Open(dir_);
  EXPECT_EQ(MeasureTree(root.get())->depth, 20u);
  auto deep = MeasureTree(root.get(), {.depth = 10});
  EXPECT_EQ(deep.status().code(), Code::kResourceExhausted);
  EXPECT_NE(deep.status().message().find("nested more than 10"), std::string::npos);
  EXPECT_EQ(MeasureTree(root.get(), {.entries = 5}).status().code(), Code::kResourceExhausted);
}

TEST_F(TreeTest, WhatIsMissingIsFine) {
  EXPECT_TRUE(RemoveTree(dir_ + "/nothing").ok());
  ASSERT_TRUE(WriteFileAtomic(dir_ + "/file", "x").ok());
  EXPECT_TRUE(RemoveTree(dir_ + "/file").ok());
  EXPECT_FALSE(Exists(dir_ + "/file"));
}

}  // namespace
}  // namespace lydian
