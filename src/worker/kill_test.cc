// What a worker that is killed at any moment leaves in its files.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>

#include "base/fd.h"
#include "base/ids.h"
#include "worker/exit_text.h"
#include "worker/input_desk.h"
#include "worker/link_limits.h"
#include "worker/task_note.h"

namespace lydian::worker {
namespace {

constexpr uint32_t kBatch = 32;

class KillTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(MakeDirs(dir_).ok()); }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }

  struct Desk {
    explicit Desk(const std::string& dir)
        : table(LeaseTable::Open(dir + "/table", 4 * kBatch).value()),
          spool(OutputSpool::Open(dir + "/outputs").value()) {
      InputDesk::Options options;
      options.task_id = "ta-1";
      options.slots = kBatch;
      options.strand = &strand;
      options.send = [this](FromWorker message) { given_back += message.give_back().leases_size(); };
      options.send_output = [](const Output&, bool) {};
      options.on_ready = [] {};
      options.on_kill_switch = [] {};
      desk = std::make_unique<InputDesk>(std::move(options), table.get(), spool.get());
    }
    void Ask(uint64_t number) {
      auto question = std::make_shared<InputQuestion>();
      question->key = "key-" + std::to_string(number);
      question->batch_max_size = kBatch;
      question->reply = [](const Result<Handed>&) {};
      desk->Ask(question);
    }
    Strand strand{"killed"};
    std::unique_ptr<LeaseTable> table;
    std::unique_ptr<OutputSpool> spool;
    std::unique_ptr<InputDesk> desk;
    int given_back = 0;
  };

  // Hands batches out and finishes them, for ever. `asking` is the question that is being answered.
  [[noreturn]] static void Work(const std::string& dir, std::atomic<uint64_t>* asking) {
    Desk desk(dir);
    const std::string payload(size_t{64} << 10, 'p');
    for (uint64_t number = 1;; ++number) {
      for (uint32_t i = 0; i < kBatch; ++i) {
        Lease lease;
        lease.set_task_id("ta-1");
        lease.set_input_id("in-" + std::to_string(number) + "-" + std::to_string(i));
        lease.set_input(payload);
        desk.desk->Add(lease);
      }
      asking->store(number);
      desk.Ask(number);
      asking->store(0);
      for (uint32_t i = 0; i < kBatch; ++i) {
        Output output;
        output.set_input_id("in-" + std::to_string(number) + "-" + std::to_string(i));
        LeaseRef ref;
        ref.set_input_id(output.input_id());
        desk.desk->Put(std::move(output), [] {});
        desk.desk->Acked(ref);
      }
    }
  }

  const std::string dir_ = testing::TempDir() + "/killed-" + RandomHex(6);
};

TEST_F(KillTest, AnUnansweredQuestionLeavesNoInputBehind) {
  auto* asking = static_cast<std::atomic<uint64_t>*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(asking, MAP_FAILED);
  int inside = 0;
  for (int round = 0; round < 2000 && inside < 25; ++round) {
    const std::string dir = dir_ + "/" + std::to_string(round);
    ASSERT_TRUE(MakeDirs(dir).ok());
    asking->store(0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) Work(dir, asking);
    while (asking->load() < 2) {
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(round * 997 % 400'000);
    while (std::chrono::steady_clock::now() < until) {
    }
    kill(child, SIGKILL);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    if (const uint64_t number = asking->load(); number != 0) {
      ++inside;
      Desk next(dir);
      next.Ask(number);  // the container's repeat
      EXPECT_TRUE(next.desk->Held().empty()) << "given back " << next.given_back << ", still held "
                                             << next.desk->Held().size() << " of question " << number;
    }
    ASSERT_TRUE(RemoveTree(dir).ok());
  }
  EXPECT_GT(inside, 0);
  munmap(asking, 4096);
}

class HalfAnswerTest : public KillTest {
 protected:
  // The table as it is when question 2 was noted and `put` of its two leases.
  void Make(int put) {
    Desk desk(dir_);
    desk.table->SetLastAnswer("key-1", 1);
    ASSERT_TRUE(desk.table->Put({"in-1", "fc-1", 0, 1, 1}).ok());
    desk.table->SetLastAnswer("key-2", 2);
    for (int i = 0; i < put; ++i) {
      ASSERT_TRUE(desk.table->Put({"in-2" + std::to_string(i), "fc-1", 0, 1, 2}).ok());
    }
  }
};

TEST_F(HalfAnswerTest, WhatWasPutGoesBackAndNothingElse) {
  for (int put : {0, 1, 2}) {
    Make(put);
    Desk next(dir_);
    next.Ask(2);
    EXPECT_EQ(next.given_back, put);
    ASSERT_EQ(next.desk->Held().size(), 1u);
    EXPECT_EQ(next.desk->Held()[0].input_id(), "in-1");  // the container works on it
    ASSERT_TRUE(RemoveTree(dir_ + "/table").ok());
  }
}

TEST_F(HalfAnswerTest, AHalfWrittenAnswerIsNone) {
  Make(0);
  std::fstream file(dir_ + "/table", std::ios::in | std::ios::out | std::ios::binary);
  std::string bytes(4096, '\0');
  file.read(bytes.data(), 4096);
  const size_t at = bytes.find("key-2");
  ASSERT_NE(at, std::string::npos);
  file.seekp(static_cast<std::streamoff>(at));
  file.put('K');
  file.close();
  auto table = LeaseTable::Open(dir_ + "/table", 1).value();
  EXPECT_EQ(table->last_key(), "key-1");
  EXPECT_EQ(table->last_batch(), 1u);
}

TEST_F(HalfAnswerTest, ADamagedRecordIsSeen) {
  Make(2);
  std::fstream file(dir_ + "/table", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(4096 + 30);
  file.put('x');
  file.close();
  EXPECT_EQ(LeaseTable::Open(dir_ + "/table", 1).status().code(), Code::kDataLoss);
}

TEST_F(KillTest, ASpoolOfAnotherFormIsSeen) {
  ASSERT_TRUE(WriteFileAtomic(dir_ + "/outputs", "the spool of another version").ok());
  EXPECT_EQ(OutputSpool::Open(dir_ + "/outputs").status().code(), Code::kDataLoss);
  ASSERT_TRUE(WriteFileAtomic(dir_ + "/outputs", "LYOUT").ok());  // its maker died here
  EXPECT_TRUE(OutputSpool::Open(dir_ + "/outputs").ok());
  EXPECT_TRUE(OutputSpool::Open(dir_ + "/outputs").ok());
}

TEST_F(KillTest, AHalfNoteIsNoNote) {
  TaskExit exit;
  exit.set_exit_code(3);
  const std::string path = dir_ + "/exit.pb";
  EXPECT_EQ(ReadNote(path, &exit).code(), Code::kNotFound);
  for (const bool empty : {true, false}) {  // "exit code 0" is a message without fields
    ASSERT_TRUE(WriteNote(path, empty ? TaskExit() : exit, true).ok());
    TaskExit read;
    read.set_exit_code(9);
    ASSERT_TRUE(ReadNote(path, &read).ok());
    EXPECT_EQ(read.exit_code(), empty ? 0 : 3);
  }
  const std::string whole = ReadFile(path).value();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    ASSERT_TRUE(WriteFileAtomic(path, whole.substr(0, bytes)).ok());
    EXPECT_EQ(ReadNote(path, &exit).code(), Code::kDataLoss) << bytes;
  }
}

Output Large(const std::string& id, size_t bytes) {
  Output output;
  output.set_input_id(id);
  output.set_result(std::string(bytes, 'r'));
  return output;
}

TEST(LinkLimits, OutputsAreCutByTheirBytes) {
  std::vector<Output> outputs;
  for (int i = 0; i < 100; ++i) outputs.push_back(Large("in-" + std::to_string(i), 1'400'000));
  outputs.push_back(Large("alone", size_t{9} << 20));
  outputs.push_back(Large("last", 1));
  std::vector<const Output*> all;
  for (const Output& output : outputs) all.push_back(&output);
  std::vector<std::string> ids;
  SendInParts(all, [&](const FromWorker& message) {
    if (message.outputs().outputs_size() > 1) {
      EXPECT_LE(message.ByteSizeLong(), kOutputsBytes + 1024);
    }
    for (const Output& output : message.outputs().outputs()) ids.push_back(output.input_id());
  });
  ASSERT_EQ(ids.size(), outputs.size());
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], outputs[i].input_id());
}

TEST(LinkLimits, HoldingsComeInPages) {
  EXPECT_EQ(PagesOf({}, {}).size(), 1u);
  EXPECT_TRUE(PagesOf({}, {})[0].last());
  std::vector<RunningTask> tasks(3);
  for (int t = 0; t < 3; ++t) {
    tasks[static_cast<size_t>(t)].set_task_id("ta-" + std::to_string(t));
    tasks[static_cast<size_t>(t)].set_stopping(t == 1);
    for (int i = 0; i < 20; ++i)
      tasks[static_cast<size_t>(t)].add_held()->set_input_id("in-" + std::to_string(t) + "-" +
                                                             std::to_string(i));
  }
  const std::vector<Holdings> pages = PagesOf(tasks, {"bu-1", "bu-2"}, 100);
  EXPECT_GT(pages.size(), 3u);
  std::vector<RunningTask> joined;
  int builds = 0;
  for (const Holdings& page : pages) {
    EXPECT_LE(page.ByteSizeLong(), 200u);
    EXPECT_EQ(page.last(), &page == &pages.back());
    builds += page.builds_size();
    for (const RunningTask& task : page.tasks()) {
      if (joined.empty() || joined.back().task_id() != task.task_id()) {
        joined.push_back(task);
      } else {
        joined.back().mutable_held()->MergeFrom(task.held());
      }
    }
  }
  EXPECT_EQ(builds, 2);
  ASSERT_EQ(joined.size(), 3u);
  for (size_t t = 0; t < 3; ++t) EXPECT_EQ(joined[t].SerializeAsString(), tasks[t].SerializeAsString());
}

}  // namespace
}  // namespace lydian::worker
