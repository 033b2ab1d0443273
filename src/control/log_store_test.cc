#include "control/log_store.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "base/clock.h"
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
  void Open(LogQuota quota = {}) {
    logs_.reset();
    auto logs = OpenLogStore(dir_ + "/logs.db", quota);
    ASSERT_TRUE(logs.ok()) << logs.status();
    logs_ = std::move(logs).value();
  }
  static LogRecord Line(const std::string& text, int fd = 1, const std::string& task = "ta-1") {
    LogRecord record;
    record.data = text;
    record.file_descriptor = fd;
    record.task_id = task;
    record.unix_nanos = SystemClock().UnixNanos();
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

// A stream's lines up to now, page by page.
std::vector<LogRecord> AllOf(LogStore& logs, const std::string& stream) {
  std::vector<LogRecord> all;
  for (uint64_t after = 0;;) {
    std::promise<Result<LogStore::Page>> promise;
    auto asked = logs.Read(stream, after, {}, 1000, 0,
                           [&](Result<LogStore::Page> page) { promise.set_value(std::move(page)); });
    auto page = promise.get_future().get();
    EXPECT_TRUE(page.ok()) << page.status();
    if (!page.ok() || page->records.empty()) return all;
    for (LogRecord& record : page->records) {
      EXPECT_GT(record.seq, after);
      after = record.seq;
      all.push_back(std::move(record));
    }
  }
}

TEST_F(LogStoreTest, OldLinesMakeRoomAndALineSaysSo) {
  const LogQuota quota{.stream_bytes = 100'000, .total_bytes = 1'000'000'000};
  Open(quota);
  auto put = [&](const std::string& stream, int from, int count) {
    for (int i = from; i < from + count; ++i) {
      std::promise<void> stored;
      logs_->Append(stream, {Line(std::to_string(i) + " " + std::string(1000, 'x'))},
                    [&] { stored.set_value(); });
      stored.get_future().get();
    }
  };
  put("ap-1", 0, 50);
  EXPECT_EQ(AllOf(*logs_, "ap-1").size(), 50u) << "below the quota all stays";
  put("ap-1", 50, 350);
  for (int turn = 0; turn < 2; ++turn) {
    auto lines = AllOf(*logs_, "ap-1");
    ASSERT_FALSE(lines.empty());
    uint64_t bytes = 0;
    for (const LogRecord& line : lines) bytes += line.data.size() + 200;
    EXPECT_LE(bytes, quota.stream_bytes);
    EXPECT_GT(bytes, quota.stream_bytes * 9 / 10);
    const size_t dropped = 400 - (lines.size() - 1);
    EXPECT_EQ(lines[0].file_descriptor, 3);
    EXPECT_EQ(lines[0].data, "[" + std::to_string(dropped) +
                                 " earlier lines of this log were dropped: it may have 0 MiB]\n");
    for (size_t i = 1; i < lines.size(); ++i)
      ASSERT_TRUE(lines[i].data.starts_with(std::to_string(dropped + i - 1) + " ")) << i;
    Open(quota);  // the same after a restart
  }
}

TEST_F(LogStoreTest, TheLargestLogMakesRoomForAll) {
  Open({.stream_bytes = 1'000'000, .total_bytes = 200'000});
  for (int i = 0; i < 20; ++i) logs_->Append("ap-small", {Line("small")});
  for (int i = 0; i < 1000; ++i) {
    std::promise<void> stored;
    logs_->Append("ap-large", {Line(std::string(1000, 'x'))}, [&] { stored.set_value(); });
    stored.get_future().get();
  }
  EXPECT_EQ(AllOf(*logs_, "ap-small").size(), 20u);
  auto lines = AllOf(*logs_, "ap-large");
  EXPECT_LT(lines.size(), 200'000u / 1200);
  EXPECT_GT(lines.size(), 200'000u / 1200 / 2);
  EXPECT_NE(lines[0].data.find("all logs together"), std::string::npos) << lines[0].data;
}

TEST_F(LogStoreTest, TheNewestLinesAreReadFromTheEnd) {
  std::vector<LogRecord> lines;
  for (int i = 0; i < 3000; ++i) lines.push_back(Line(std::to_string(i)));
  std::promise<void> stored;
  logs_->Append("ap-1", lines, [&] { stored.set_value(); });
  stored.get_future().get();
  auto newest = [&](const std::string& stream) {
    std::promise<Result<LogStore::Page>> promise;
    auto asked = logs_->ReadNewest(stream, 10,
                                   [&](Result<LogStore::Page> page) { promise.set_value(std::move(page)); });
    return promise.get_future().get();
  };
  auto page = newest("ap-1");
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->records.size(), 10u);
  EXPECT_EQ(page->records.front().data, "2990");
  EXPECT_EQ(page->records.back().data, "2999");
  EXPECT_TRUE(newest("ap-none")->records.empty());
}

TEST_F(LogStoreTest, OldLinesOfALivingAppGoAndReadersGoOnAtTheOldest) {
  const int64_t now = SystemClock().UnixNanos();
  std::vector<LogRecord> records;
  for (int i = 0; i < 5000; ++i) {
    records.push_back(Line("line " + std::to_string(i) + "\n"));
    records.back().unix_nanos = i < 4500 ? now - int64_t{7200} * 1'000'000'000 : now;
  }
  Append(std::move(records));
  Open({.age_secs = 3600});  // it sweeps when it begins, in slices
  LogStore::Page page;
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  do {
    page = Read(1000);  // the place of one who had read so far
    ASSERT_FALSE(page.records.empty());
  } while (page.records[0].data.find("4500 earlier lines") == std::string::npos &&
           std::chrono::steady_clock::now() < deadline);
  EXPECT_EQ(page.records[0].data,
            "[4500 earlier lines of this log were dropped: lines are kept for 3600 s]\n");
  EXPECT_EQ(page.records[1].data, "line 4500\n");
  EXPECT_FALSE(page.done);
  Append({Line("new\n")});  // and it goes on
  std::vector<LogStore::StreamSize> sizes = logs_->Sizes().value();
  ASSERT_EQ(sizes.size(), 1u);
  EXPECT_LT(sizes[0].bytes, 503u * 260);
  Open({.age_secs = 3600});  // what stands for the others isn't dropped again, as one of them
  EXPECT_EQ(Read(0).records[0].data, page.records[0].data);
}

TEST_F(LogStoreTest, TheLastThatMatchAreReadFromTheEnd) {
  std::vector<LogRecord> records;
  for (int i = 0; i < 3000; ++i) records.push_back(Line(std::to_string(i) + "\n", 1 + i % 2));
  records.push_back(Line("", 0));
  Append(std::move(records));
  auto last = [&](const LogFilter& filter, const std::string& text, size_t most, uint64_t bytes) {
    std::promise<std::vector<std::string>> promise;
    auto asked = logs_->ReadLast("ap-1", filter, text, most, bytes, [&](Result<LogStore::Page> page) {
      std::vector<std::string> lines;
      for (const auto& record : page->records) lines.push_back(record.data);
      promise.set_value(lines);
    });
    return promise.get_future().get();
  };
  LogFilter text_only{.text_only = true}, errors{.file_descriptor = 2};
  EXPECT_EQ(last(text_only, "", 2, 1 << 20), (std::vector<std::string>{"2998\n", "2999\n"}));
  EXPECT_EQ(last(errors, "", 2, 1 << 20), (std::vector<std::string>{"2997\n", "2999\n"}));
  EXPECT_EQ(last({}, "77", 3, 1 << 20), (std::vector<std::string>{"2779\n", "2877\n", "2977\n"}));
  EXPECT_EQ(last(text_only, "", 1000, 1).size(), 1u);
  EXPECT_EQ(last(text_only, "12", 1000, 1 << 20).front(), "12\n");
}

}  // namespace
}  // namespace lydian::control
