#include "worker/log_pump.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <condition_variable>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::worker {
namespace {

class LogPumpTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/pump-" + RandomHex(4);
    ASSERT_TRUE(MakeDirs(dir_).ok());
    Start();
  }
  void TearDown() override {
    pump_.reset();
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  void Start() {
    LogPump::Options options;
    options.send = [this](FromWorker message) {
      std::lock_guard lock(mutex_);
      for (const LogEntry& entry : message.log().entries()) text_[entry.file_descriptor()] += entry.data();
      batches_.push_back(message.log());
      changed_.notify_all();
    };
    options.most_unacked = 256 << 10;
    options.partial_line = partial_line_;
    pump_ = std::make_unique<LogPump>(std::move(options));
  }
  void Add() {
    int out[2], err[2];
    ASSERT_EQ(pipe2(out, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(err, O_CLOEXEC), 0);
    out_.reset(out[1]);
    err_.reset(err[1]);
    AddWith(UniqueFd(out[0]), UniqueFd(err[0]));
  }
  void AddWith(UniqueFd out, UniqueFd err) {
    Result<std::unique_ptr<LeaseTable>> table = LeaseTable::Open(dir_ + "/table", 4);
    ASSERT_TRUE(table.ok()) << table.status();
    LogSource source;
    source.task_id = "ta-1";
    source.dir = dir_;
    source.stdout_pipe = std::move(out);
    source.stderr_pipe = std::move(err);
    source.table = std::move(*table);
    source.running = running_;
    source.on_sent = [this] {
      std::lock_guard lock(mutex_);
      ++sent_;
      changed_.notify_all();
    };
    source.on_acked = [this] {
      std::lock_guard lock(mutex_);
      acked_ = true;
      changed_.notify_all();
    };
    ASSERT_TRUE(pump_->Add(std::move(source)).ok());
  }
  template <typename Condition>
  void WaitFor(Condition condition) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(10), condition));
  }
  void AckAll() {
    LogAck ack;
    {
      std::lock_guard lock(mutex_);
      if (batches_.empty()) return;
      ack.set_task_id("ta-1");
      ack.set_stdout_offset(batches_.back().stdout_offset());
      ack.set_stderr_offset(batches_.back().stderr_offset());
    }
    pump_->Acked(ack);
  }

  std::string dir_;
  Millis partial_line_{60'000};
  std::shared_ptr<RunningInput> running_ = std::make_shared<RunningInput>();
  UniqueFd out_, err_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, std::string> text_;
  std::vector<LogBatch> batches_;
  int sent_ = 0;
  bool acked_ = false;
  std::unique_ptr<LogPump> pump_;
};

TEST_F(LogPumpTest, LinesArriveWholeAndAtOnce) {
  Add();
  pump_->SetLinkUp(true);
  ASSERT_TRUE(WriteAll(out_.get(), "hel").ok());
  ASSERT_TRUE(WriteAll(out_.get(), "lo\n").ok());
  ASSERT_TRUE(WriteAll(err_.get(), "oh\n").ok());
  WaitFor([&] { return text_[1] == "hello\n" && text_[2] == "oh\n"; });
}

TEST_F(LogPumpTest, ABegunLineWaitsForItsEndAndAReturnIsOne) {
  Add();
  pump_->SetLinkUp(true);
  ASSERT_TRUE(WriteAll(out_.get(), "begun ").ok());
  ASSERT_TRUE(WriteAll(err_.get(), "10%\r20%").ok());
  WaitFor([&] { return text_[2] == "10%\r"; });
  ASSERT_TRUE(WriteAll(err_.get(), "\rx\n").ok());
  WaitFor([&] { return text_[2] == "10%\r20%\rx\n"; });
  ASSERT_TRUE(WriteAll(out_.get(), "and ended\n").ok());
  WaitFor([&] { return text_[1] == "begun and ended\n"; });
  for (const LogBatch& batch : batches_) {
    for (const LogEntry& entry : batch.entries()) {
      EXPECT_TRUE(entry.file_descriptor() != 1 || entry.data() == "begun and ended\n") << entry.data();
    }
  }
}

TEST_F(LogPumpTest, TheEndOfItsInputEndsABegunLine) {
  running_->Set("in-1", "fc-1");
  Add();
  pump_->SetLinkUp(true);
  ASSERT_TRUE(WriteAll(out_.get(), "no newline").ok());
  ASSERT_TRUE(WriteAll(err_.get(), "oh\n").ok());
  WaitFor([&] { return text_[2] == "oh\n"; });
  EXPECT_EQ(text_[1], "");
  // The first may come before the pump has seen the begun line: then it is a later one that ends it.
  for (int i = 2; i < 2000; ++i) {
    running_->Set("in-" + std::to_string(i), "fc-1");
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, Millis(5), [&] { return text_[1] == "no newline"; })) return;
  }
  FAIL() << "held: " << text_[1];
}

TEST_F(LogPumpTest, ABegunLineComesAfterAMomentAndACharacterWhole) {
  partial_line_ = Millis(10);
  pump_.reset();
  Start();
  Add();
  pump_->SetLinkUp(true);
  ASSERT_TRUE(WriteAll(out_.get(), "password: \xE2\x82").ok());
  WaitFor([&] { return text_[1] == "password: "; });
  ASSERT_TRUE(WriteAll(out_.get(), "\xAC").ok());
  WaitFor([&] { return text_[1] == "password: \xE2\x82\xAC"; });
}

TEST_F(LogPumpTest, TheLastLineNeedsNoNewlineAndNoUtf8) {
  Add();
  pump_->SetLinkUp(true);
  ASSERT_TRUE(WriteAll(out_.get(), "end\xE2\x82").ok());
  out_.reset();
  pump_->Finish("ta-1");
  WaitFor([&] { return sent_ == 1; });
  EXPECT_EQ(text_[1], "end\xEF\xBF\xBD");
  EXPECT_FALSE(acked_);
  AckAll();
  WaitFor([&] { return acked_; });
}

TEST_F(LogPumpTest, NothingIsLostWhileControlIsAway) {
  Add();
  ASSERT_TRUE(WriteAll(out_.get(), "one\n").ok());
  pump_->SetLinkUp(true);
  WaitFor([&] { return text_[1] == "one\n"; });
  pump_->SetLinkUp(false);
  ASSERT_TRUE(WriteAll(out_.get(), "two\n").ok());
  pump_->Finish("ta-1");
  pump_->SetLinkUp(true);
  WaitFor([&] { return sent_ == 1; });
  // Nothing was acknowledged: all of it comes again ("two" may have been read before the link went).
  EXPECT_TRUE(text_[1] == "one\none\ntwo\n" || text_[1] == "one\ntwo\none\ntwo\n") << text_[1];
}

TEST_F(LogPumpTest, ARestartedWorkerGoesOnWhereItWas) {
  Add();
  pump_->SetLinkUp(true);
  ASSERT_TRUE(WriteAll(out_.get(), "one\n").ok());
  WaitFor([&] { return text_[1] == "one\n"; });
  AckAll();
  Result<std::unique_ptr<LeaseTable>> table =
      LeaseTable::Open(dir_ + "/table", 4);  // what will outlive the pump
  ASSERT_TRUE(table.ok()) << table.status();
  for (int i = 0; i < 10'000 && (*table)->log_acked().first != 4; ++i) usleep(1000);
  ASSERT_EQ((*table)->log_acked().first, 4u);
  ASSERT_TRUE(WriteAll(out_.get(), "two\n").ok());
  WaitFor([&] { return text_[1] == "one\ntwo\n"; });
  pump_.reset();
  text_.clear();
  Start();
  AddWith(UniqueFd(), UniqueFd());
  pump_->SetLinkUp(true);
  WaitFor([&] { return text_[1] == "two\n"; });
  EXPECT_EQ(batches_.back().stdout_offset(), 8u);
}

TEST_F(LogPumpTest, ANoisyContainerWaits) {
  Add();
  pump_->SetLinkUp(true);
  fcntl(out_.get(), F_SETFL, O_NONBLOCK);
  const std::string line(1023, 'x');
  size_t written = 0;
  // Nothing is acknowledged: writing must stop by itself.
  for (int pause = 0; pause < 100;) {
    const ssize_t n = write(out_.get(), (line + "\n").data(), 1024);
    if (n > 0) {
      written += static_cast<size_t>(n);
      ASSERT_LT(written, size_t{8} << 20);
      pause = 0;
    } else {
      ++pause;
      usleep(1000);
    }
  }
  EXPECT_GE(written, size_t{256} << 10);
  out_.reset();
  for (int i = 0; i < 2000; ++i) {
    AckAll();
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, Millis(5), [&] { return text_[1].size() == written; })) return;
  }
  FAIL() << text_[1].size() << " of " << written;
}

}  // namespace
}  // namespace lydian::worker
