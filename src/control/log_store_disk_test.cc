// The log store when what it should write can't be written, and what its readers hold.
#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "control/log_rows.h"
#include "control/log_store.h"
#include "store/faulty_disk.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class LogStoreDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_).ok());
    auto logs = OpenLogStore(path_);
    ASSERT_TRUE(logs.ok()) << logs.status();
    logs_ = std::move(logs).value();
  }
  void TearDown() override {
    logs_.reset();
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }
  static LogRecord Line(const std::string& text, const std::string& task = "ta-1", int64_t nanos = 1000) {
    LogRecord record;
    record.data = text;
    record.task_id = task;
    record.unix_nanos = nanos;
    return record;
  }
  std::future<void> Append(const std::string& stream, std::vector<LogRecord> records) {
    auto stored = std::make_shared<std::promise<void>>();
    logs_->Append(stream, std::move(records), [stored] { stored->set_value(); });
    return stored->get_future();
  }
  // All that was appended before has been tried.
  void Tried() {
    std::promise<void> promise;
    logs_->TaskOffsets("ta-1", [&](uint64_t, uint64_t) { promise.set_value(); });
    promise.get_future().wait();
  }
  std::vector<std::string> Read(const std::string& stream, const LogFilter& filter = {}) {
    std::promise<std::vector<std::string>> promise;
    auto asked = logs_->Read(stream, 0, filter, 1000, 0, [&](Result<LogStore::Page> page) {
      std::vector<std::string> lines;
      if (page.ok()) {
        for (const LogRecord& record : page->records) lines.push_back(record.data);
      }
      promise.set_value(std::move(lines));
    });
    return promise.get_future().get();
  }

  store::FaultyDisk disk_;
  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-logs-" + RandomHex(6));
  std::string path_ = dir_ + "/logs.db";
  std::unique_ptr<LogStore> logs_;
};

TEST_F(LogStoreDiskTest, AFullDiskIsTriedTwiceASecondHoweverMuchComes) {
  ASSERT_EQ(Append("ap-1", {Line("before\n")}).wait_for(10s), std::future_status::ready);
  disk_.Fill();
  std::vector<std::future<void>> stored;
  for (int i = 0; i < 50; ++i) {
    stored.push_back(Append("ap-1", {Line("line " + std::to_string(i) + std::string(5000, ' ') + "\n")}));
    Tried();
  }
  EXPECT_TRUE(disk_.WaitForRefused(1, 10s));
  EXPECT_FALSE(disk_.WaitForRefused(disk_.Refused() + 10, 2s)) << disk_.Refused();
  disk_.MakeRoom();
  for (auto& one : stored) ASSERT_EQ(one.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(Read("ap-1").size(), 51u);
}

TEST_F(LogStoreDiskTest, WhatCanNeverBeStoredHoldsNobodyUp) {
  {
    auto db = store::Database::Open(path_, LogMigrations());
    ASSERT_TRUE(db.ok()) << db.status();
    ASSERT_TRUE(
        (*db)
            ->Execute("CREATE TRIGGER refuse BEFORE INSERT ON log WHEN NEW.data = 'never' BEGIN SELECT "
                      "RAISE(ABORT, 'on purpose'); END")
            .ok());
  }
  std::vector<std::future<void>> stored;
  stored.push_back(Append("ap-1", {Line("one")}));
  stored.push_back(Append("ap-1", {Line("never")}));
  stored.push_back(Append("ap-1", {Line("two")}));
  stored.push_back(Append("ap-2", {Line("other")}));
  for (auto& one : stored) ASSERT_EQ(one.wait_for(10s), std::future_status::ready);
  EXPECT_EQ(Read("ap-1"), (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(Read("ap-2"), std::vector<std::string>{"other"});
}

TEST_F(LogStoreDiskTest, AJumpOfTheClockDropsNoLines) {
  struct Ahead : Clock {
    SteadyTime Now() const override { return SystemClock().Now(); }
    int64_t UnixNanos() const override {
      return SystemClock().UnixNanos() + int64_t{40} * 86'400'000'000'000;
    }
  } ahead;
  const std::vector<std::string> lines = {"one", "two", "three"};
  for (const std::string& line : lines) {
    ASSERT_EQ(Append("ap-1", {Line(line, "ta-1", SystemClock().UnixNanos())}).wait_for(10s),
              std::future_status::ready);
  }
  const auto reopen = [&] {
    logs_.reset();
    auto logs = OpenLogStore(path_, {}, ahead);
    ASSERT_TRUE(logs.ok()) << logs.status();
    logs_ = std::move(logs).value();
  };
  reopen();
  EXPECT_EQ(Read("ap-1"), lines);
  ASSERT_TRUE(std::filesystem::remove(path_ + "-clock"));  // so that it is believed
  reopen();
  EXPECT_NE(Read("ap-1"), lines);
}

TEST_F(LogStoreDiskTest, APageIsReadInSlicesAndGivenUpBetweenThem) {
  constexpr int kLines = 10'000;
  std::vector<LogRecord> lines;
  for (int i = 0; i < kLines; ++i)
    lines.push_back(Line("x", i % 5000 == 4999 ? "ta-rare" : "ta-1", 1000 + i));
  ASSERT_EQ(Append("ap-1", std::move(lines)).wait_for(30s), std::future_status::ready);
  auto db = store::Database::Open(path_, LogMigrations());
  ASSERT_TRUE(db.ok()) << db.status();
  LogFilter rare;
  rare.task_id = "ta-rare";
  auto always = [] { return true; };
  auto page = ReadLogPage(**db, 1, 0, kLines, rare, 100, always);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->page.records.size(), 2u);
  EXPECT_EQ(page->page.records[1].seq, 10'000u);
  auto newest = ReadNewestLogs(**db, 1, rare, "", 100, 1 << 20, always);
  ASSERT_TRUE(newest.ok()) << newest.status();
  ASSERT_EQ(newest->records.size(), 2u);
  EXPECT_EQ(newest->records[0].seq, 5'000u);

  int asked = 0;
  auto once = [&asked] { return asked++ == 0; };
  EXPECT_EQ(ReadLogPage(**db, 1, 0, kLines, rare, 100, once).status().code(), Code::kCancelled);
  EXPECT_EQ(asked, 2) << "it is asked between two slices";
  asked = 0;
  EXPECT_EQ(ReadNewestLogs(**db, 1, rare, "", 100, 1 << 20, once).status().code(), Code::kCancelled);

  LogFilter window;
  window.since_nanos = 1000 + 4500, window.until_nanos = 1000 + 4501;
  auto some = ReadLogPage(**db, 1, 0, kLines, window, 100, always);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(some->page.records.size(), 2u);
  EXPECT_EQ(some->last, static_cast<uint64_t>(kLines));
}

}  // namespace
}  // namespace lydian::control
