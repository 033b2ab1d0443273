#include "control/log_store.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class LogStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_).ok());
    Open();
  }
  void TearDown() override {
    logs_.reset();
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }
  void Open() {
    logs_.reset();
    auto logs = OpenLogStore(dir_ + "/logs.db");
    ASSERT_TRUE(logs.ok()) << logs.status();
    logs_ = std::move(logs).value();
  }
  static LogRecord Line(const std::string& text, int fd = 1, const std::string& task = "ta-1") {
    LogRecord record;
    record.data = text;
    record.file_descriptor = fd;
    record.task_id = task;
    record.unix_nanos = 1000;
    return record;
  }
  void Append(std::vector<LogRecord> records) {
    std::promise<void> stored;
    logs_->Append("ap-1", std::move(records), [&] { stored.set_value(); });
    stored.get_future().wait();
  }
  LogStore::Page Read(uint64_t after, const LogFilter& filter = {}, size_t most = 1000, int64_t wait = 0) {
    std::promise<LogStore::Page> promise;
    auto asked = logs_->Read("ap-1", after, filter, most, wait, [&](Result<LogStore::Page> page) {
      EXPECT_TRUE(page.ok()) << page.status();
      promise.set_value(std::move(*page));
    });
    return promise.get_future().get();
  }

  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-logs-" + RandomHex(6));
  std::unique_ptr<LogStore> logs_;
};

TEST_F(LogStoreTest, OrderAndCursorSurviveAReopen) {
  Append({Line("a\n"), Line("b\n", 2)});
  Append({Line("c\n")});
  Open();
  Append({Line("d\n")});
  auto page = Read(1);
  ASSERT_EQ(page.records.size(), 3u);
  EXPECT_EQ(page.records[0].data, "b\n");
  EXPECT_EQ(page.records[0].file_descriptor, 2);
  EXPECT_EQ(page.records[0].seq, 2u);
  EXPECT_EQ(page.records[2].data, "d\n");
  EXPECT_EQ(page.records[2].seq, 4u);
  EXPECT_FALSE(page.done);
}

TEST_F(LogStoreTest, AReaderWaitsForWhatComes) {
  std::promise<LogStore::Page> promise;
  auto future = promise.get_future();
  auto asked = logs_->Read("ap-1", 0, {}, 10, 5000,
                           [&](Result<LogStore::Page> page) { promise.set_value(std::move(*page)); });
  EXPECT_EQ(future.wait_for(30ms), std::future_status::timeout);
  Append({Line("x")});
  EXPECT_EQ(future.get().records.size(), 1u);
}

TEST_F(LogStoreTest, AnEmptyAnswerComesAfterTheWait) {
  auto before = std::chrono::steady_clock::now();
  EXPECT_TRUE(Read(0, {}, 10, 50).records.empty());
  EXPECT_GE(std::chrono::steady_clock::now() - before, 45ms);
}

TEST_F(LogStoreTest, AQuestionTakenBackIsNotAnswered) {
  bool answered = false;
  auto asked = logs_->Read("ap-1", 0, {}, 10, 5000, [&](Result<LogStore::Page>) { answered = true; });
  asked.reset();
  Append({Line("x")});
  Read(0);
  EXPECT_FALSE(answered);
}

TEST_F(LogStoreTest, DoneIsToldToWhoeverAsks) {
  Append({Line("x")});
  logs_->MarkDone("ap-1");
  auto page = Read(0, {}, 10, 1000);
  EXPECT_EQ(page.records.size(), 1u);
  page = Read(1, {}, 10, 5000);
  EXPECT_TRUE(page.done);
  Open();
  page = Read(0, {}, 10, 1000);
  EXPECT_EQ(page.records.size(), 1u);
  EXPECT_TRUE(page.done);
  logs_->Reopen("ap-1");
  EXPECT_FALSE(Read(1, {}, 10, 0).done);
}

TEST_F(LogStoreTest, FiltersAndBounds) {
  for (int i = 0; i < 50; ++i) Append({Line("x", 1 + i % 2, i % 5 == 0 ? "ta-2" : "ta-1")});
  LogFilter filter;
  filter.task_id = "ta-2";
  filter.file_descriptor = 1;
  EXPECT_EQ(Read(0, filter).records.size(), 5u);
  Open();  // from the disk alone
  EXPECT_EQ(Read(0, filter).records.size(), 5u);
  EXPECT_EQ(Read(0, {}, 7).records.size(), 7u);
  filter.task_id = "ta-none";
  EXPECT_TRUE(Read(0, filter, 10, 30).records.empty());
}

TEST_F(LogStoreTest, MoreThanAPageComesInPieces) {
  std::string big(100'000, 'x');
  for (int i = 0; i < 40; ++i) Append({Line(big)});
  uint64_t after = 0;
  size_t records = 0, pages = 0;
  while (true) {
    auto page = Read(after);
    if (page.records.empty()) break;
    EXPECT_EQ(page.records[0].seq, after + 1);
    after = page.records.back().seq;
    records += page.records.size();
    ++pages;
  }
  EXPECT_EQ(records, 40u);
  EXPECT_GE(pages, 4u);
}

TEST_F(LogStoreTest, AContainersSpoolIsStoredOnce) {
  auto append = [&](const std::string& text, uint64_t offset) {
    std::promise<void> stored;
    logs_->AppendFromTask("ap-1", {Line(text)}, "ta-1", offset, 0, [&] { stored.set_value(); });
    stored.get_future().wait();
  };
  append("a", 1);
  append("a", 1);
  Open();
  append("a", 1);
  append("b", 2);
  EXPECT_EQ(Read(0).records.size(), 2u);
  std::promise<uint64_t> offset;
  logs_->TaskOffsets("ta-1", [&](uint64_t out, uint64_t) { offset.set_value(out); });
  EXPECT_EQ(offset.get_future().get(), 2u);
}

}  // namespace
}  // namespace lydian::control
