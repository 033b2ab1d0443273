// The journal on a disk that is full, busy or fails.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "control/journal.h"
#include "store/disk_failure.h"
#include "store/faulty_disk.h"

namespace lydian::control {
namespace {

using store::FaultyDisk;
using Op = store::FaultyDisk::Op;
using namespace std::chrono_literals;

class JournalDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_).ok());
    store::SetDiskFailureHandler([this](const Status&) { ++failures_; });
    auto journal = Journal::Open(dir_ + "/calls.db", [this](Task task) { strand_.Post(std::move(task)); });
    ASSERT_TRUE(journal.ok()) << journal.status();
    journal_ = std::move(journal).value();
  }
  void TearDown() override {
    journal_.reset();
    strand_.Stop();
    store::SetDiskFailureHandler(nullptr);
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }
  std::future<Status> Write(Journal::Record record, bool alone = false) {
    auto promise = std::make_shared<std::promise<Status>>();
    record.done = [promise](Status status) { promise->set_value(std::move(status)); };
    journal_->Append(std::move(record), alone);
    return promise->get_future();
  }

  FaultyDisk disk_;
  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-journal-" + RandomHex(6));
  std::atomic<int> failures_{0};
  Strand strand_{"test"};
  std::unique_ptr<Journal> journal_;
};

TEST_F(JournalDiskTest, WhatIsCommittedIsOnTheDiskASecondLaterUnderSteadyLoad) {
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t before = disk_.Count(Op::kSync, "calls.db-wal");
  // A record every few milliseconds: the journal never rests.
  for (int i = 0; !disk_.WaitFor(Op::kSync, "calls.db-wal", before + 2, 5ms); ++i) {
    ASSERT_LT(std::chrono::steady_clock::now() - begin, 8s) << "nothing was synced";
    ASSERT_TRUE(Write(Journal::PutApp("ap-" + std::to_string(i), "active")).get().ok());
  }
}

TEST_F(JournalDiskTest, ASyncThatFailedIsStillOwed) {
  const uint64_t before = disk_.Count(Op::kSync, "calls.db-wal");
  disk_.Fail(Op::kSync, "calls.db-wal");
  ASSERT_TRUE(Write(Journal::PutApp("ap-1", "active")).get().ok());
  EXPECT_TRUE(disk_.WaitFor(Op::kSync, "calls.db-wal", before + 2, 5s));
  EXPECT_EQ(failures_, 1);
}

TEST_F(JournalDiskTest, NobodyIsToldOfWhatMayBeLost) {
  disk_.Fail(Op::kSync, "calls.db-wal");
  Journal::Record record = Journal::PutApp("ap-1", "active");
  record.durable = true;
  auto told = std::make_shared<std::atomic<bool>>(false);
  record.done = [told](const Status&) { *told = true; };
  journal_->Append(std::move(record));
  auto later = Write(Journal::PutApp("ap-2", "active"));  // in the next group, or in the same
  (void)later.wait_for(5s);
  EXPECT_EQ(failures_, 1);
  journal_.reset();
  strand_.Stop();
  EXPECT_FALSE(*told);
}

TEST_F(JournalDiskTest, WhatMustBeKeptWaitsForABusyDatabase) {
  auto busy = std::make_shared<std::atomic<int>>(3);
  Journal::Record record;
  record.must = true;
  record.apply = [busy](store::Session&) { return (*busy)-- > 0 ? Unavailable("it is locked") : Status(); };
  auto written = Write(std::move(record));
  auto behind = Write(Journal::SetCancelled(1));
  ASSERT_EQ(written.wait_for(10s), std::future_status::ready);
  Status status = written.get();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(behind.get().ok());
}

TEST_F(JournalDiskTest, WhatCanNeverBeWrittenHoldsNothingUp) {
  Journal::Record record;
  record.must = true;
  record.apply = [](store::Session&) { return InvalidArgument("it can't be written"); };
  auto refused = Write(std::move(record));
  EXPECT_TRUE(Write(Journal::SetCancelled(1)).get().ok());
  EXPECT_EQ(refused.get().code(), Code::kInvalidArgument);
}

TEST_F(JournalDiskTest, AFullDiskRefusesWhatMayBeAndKeepsTheRest) {
  disk_.Fill();
  auto output = Write(Journal::PutApp("ap-1", std::string(20'000, 'x')));  // must be written
  Journal::Record chunk = Journal::PutChunks({{1, 1, std::make_shared<const std::string>(20'000, 'x')}});
  EXPECT_EQ(Write(std::move(chunk)).get().code(), Code::kResourceExhausted);
  EXPECT_EQ(output.wait_for(0s), std::future_status::timeout);
  disk_.MakeRoom();
  ASSERT_EQ(output.wait_for(10s), std::future_status::ready);
  EXPECT_TRUE(output.get().ok());
  EXPECT_EQ(failures_, 0);
}

}  // namespace
}  // namespace lydian::control
