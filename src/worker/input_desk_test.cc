#include "worker/input_desk.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <future>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::worker {
namespace {

class LeaseTableTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/table-" + RandomHex(4);
    Reopen();
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(path_).ok()); }
  void Reopen() {
    table_.reset();
    Result<std::unique_ptr<LeaseTable>> table = LeaseTable::Open(path_, 4);
    ASSERT_TRUE(table.ok()) << table.status();
    table_ = std::move(*table);
  }
  std::string path_;
  std::unique_ptr<LeaseTable> table_;
};

TEST_F(LeaseTableTest, KeepsWhatIsHeld) {
  ASSERT_TRUE(table_->Put({"in-1", "fc-1", 2, 7, 1}).ok());
  ASSERT_TRUE(table_->Put({"in-2", "fc-1", 0, 7, 1}).ok());
  EXPECT_TRUE(table_->Remove("in-2", 0));
  EXPECT_FALSE(table_->Remove("in-1", 0));  // another attempt
  table_->SetLastAnswer("key", 9);
  table_->SetFlag(LeaseTable::kReady);
  Reopen();
  ASSERT_EQ(table_->Held().size(), 1u);
  EXPECT_EQ(table_->Held()[0].input_id, "in-1");
  EXPECT_EQ(table_->Held()[0].attempt, 2u);
  EXPECT_EQ(table_->Held()[0].epoch, 7u);
  EXPECT_EQ(table_->last_key(), "key");
  EXPECT_EQ(table_->last_batch(), 9u);
  EXPECT_TRUE(table_->flag(LeaseTable::kReady));
  EXPECT_FALSE(table_->flag(LeaseTable::kStopping));
}

TEST_F(LeaseTableTest, IsBounded) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(table_->Put({"in-" + std::to_string(i), "", 0, 1, 1}).ok());
  EXPECT_EQ(table_->Put({"in-9", "", 0, 1, 1}).code(), Code::kResourceExhausted);
  EXPECT_EQ(table_->Put({std::string(60, 'x'), "", 0, 1, 1}).code(), Code::kInvalidArgument);
}

TEST_F(LeaseTableTest, KeepsTheBordersOfBatches) {
  EXPECT_TRUE(table_->AddLogCut({10, 0}));
  EXPECT_TRUE(table_->AddLogCut({10, 5}));
  EXPECT_TRUE(table_->AddLogCut({20, 5}));
  table_->SetLogAcked({10, 5});
  Reopen();
  EXPECT_EQ(table_->log_acked(), LeaseTable::Offsets(10, 5));
  ASSERT_EQ(table_->log_cuts().size(), 1u);
  EXPECT_EQ(table_->log_cuts()[0], LeaseTable::Offsets(20, 5));
}

TEST_F(LeaseTableTest, RefusesWhatIsNotOne) {
  table_.reset();
  ASSERT_TRUE(WriteFileAtomic(path_, std::string(8192, 'x')).ok());
  EXPECT_EQ(LeaseTable::Open(path_, 4).status().code(), Code::kDataLoss);
}

TEST_F(LeaseTableTest, TakesNoMoreDiskThanAContainerMayHold) {
  const std::string path = path_ + "-large";
  for (uint64_t capacity :
       {uint64_t{0}, LeaseTable::kMostPlaces + 1, uint64_t{600'000'256}, uint64_t{1} << 33}) {
    Status status = LeaseTable::Open(path, capacity).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << capacity;
  }
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_blocks, 0);
  EXPECT_TRUE(LeaseTable::Open(path, 256 + 2 * 10'000).ok());
  EXPECT_EQ(unlink(path.c_str()), 0);
}

class InputDeskTest : public LeaseTableTest {
 protected:
  void TearDown() override {
    EXPECT_TRUE(RemoveTree(path_ + "-outputs").ok());
    LeaseTableTest::TearDown();
  }
  void SetUp() override {
    LeaseTableTest::SetUp();
    Open();
  }
  void Open() {
    desk_.reset();
    Result<std::unique_ptr<OutputSpool>> spool = OutputSpool::Open(path_ + "-outputs");
    ASSERT_TRUE(spool.ok()) << spool.status();
    spool_ = std::move(*spool);
    InputDesk::Options options;
    options.task_id = "ta-1";
    options.slots = 2;
    options.strand = &strand_;
    options.send = [this](FromWorker message) { sent_.push_back(std::move(message)); };
    options.send_output = [this](const Output& output, bool soon) {
      *sent_.emplace_back().mutable_outputs()->add_outputs() = output;
      soon_.push_back(soon);
    };
    options.on_ready = [this] { ++ready_; };
    options.on_kill_switch = [this] { ++killed_; };
    desk_ = std::make_unique<InputDesk>(std::move(options), table_.get(), spool_.get());
  }
  static Lease Make(const std::string& id, uint32_t attempt = 0, const std::string& method = "") {
    Lease lease;
    lease.set_task_id("ta-1");
    lease.set_input_id(id);
    lease.set_attempt(attempt);
    lease.set_epoch(3);
    lease.set_method_name(method);
    return lease;
  }
  static Output Out(const std::string& id, uint32_t attempt = 0) {
    Output output;
    output.set_input_id(id);
    output.set_attempt(attempt);
    output.set_status(1);
    return output;
  }
  static LeaseRef Ref(const std::string& id, uint32_t attempt = 0) {
    LeaseRef ref;
    ref.set_input_id(id);
    ref.set_attempt(attempt);
    ref.set_epoch(3);
    return ref;
  }
  void Ask(const std::string& key, uint32_t batch = 0, uint64_t linger = 0) {
    question_ = std::make_shared<InputQuestion>();
    question_->key = key;
    question_->batch_max_size = batch;
    question_->batch_linger_ms = linger;
    question_->reply = [this](Result<Handed> handed) { answers_.push_back(std::move(handed)); };
    desk_->Ask(question_);
  }
  std::vector<std::string> Ids(size_t answer) {
    std::vector<std::string> ids;
    for (const Lease& lease : answers_.at(answer)->leases) ids.push_back(lease.input_id());
    return ids;
  }
  using List = std::vector<std::string>;

  Strand strand_{"test"};
  std::unique_ptr<OutputSpool> spool_;
  std::vector<FromWorker> sent_;
  std::vector<bool> soon_;
  std::vector<Result<Handed>> answers_;
  std::shared_ptr<InputQuestion> question_;
  std::unique_ptr<InputDesk> desk_;
  int ready_ = 0, killed_ = 0;
};

TEST_F(InputDeskTest, OneAnswerAndItsOutput) {
  Ask("k1");
  EXPECT_EQ(ready_, 1);
  ASSERT_EQ(sent_.size(), 1u);
  EXPECT_EQ(sent_[0].demand().free_slots(), 2u);
  EXPECT_TRUE(sent_[0].demand().ready());
  desk_->Add(Make("in-1"));
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(Ids(0), List{"in-1"});
  EXPECT_EQ(table_->Held().size(), 1u);
  int done = 0;
  std::string running, call;
  desk_->running_input()->Get(&running, &call);
  EXPECT_EQ(running, "in-1");
  desk_->Put(Out("in-1"), [&] { ++done; });
  desk_->running_input()->Get(&running, &call);
  EXPECT_EQ(running, "");  // whether control has acknowledged it or not
  ASSERT_EQ(sent_.size(), 2u);
  EXPECT_EQ(sent_[1].outputs().outputs(0).epoch(), 3u);
  EXPECT_FALSE(soon_[0]);  // its container has nothing else to do
  EXPECT_EQ(done, 1);
  desk_->Put(Out("in-1"), [&] { ++done; });  // asked again meanwhile: one message, two answers
  EXPECT_EQ(done, 2);
  EXPECT_EQ(sent_.size(), 2u);
  EXPECT_FALSE(desk_->all_acked());
  EXPECT_EQ(table_->Held().size(), 1u);
  desk_->Acked(Ref("in-1"));
  EXPECT_TRUE(desk_->all_acked());
  EXPECT_TRUE(table_->Held().empty());
  desk_->Put(Out("in-1"), [&] { ++done; });  // and once more, late
  EXPECT_EQ(done, 3);
  EXPECT_EQ(sent_.size(), 2u);
}

TEST_F(InputDeskTest, AnAnswerThatGotLostIsGivenAgain) {
  desk_->Add(Make("in-1"));
  Ask("k1");
  Ask("k1");
  ASSERT_EQ(answers_.size(), 2u);
  EXPECT_EQ(Ids(1), List{"in-1"});
  EXPECT_EQ(table_->Held().size(), 1u);
}

TEST_F(InputDeskTest, AfterARestartALostAnswerGoesBackToControl) {
  desk_->Add(Make("in-1"));
  Ask("k1");
  sent_.clear();
  Open();
  ASSERT_EQ(desk_->Held().size(), 1u);
  Ask("k1");
  ASSERT_EQ(sent_.size(), 1u);
  EXPECT_EQ(sent_[0].give_back().leases(0).input_id(), "in-1");
  EXPECT_TRUE(desk_->Held().empty());
  EXPECT_TRUE(desk_->asking());
}

TEST_F(InputDeskTest, AfterARestartADeliveredAnswerIsStillHeld) {
  desk_->Add(Make("in-1"));
  Ask("k1");
  Open();
  Ask("k2");
  EXPECT_EQ(desk_->Held().size(), 1u);
  int done = 0;
  desk_->Put(Out("in-1"), [&] { ++done; });
  desk_->Resend();
  desk_->Acked(Ref("in-1"));
  EXPECT_EQ(done, 1);
}

TEST_F(InputDeskTest, AfterARestartOutputsThatControlMayNotHaveAreSent) {
  desk_->Add(Make("in-1"));
  desk_->Add(Make("in-2"));
  desk_->Add(Make("in-3"));
  Ask("k1");
  Ask("k2");
  desk_->Put(Out("in-1"), [] {});
  EXPECT_TRUE(soon_.back());  // in-3 waits for its container
  desk_->Put(Out("in-2"), [] {});
  desk_->Acked(Ref("in-1"));
  sent_.clear();
  Open();
  EXPECT_FALSE(desk_->all_acked());
  desk_->Resend();
  ASSERT_FALSE(sent_.empty());
  ASSERT_EQ(sent_[0].outputs().outputs_size(), 1);  // in-1 is in the file, and acknowledged
  EXPECT_EQ(sent_[0].outputs().outputs(0).input_id(), "in-2");
  EXPECT_EQ(sent_[0].outputs().outputs(0).epoch(), 3u);
  int done = 0;
  desk_->Put(Out("in-2"), [&] { ++done; });  // a container that never heard of its answer
  EXPECT_EQ(done, 1);
  desk_->Acked(Ref("in-2"));
  EXPECT_TRUE(desk_->all_acked());
}

TEST_F(InputDeskTest, AFullTableWaitsForAcknowledgements) {
  for (int i = 0; i < 5; ++i) desk_->Add(Make("in-" + std::to_string(i)));
  for (int i = 0; i < 4; ++i) {
    Ask("k" + std::to_string(i));
    desk_->Put(Out("in-" + std::to_string(i)), [] {});
  }
  Ask("k4");
  EXPECT_EQ(answers_.size(), 4u);
  desk_->Acked(Ref("in-0"));
  ASSERT_EQ(answers_.size(), 5u);
  EXPECT_EQ(Ids(4), List{"in-4"});
}

TEST_F(InputDeskTest, SteadyWorkDoesNotFillTheSpool) {
  desk_->Add(Make("in-0"));
  Ask("k0");
  desk_->Put(Out("in-0"), [] {});  // never acknowledged
  for (int i = 1; i < 100; ++i) {
    const std::string id = "in-" + std::to_string(i);
    desk_->Add(Make(id));
    Ask("k" + std::to_string(i));
    Output output = Out(id);
    output.set_result(std::string(size_t{256} << 10, 'r'));
    desk_->Put(std::move(output), [] {});
    desk_->Acked(Ref(id));
  }
  struct stat info {};
  ASSERT_EQ(stat((path_ + "-outputs").c_str(), &info), 0);
  EXPECT_LT(info.st_size, off_t{9} << 20);  // of 25 MiB
  sent_.clear();
  Open();
  desk_->Resend();
  ASSERT_FALSE(sent_.empty());
  ASSERT_EQ(sent_[0].outputs().outputs_size(), 1);
  EXPECT_EQ(sent_[0].outputs().outputs(0).input_id(), "in-0");
}

TEST(OutputSpool, BeginsAnewAndSkipsHalves) {
  const std::string path = testing::TempDir() + "/spool-" + RandomHex(4);
  const auto open = [&] { return OutputSpool::Open(path).value(); };
  const auto make = [](const std::string& id, size_t bytes) {
    Output output;
    output.set_input_id(id);
    output.set_result(std::string(bytes, 'r'));
    return output;
  };
  std::unique_ptr<OutputSpool> spool = open();
  ASSERT_TRUE(spool->Add(make("in-1", 5000)).ok());
  ASSERT_TRUE(spool->Add(make("in-2", 10)).ok());
  spool->Forget();
  spool->Forget();
  ASSERT_TRUE(spool->Add(make("in-3", 10)).ok());  // over the first
  spool = open();
  std::vector<Output> found = spool->TakeFound();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].input_id(), "in-3");
  ASSERT_TRUE(spool->Add(make("in-4", 3000)).ok());
  ASSERT_EQ(truncate(path.c_str(), 2000), 0);  // killed in the middle of a write
  spool = open();
  EXPECT_EQ(spool->TakeFound().size(), 1u);
  EXPECT_TRUE(RemoveTree(path).ok());
}

TEST_F(InputDeskTest, ABatchIsOfOneMethod) {
  desk_->Add(Make("in-1", 0, "a"));
  desk_->Add(Make("in-2", 0, "b"));
  desk_->Add(Make("in-3", 0, "a"));
  Ask("k1", 4);
  EXPECT_EQ(Ids(0), (List{"in-1", "in-3"}));
  Ask("k2", 4);
  EXPECT_EQ(Ids(1), List{"in-2"});
}

TEST_F(InputDeskTest, ABatchWaitsForItsLinger) {
  std::promise<void> answered;
  strand_.Post([&] {
    desk_->Add(Make("in-1"));
    question_ = std::make_shared<InputQuestion>();
    question_->batch_max_size = 3;
    question_->batch_linger_ms = 30;
    question_->reply = [&](Result<Handed> handed) {
      answers_.push_back(std::move(handed));
      answered.set_value();
    };
    desk_->Ask(question_);
    EXPECT_TRUE(answers_.empty());
    desk_->Add(Make("in-2"));
  });
  answered.get_future().wait();
  EXPECT_EQ(Ids(0), (List{"in-1", "in-2"}));
}

TEST_F(InputDeskTest, ClosingGivesTheKillSwitchAndWhatIsQueuedBack) {
  desk_->Add(Make("in-1"));
  desk_->Close();
  EXPECT_EQ(sent_.back().give_back().leases(0).input_id(), "in-1");
  Ask("k1");
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_TRUE(answers_[0]->kill_switch);
  EXPECT_EQ(killed_, 1);
  desk_->Add(Make("in-2"));
  EXPECT_EQ(sent_.back().give_back().leases(0).input_id(), "in-2");
}

TEST_F(InputDeskTest, CancellingSparesWhatRuns) {
  desk_->Add(Make("in-1"));
  Ask("k1");
  desk_->Add(Make("in-2"));
  EXPECT_EQ(desk_->Cancel({"in-1", "in-2", "in-3"}), List{"in-1"});
  EXPECT_EQ(sent_.back().give_back().leases(0).input_id(), "in-2");
}

TEST_F(InputDeskTest, OneInputIsNamedForLogs) {
  std::string input, call;
  desk_->Add(Make("in-1"));
  Ask("k1");
  desk_->running_input()->Get(&input, &call);
  EXPECT_EQ(input, "in-1");
  desk_->Add(Make("in-2"));
  Ask("k2");
  desk_->running_input()->Get(&input, &call);
  EXPECT_EQ(input, "");
}

TEST_F(InputDeskTest, AnOutputOfNothingHeldIsAnswered) {
  int done = 0;
  desk_->Put(Out("in-9"), [&] { ++done; });
  EXPECT_EQ(done, 1);
  EXPECT_TRUE(sent_.empty());
}

}  // namespace
}  // namespace lydian::worker
