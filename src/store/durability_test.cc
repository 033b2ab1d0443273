// What becomes of databases on a disk that is full, fails, or loses its power.
#include <gtest/gtest.h>

#include <filesystem>
#include <future>
#include <mutex>
#include <thread>

#include "base/fd.h"
#include "base/ids.h"
#include "store/database.h"
#include "store/disk_failure.h"
#include "store/faulty_disk.h"

namespace lydian::store {
namespace {

using Op = FaultyDisk::Op;

class DurabilityTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_).ok());
    SetDiskFailureHandler([this](const Status& error) {
      std::lock_guard lock(mutex_);
      failures_.push_back(error);
    });
  }
  void TearDown() override {
    SetDiskFailureHandler(nullptr);
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }
  static std::vector<Migration> Tables() { return {{1, "CREATE TABLE t (k INTEGER PRIMARY KEY, b BLOB)"}}; }
  std::unique_ptr<Database> Open(const std::string& path) {
    auto database = Database::Open(path, Tables(), Database::Sharing::kAlone);
    EXPECT_TRUE(database.ok()) << database.status();
    return std::move(database).value();
  }
  static Status Put(Database& db, int key, size_t bytes = 100) {
    return db.Execute("INSERT INTO t (k, b) VALUES (?, ?)", {key, Blob{std::string(bytes, 'x')}});
  }
  std::vector<Status> Failures() {
    std::lock_guard lock(mutex_);
    return failures_;
  }
  static int64_t CountOf(Database& db) {
    auto rows = db.Query("SELECT COUNT(*) FROM t");
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.ok() ? (*rows)[0].Int(0) : -1;
  }

  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-disk-" + RandomHex(6));
  std::string path_ = dir_ + "/test.db";
  std::mutex mutex_;  // guards the next
  std::vector<Status> failures_;
};

TEST_F(DurabilityTest, APowerCutLeavesWhatWasSynced) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    FaultyDisk disk(seed);
    const std::string home = dir_ + "/" + std::to_string(seed), after = home + "-after";
    ASSERT_TRUE(MakeDirs(home).ok() && MakeDirs(after).ok());
    {
      auto db = Open(home + "/test.db");
      for (int i = 0; i < 5; ++i) ASSERT_TRUE(Put(*db, i, 3000).ok());
      ASSERT_TRUE(db->Sync().ok());
      for (int i = 5; i < 20; ++i) ASSERT_TRUE(Put(*db, i, 3000).ok());
      ASSERT_TRUE(disk.PowerCut(home, after).ok());
    }
    auto db = Open(after + "/test.db");
    const int64_t count = CountOf(*db);
    EXPECT_GE(count, 5) << "seed " << seed;
    EXPECT_LT(count, 20) << "seed " << seed << ": nothing was lost";
    EXPECT_EQ((*db->Query("SELECT COALESCE(MAX(k), 0) + 1 FROM t"))[0].Int(0), count) << "not a prefix";
  }
  EXPECT_TRUE(Failures().empty());
}

TEST_F(DurabilityTest, AFullDiskIsAStateThatPasses) {
  FaultyDisk disk;
  auto db = Open(path_);
  disk.Fill();
  Status status = Put(*db, 1, 10'000);
  EXPECT_EQ(status.code(), Code::kResourceExhausted) << status;
  EXPECT_GT(disk.Refused(), 0u);
  disk.MakeRoom();
  EXPECT_TRUE(Put(*db, 1, 10'000).ok());
  EXPECT_EQ(CountOf(*db), 1);
  EXPECT_TRUE(Failures().empty());
}

TEST_F(DurabilityTest, ARefusedSyncIsTheDisksFailure) {
  FaultyDisk disk;
  auto db = Open(path_);
  ASSERT_TRUE(Put(*db, 1).ok());
  disk.Fail(Op::kSync, "-wal");
  EXPECT_FALSE(db->Sync().ok());
  ASSERT_EQ(Failures().size(), 1u);
  EXPECT_NE(Failures()[0].message().find("test.db-wal"), std::string::npos) << Failures()[0];
}

TEST_F(DurabilityTest, ARefusedWriteOrReadIsTheDisksFailure) {
  FaultyDisk disk;
  auto db = Open(path_);
  disk.Fail(Op::kWrite, "-wal");
  EXPECT_FALSE(Put(*db, 1).ok());
  EXPECT_EQ(Failures().size(), 1u);
  disk.Fail(Op::kRead, "test.db", 1'000);
  disk.Fail(Op::kRead, "-wal", 1'000);
  EXPECT_FALSE(db->Query("SELECT COUNT(*) FROM t").ok());
  EXPECT_GE(Failures().size(), 2u);
}

TEST_F(DurabilityTest, AFailureEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        SetDiskFailureHandler(nullptr);
        FaultyDisk disk;
        auto db = Open(path_);
        (void)Put(*db, 1);
        disk.Fail(Op::kSync, "-wal");
        (void)db->Sync();
      },
      "the disk failed under a database.*test.db-wal");
}

// A checkpoint that starts the log anew waits for readers and holds writers meanwhile.
TEST_F(DurabilityTest, ALongReaderHoldsNoWriter) {
  auto db = Open(path_);
  ASSERT_TRUE(Put(*db, 0).ok());
  std::promise<void> reading, enough;
  std::thread reader([&] {
    Status status = db->ForEach("SELECT k FROM t", {}, [&](Row&) -> Status {
      reading.set_value();
      enough.get_future().wait();
      return {};
    });
    EXPECT_TRUE(status.ok()) << status;
  });
  reading.get_future().wait();
  std::chrono::nanoseconds longest{0};
  for (int i = 1; i <= 400; ++i) {  // 100 MiB: several times as much as makes it start the log anew
    const auto before = std::chrono::steady_clock::now();
    EXPECT_TRUE(Put(*db, i, 256 << 10).ok());
    longest = std::max<std::chrono::nanoseconds>(longest, std::chrono::steady_clock::now() - before);
  }
  enough.set_value();
  reader.join();
  EXPECT_LT(longest, std::chrono::seconds(3));
}

}  // namespace
}  // namespace lydian::store
