#include "store/database.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <thread>

#include "base/fd.h"
#include "base/ids.h"
#include "store/checkpoint_plan.h"

namespace lydian::store {
namespace {

class DatabaseTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(MakeDirs(dir_).ok()); }
  void TearDown() override { ASSERT_TRUE(RemoveTree(dir_).ok()); }

  std::unique_ptr<Database> Open(std::vector<Migration> migrations = {
                                     {1, "CREATE TABLE t (k TEXT PRIMARY KEY, n INTEGER, b BLOB)"}}) {
    auto database = Database::Open(path_, migrations);
    EXPECT_TRUE(database.ok()) << database.status();
    return std::move(database).value();
  }

  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-store-" + RandomHex(6));
  std::string path_ = dir_ + "/test.db";
};

TEST_F(DatabaseTest, KeepsValuesOverAReopen) {
  std::string bytes("\0\xff\x01", 3);
  {
    auto db = Open();
    ASSERT_TRUE(db->Execute("INSERT INTO t (k, n, b) VALUES (?, ?, ?)", {"a", 7, Blob{bytes}}).ok());
    ASSERT_TRUE(db->Execute("INSERT INTO t (k, n, b) VALUES (?, ?, ?)", {"e", nullptr, Blob{}}).ok());
    ASSERT_TRUE(db->Sync().ok());
  }
  auto db = Open();
  auto rows = db->Query("SELECT k, n, b FROM t ORDER BY k");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[0].Text(0), "a");
  EXPECT_EQ((*rows)[0].Int(1), 7);
  EXPECT_EQ((*rows)[0].Text(2), bytes);
  EXPECT_TRUE((*rows)[1].IsNull(1));
  EXPECT_FALSE((*rows)[1].IsNull(2));
  struct stat info;
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(DatabaseTest, ATransactionIsAllOrNothing) {
  auto db = Open();
  Status status = db->Transaction([](Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute("INSERT INTO t (k) VALUES ('x')"));
    return NotFound("on purpose");
  });
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_TRUE(db->Query("SELECT k FROM t")->empty());
  status =
      db->Transaction([](Session& session) { return session.Execute("INSERT INTO t (k) VALUES ('x')"); });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(db->Query("SELECT k FROM t")->size(), 1u);
  EXPECT_EQ(*db->Change("UPDATE t SET n = 1 WHERE k = ?", {"nobody"}), 0);
}

TEST_F(DatabaseTest, NamesWhatIsWrong) {
  auto db = Open();
  ASSERT_TRUE(db->Execute("INSERT INTO t (k) VALUES (?)", {"a"}).ok());
  Status status = db->Execute("INSERT INTO t (k) VALUES (?)", {"a"});
  EXPECT_EQ(status.code(), Code::kAlreadyExists);
  status = db->Execute("INSERT INTO nowhere (k) VALUES (?)", {"a"});
  EXPECT_EQ(status.code(), Code::kInternal);
  EXPECT_NE(status.message().find("nowhere"), std::string::npos);
  EXPECT_FALSE(db->Execute("INSERT INTO t (k) VALUES (?)").ok());
}

TEST_F(DatabaseTest, MigratesOnceAndRefusesTheFuture) {
  std::vector<Migration> all = {{1, "CREATE TABLE t (k TEXT PRIMARY KEY)"},
                                {2, "ALTER TABLE t ADD COLUMN n INTEGER; INSERT INTO t VALUES ('m', 1)"}};
  Open({all[0]});
  auto db = Open(all);
  EXPECT_EQ(db->Query("SELECT n FROM t")->size(), 1u);
  db.reset();
  db = Open(all);
  EXPECT_EQ(db->Query("SELECT n FROM t")->size(), 1u);
  db.reset();
  auto old = Database::Open(path_, {all[0]});
  EXPECT_EQ(old.status().code(), Code::kFailedPrecondition) << old.status();
}

TEST_F(DatabaseTest, AFailedMigrationLeavesNothing) {
  auto bad = Database::Open(path_, {{1, "CREATE TABLE t (k TEXT); CREATE TABLE t (k TEXT)"}});
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.status().message().find("migration 1"), std::string::npos) << bad.status();
  auto db = Open();
  EXPECT_TRUE(db->Query("SELECT n FROM t")->empty());
}

TEST_F(DatabaseTest, AFullDiskSaysSoAndHealsWithRoom) {
  auto db = Open();
  ASSERT_TRUE(db->Execute("PRAGMA max_page_count = 20").ok());
  std::string big(200'000, 'x');
  Status status = db->Transaction([&](Session& session) {
    return session.Execute("INSERT INTO t (k, b) VALUES ('big', ?)", {Blob{big}});
  });
  EXPECT_EQ(status.code(), Code::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("no space left on " + path_), std::string::npos);
  ASSERT_TRUE(db->Execute("PRAGMA max_page_count = 100000").ok());
  status = db->Transaction([&](Session& session) {
    return session.Execute("INSERT INTO t (k, b) VALUES ('big', ?)", {Blob{big}});
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(DatabaseTest, ManyThreadsWriteAndRead) {
  auto db = Open();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        EXPECT_TRUE(db->Execute("INSERT INTO t (k, n) VALUES (?, ?)",
                                {std::to_string(t) + "/" + std::to_string(i), i})
                        .ok());
        EXPECT_TRUE(db->Query("SELECT COUNT(*) FROM t").ok());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ((*db->Query("SELECT COUNT(*) FROM t"))[0].Int(0), 800);
}

TEST(CheckpointPlan, CopiesNowAndThenUnderSteadyWrites) {
  using Step = CheckpointPlan::Step;
  CheckpointPlan plan;
  std::vector<std::pair<int, Step>> steps;
  for (int pages = 2; pages < 30'000; pages += 2) {
    if (const Step step = plan.AfterCommit(pages); step != Step::kNone) steps.emplace_back(pages, step);
  }
  EXPECT_EQ(steps, (std::vector<std::pair<int, Step>>{{8192, Step::kCopy},
                                                      {12'288, Step::kCopy},
                                                      {16'384, Step::kRestart},
                                                      {20'480, Step::kRestart},
                                                      {24'576, Step::kRestart},
                                                      {28'672, Step::kRestart}}));
  EXPECT_EQ(plan.AfterCommit(2), Step::kNone);  // the log began anew
  EXPECT_EQ(plan.AfterCommit(9000), Step::kCopy);
  EXPECT_EQ(plan.AfterCommit(9002), Step::kNone);
}

TEST_F(DatabaseTest, TheLogIsMovedIntoTheDatabase) {
  auto db = Open();
  std::string page(4000, 'x');
  for (int i = 0; i < 3000; ++i)
    ASSERT_TRUE(db->Execute("INSERT INTO t (k, b) VALUES (?, ?)", {std::to_string(i), Blob{page}}).ok());
  // Without checkpoints the database file would hold its first pages only.
  for (int i = 0; i < 500 && std::filesystem::file_size(path_) < 4'000'000; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_GT(std::filesystem::file_size(path_), 4'000'000u);
}

}  // namespace
}  // namespace lydian::store
