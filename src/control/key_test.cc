#include "control/key.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/fd.h"

namespace lydian::control {
namespace {

TEST(KeyTest, SealsAndOpensInItsContextOnly) {
  Key key(std::string(32, 'k'));
  auto sealed = key.Seal("value", "st-1");
  ASSERT_TRUE(sealed.ok());
  EXPECT_EQ(sealed->find("value"), std::string::npos);
  EXPECT_EQ(key.Open(*sealed, "st-1").value(), "value");
  EXPECT_EQ(key.Open(*sealed, "st-2").status().code(), Code::kDataLoss);
  EXPECT_EQ(Key(std::string(32, 'x')).Open(*sealed, "st-1").status().code(), Code::kDataLoss);
  std::string changed = *sealed;
  changed[13] ^= 1;
  EXPECT_EQ(key.Open(changed, "st-1").status().code(), Code::kDataLoss);
  EXPECT_EQ(key.Open("short", "st-1").status().code(), Code::kDataLoss);
  EXPECT_NE(*key.Seal("value", "st-1"), *sealed) << "a nonce is used once";
  EXPECT_EQ(key.Open(*key.Seal("", "c"), "c").value(), "");
}

TEST(KeyTest, IsMadeOnceAndKeptPrivate) {
  char name[] = "/tmp/lydian-key-XXXXXX";
  std::string dir = mkdtemp(name), path = dir + "/key";
  auto first = Key::LoadOrCreate(path);
  ASSERT_TRUE(first.ok());
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(Key::LoadOrCreate(path)->Derive("a"), first->Derive("a"));
  EXPECT_NE(first->Derive("a"), first->Derive("b"));
  ASSERT_TRUE(WriteFileAtomic(path, "too short").ok());
  EXPECT_EQ(Key::LoadOrCreate(path).status().code(), Code::kDataLoss);
  ASSERT_TRUE(RemoveTree(dir).ok());
}

}  // namespace
}  // namespace lydian::control
