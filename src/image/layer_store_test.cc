#include "image/layer_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::image {
namespace {

class LayerStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "layers-" + RandomHex(6);
    store_ = Open();
  }
  void TearDown() override {
    store_.reset();
    (void)RemoveTree(root_);
  }
  std::unique_ptr<LayerStore> Open() {
    auto store = LayerStore::OpenFolders(root_);
    EXPECT_TRUE(store.ok()) << store.status();
    return std::move(store).value();
  }
  Result<LayerInfo> Make(const std::string& id, const std::string& content) {
    ASSIGN_OR_RETURN(auto transaction, store_->Begin());
    RETURN_IF_ERROR(WriteFileAtomic(transaction->dir() + "/upper/file", content));
    return transaction->Commit(id, "a note");
  }
  size_t OpenTransactions() {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(root_ + "/tx")) (void)entry, ++count;
    return count;
  }

  std::string root_;
  std::unique_ptr<LayerStore> store_;
};

TEST_F(LayerStoreTest, CommitsAndFindsAgainAfterReopening) {
  EXPECT_EQ(store_->Find("ly-1").status().code(), Code::kNotFound);
  auto made = Make("ly-1", "one");
  ASSERT_TRUE(made.ok()) << made.status();
  store_ = nullptr;
  store_ = Open();
  auto found = store_->Find("ly-1");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->note, "a note");
  EXPECT_EQ(*ReadFile(found->path + "/file"), "one");
  EXPECT_GT(found->bytes, 0u);
  EXPECT_EQ(store_->List().size(), 1u);
  EXPECT_EQ(OpenTransactions(), 0u);
}

TEST_F(LayerStoreTest, TheFirstOfTwoCommitsOfOneIdStays) {
  ASSERT_TRUE(Make("ly-1", "one").ok());
  auto second = Make("ly-1", "two");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(*ReadFile(second->path + "/file"), "one");
  EXPECT_EQ(OpenTransactions(), 0u);
}

TEST_F(LayerStoreTest, ATransactionWithoutCommitLeavesNothing) {
  { ASSERT_TRUE(store_->Begin().ok()); }
  EXPECT_EQ(OpenTransactions(), 0u);
}

TEST_F(LayerStoreTest, LeftoversOfAKilledProcessGoAtOpenButNotThoseOfALivingOne) {
  ASSERT_TRUE(MakeDirs(root_ + "/tx/dead/upper").ok());
  ASSERT_TRUE(WriteFileAtomic(root_ + "/tx/dead.lock", "").ok());
  ASSERT_TRUE(WriteFileAtomic(root_ + "/tx/orphan.lock", "").ok());
  auto living = store_->Begin();
  ASSERT_TRUE(living.ok());
  auto other = Open();
  EXPECT_FALSE(Exists(root_ + "/tx/dead"));
  EXPECT_FALSE(Exists(root_ + "/tx/dead.lock"));
  EXPECT_FALSE(Exists(root_ + "/tx/orphan.lock"));
  EXPECT_TRUE(Exists((*living)->dir() + "/upper"));
  EXPECT_TRUE((*living)->Commit("ly-alive", "").ok());
}

TEST_F(LayerStoreTest, APinnedLayerStays) {
  ASSERT_TRUE(Make("ly-1", "one").ok());
  auto pin = store_->Pin({"ly-1"});
  ASSERT_TRUE(pin.ok());
  EXPECT_EQ(store_->Remove("ly-1").code(), Code::kFailedPrecondition);
  pin = NotFound("released");
  EXPECT_TRUE(store_->Remove("ly-1").ok());
  EXPECT_EQ(store_->Find("ly-1").status().code(), Code::kNotFound);
  EXPECT_EQ(store_->Remove("ly-1").code(), Code::kNotFound);
  EXPECT_EQ(store_->Pin({"ly-1"}).status().code(), Code::kNotFound);
  EXPECT_EQ(OpenTransactions(), 0u);
}

TEST_F(LayerStoreTest, AUsedLayerStaysUntilItHasRestedLongEnough) {
  ASSERT_TRUE(Make("ly-1", "one").ok());
  ASSERT_TRUE(Make("ly-2", "two").ok());
  for (const char* id : {"ly-1", "ly-2"}) {  // an hour ago, as a restarted worker finds them
    const timespec then[2] = {{.tv_sec = time(nullptr) - 3600}, {.tv_sec = time(nullptr) - 3600}};
    ASSERT_EQ(utimensat(AT_FDCWD, (root_ + "/layers/" + id + "/info").c_str(), then, 0), 0);
  }
  store_ = Open();
  auto rest = [&](const std::string& id) {
    for (const auto& layer : store_->List())
      if (layer.info.id == id) return layer.idle_secs;
    return -1.0;
  };
  EXPECT_GE(rest("ly-1"), 3600);
  EXPECT_GE(rest("ly-1"), 3600);  // looking is no use
  ASSERT_TRUE(store_->Find("ly-1").ok());
  EXPECT_LT(rest("ly-1"), 60);
  EXPECT_EQ(store_->Remove("ly-1", 1800).code(), Code::kFailedPrecondition);
  EXPECT_TRUE(store_->Remove("ly-2", 1800).ok());
  store_ = Open();
  EXPECT_LT(rest("ly-1"), 60);  // also after a restart
  EXPECT_TRUE(store_->Remove("ly-1").ok());
}

TEST_F(LayerStoreTest, SweepsRecords) {
  ASSERT_TRUE(store_->PutRecord("step/1", "ly-1").ok());
  ASSERT_TRUE(store_->PutRecord("step/2", "ly-2").ok());
  ASSERT_TRUE(
      store_->SweepRecords([](const std::string&, const std::string& value) { return value != "ly-1"; })
          .ok());
  EXPECT_EQ(store_->GetRecord("step/1").status().code(), Code::kNotFound);
  EXPECT_EQ(*store_->GetRecord("step/2"), "ly-2");
}

TEST_F(LayerStoreTest, RefusesIdsThatArePaths) {
  EXPECT_EQ(store_->Find("ly-../x").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(store_->Remove("../ly-x").code(), Code::kInvalidArgument);
  EXPECT_EQ(Make("layer", "x").status().code(), Code::kInvalidArgument);
}

TEST_F(LayerStoreTest, KeepsRecords) {
  EXPECT_EQ(store_->GetRecord("image/im-1").status().code(), Code::kNotFound);
  ASSERT_TRUE(store_->PutRecord("image/im-1", std::string("a\0b\nc", 5)).ok());
  ASSERT_TRUE(store_->PutRecord("image/im-1", "new").ok());
  EXPECT_EQ(*Open()->GetRecord("image/im-1"), "new");
  EXPECT_EQ(store_->PutRecord("a\nb", "").code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace lydian::image
