#include <fcntl.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/ids.h"
#include "image/layer_store.h"
#include "image/tree.h"

namespace lydian::image {
namespace {

class CopyUpperTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = ::testing::TempDir() + "upper-" + RandomHex(6);
    for (const char* part : {"/upper", "/to", "/links"}) ASSERT_TRUE(MakeDirs(dir_ + part).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }

  static UniqueFd Folder(const std::string& path) {
    return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  // Each level by a relative path, as no absolute one is that long.
  static UniqueFd Down(UniqueFd folder, int levels, bool make) {
    const std::string name(250, 'd');
    for (int i = 0; i < levels; ++i) {
      if (make) {
        EXPECT_EQ(::mkdirat(folder.get(), name.c_str(), 0755), 0);
      }
      folder.reset(::openat(folder.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      EXPECT_TRUE(folder.valid());
    }
    return folder;
  }
  static void File(int folder, const std::string& name, const std::string& content) {
    UniqueFd file(::openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    ASSERT_TRUE(file.valid());
    ASSERT_TRUE(WriteAll(file.get(), content).ok());
  }
  static struct stat Stat(int folder, const std::string& name) {
    struct stat info {};
    EXPECT_EQ(::fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW), 0) << name;
    return info;
  }
  void Clear() {
    for (const char* part : {"/to", "/links"}) {
      ASSERT_TRUE(RemoveTree(dir_ + part).ok());
      ASSERT_TRUE(MakeDirs(dir_ + part).ok());
    }
  }
  Status Copy(const CopyLimits& limits = {}) {
    ASSIGN_OR_RETURN(Tree from, Tree::Open(dir_ + "/upper"));
    ASSIGN_OR_RETURN(Tree to, Tree::Open(dir_ + "/to"));
    ASSIGN_OR_RETURN(Tree links, Tree::Open(dir_ + "/links"));
    return CopyUpper(from, to, links.root(), limits);
  }

  std::string dir_;
};

TEST_F(CopyUpperTest, LinksStayLinksHoweverLongTheirPathsAre) {
  constexpr int kLevels = 40;  // 10,000 bytes
  UniqueFd top = Folder(dir_ + "/upper");
  UniqueFd deep = Down(Folder(dir_ + "/upper"), kLevels, true);
  File(deep.get(), "one", std::string(100'000, 'x'));
  ASSERT_EQ(::linkat(deep.get(), "one", deep.get(), "two", 0), 0);
  File(top.get(), "other", "y");
  ASSERT_EQ(::linkat(top.get(), "other", deep.get(), "far", 0), 0);
  Status copied = Copy({.bytes = 100'001});
  ASSERT_TRUE(copied.ok()) << copied;
  ASSERT_TRUE(RemoveTree(dir_ + "/links").ok());
  UniqueFd to = Folder(dir_ + "/to");
  UniqueFd far = Down(Folder(dir_ + "/to"), kLevels, false);
  const struct stat one = Stat(far.get(), "one");
  EXPECT_EQ(one.st_nlink, 2u);
  EXPECT_EQ(one.st_size, 100'000);
  EXPECT_EQ(Stat(far.get(), "two").st_ino, one.st_ino);
  EXPECT_EQ(Stat(far.get(), "far").st_ino, Stat(to.get(), "other").st_ino);
  EXPECT_EQ(Stat(to.get(), "other").st_nlink, 2u);
}

TEST_F(CopyUpperTest, LinkedFilesTakeNoMemory) {
  UniqueFd deep = Down(Folder(dir_ + "/upper"), 100, true);
  ASSERT_EQ(::mkdirat(deep.get(), "e", 0755), 0);
  UniqueFd inner(::openat(deep.get(), "e", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (int i = 0; i < 500; ++i) {
    const std::string name = std::to_string(i);
    File(deep.get(), name, "");
    ASSERT_EQ(::linkat(deep.get(), name.c_str(), inner.get(), name.c_str(), 0), 0);
  }
  const size_t before = ::mallinfo2().uordblks;
  size_t most = before;
  auto check = [&] {
    most = std::max<size_t>(most, ::mallinfo2().uordblks);
    return OkStatus();
  };
  Status copied = Copy({.walk = {.check = check}});
  ASSERT_TRUE(copied.ok()) << copied;
  EXPECT_LT(most - before, size_t{2} << 20);  // 500 paths of 25,000 bytes would be 12 MiB
}

TEST_F(CopyUpperTest, NamesBeyondWhatAFileMayHaveBelongToASecondCopy) {
  const long most = ::pathconf(dir_.c_str(), _PC_LINK_MAX);
  if (most < 2 || most > 70'000) GTEST_SKIP() << "a file here may have " << most << " names";
  UniqueFd top = Folder(dir_ + "/upper");
  File(top.get(), "0", "four");
  for (long i = 1; i < most; ++i)
    ASSERT_EQ(::linkat(top.get(), "0", top.get(), std::to_string(i).c_str(), 0), 0) << i;
  EXPECT_EQ(Copy({.bytes = 4}).code(), Code::kResourceExhausted);  // the second copy counts
  Clear();
  Status copied = Copy({.bytes = 8});
  ASSERT_TRUE(copied.ok()) << copied;
  UniqueFd to = Folder(dir_ + "/to");
  EXPECT_EQ(Stat(to.get(), "0").st_size, 4);
  EXPECT_EQ(Stat(to.get(), std::to_string(most - 1)).st_size, 4);
}

TEST_F(CopyUpperTest, KeepsToItsBounds) {
  UniqueFd top = Folder(dir_ + "/upper");
  File(top.get(), "one", std::string(1000, 'x'));
  File(top.get(), "two", std::string(1000, 'x'));
  ASSERT_EQ(::linkat(top.get(), "one", top.get(), "one-again", 0), 0);
  ASSERT_EQ(::linkat(top.get(), "two", top.get(), "two-again", 0), 0);
  Status copied = Copy({.bytes = 1999});
  EXPECT_EQ(copied.code(), Code::kResourceExhausted);
  EXPECT_NE(copied.message().find("more than 1999 bytes"), std::string::npos) << copied;
  Clear();
  copied = Copy({.shared = 1});
  EXPECT_NE(copied.message().find("more than 1 files have several names"), std::string::npos) << copied;
  Clear();
  copied = Copy({.walk = {.entries = 3}});
  EXPECT_NE(copied.message().find("more than 3 files and folders"), std::string::npos) << copied;
}

// Small ones too: their holes cost the container nothing, so they may not cost the store anything.
TEST_F(CopyUpperTest, HolesStayHoles) {
  UniqueFd top = Folder(dir_ + "/upper");
  for (const auto& [name, size] : {std::pair{"small", 30'000}, std::pair{"large", 30'000'000}}) {
    File(top.get(), name, "");
    ASSERT_EQ(::truncate((dir_ + "/upper/" + name).c_str(), size), 0);
  }
  Status copied = Copy({.bytes = 0});
  ASSERT_TRUE(copied.ok()) << copied;
  UniqueFd to = Folder(dir_ + "/to");
  EXPECT_EQ(Stat(to.get(), "small").st_size, 30'000);
  EXPECT_EQ(Stat(to.get(), "small").st_blocks, 0);
  EXPECT_EQ(Stat(to.get(), "large").st_size, 30'000'000);
}

TEST_F(CopyUpperTest, StopsWithinALargeFile) {
  UniqueFd top = Folder(dir_ + "/upper");
  File(top.get(), "large", std::string(64 << 20, 'x'));
  int asked = 0;
  Status copied = Copy({.walk = {.check = [&] { return ++asked < 4 ? OkStatus() : Cancelled("enough"); }}});
  EXPECT_EQ(copied.code(), Code::kCancelled);
  EXPECT_LT(Stat(Folder(dir_ + "/to").get(), "large").st_size, 32 << 20);
}

TEST_F(CopyUpperTest, ATransactionTakesAndStops) {
  auto store = LayerStore::OpenFolders(dir_ + "/store");
  ASSERT_TRUE(store.ok()) << store.status();
  UniqueFd top = Folder(dir_ + "/upper");
  File(top.get(), "one", "x");
  ASSERT_EQ(::linkat(top.get(), "one", top.get(), "two", 0), 0);
  UniqueFd writable = Folder(dir_);
  auto transaction = (*store)->Begin();
  ASSERT_TRUE(transaction.ok());
  EXPECT_EQ((*transaction)->Take(writable.get(), [] { return Cancelled("enough"); }).code(),
            Code::kCancelled);
  transaction = (*store)->Begin();
  ASSERT_TRUE(transaction.ok());
  ASSERT_TRUE((*transaction)->Take(writable.get(), [] { return OkStatus(); }).ok());
  EXPECT_FALSE(Exists((*transaction)->dir() + "/links"));
  auto layer = (*transaction)->Commit("ly-1", "");
  ASSERT_TRUE(layer.ok()) << layer.status();
  EXPECT_EQ(Stat(Folder(layer->path).get(), "one").st_nlink, 2u);
}

}  // namespace
}  // namespace lydian::image
