#include "control/journal.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "control/journal_schema.h"

namespace lydian::control {
namespace {

class JournalTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(MakeDirs(dir_).ok()); }
  void TearDown() override {
    journal_.reset();
    strand_.Stop();
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }
  void Open() {
    auto journal = Journal::Open(dir_ + "/calls.db", [this](Task task) { strand_.Post(std::move(task)); });
    ASSERT_TRUE(journal.ok()) << journal.status();
    journal_ = std::move(journal).value();
  }
  Status Write(Journal::Record record) {
    std::promise<Status> promise;
    record.done = [&](Status status) { promise.set_value(status); };
    journal_->Append(std::move(record));
    return promise.get_future().get();
  }
  // What Load finds, in lists.
  struct Found {
    Status status;
    std::vector<std::string> apps, damaged;
    std::vector<FunctionInfo> functions;
    std::vector<CallRow> calls, resting;
    std::vector<uint32_t> dropping;
    std::vector<std::pair<uint32_t, OutputKey>> outputs;
    std::vector<InputKey> keys;  // of the inputs
    std::vector<InputRow> inputs;
    std::vector<std::pair<uint32_t, ChunkKey>> chunks;
    std::vector<TaskRow> tasks;
    uint32_t last_call = 0;
  };
  Found Load(double resting_since = 0) {
    Found found;
    JournalVisitor visitor;
    visitor.app = [&](const std::string& id, const std::string&) { found.apps.push_back(id); };
    visitor.function = [&](FunctionInfo info) { found.functions.push_back(std::move(info)); };
    visitor.damaged_function = [&](const std::string& id) { found.damaged.push_back(id); };
    visitor.last_call = [&](uint32_t number) { found.last_call = number; };
    visitor.dropping = [&](uint32_t number) { found.dropping.push_back(number); };
    visitor.call = [&](StoredCall call) {
      const uint32_t number = call.row.number;
      for (const OutputKey& key : call.outputs) found.outputs.emplace_back(number, key);
      for (const ChunkKey& key : call.chunks) found.chunks.emplace_back(number, key);
      found.keys.insert(found.keys.end(), call.inputs.begin(), call.inputs.end());
      found.calls.push_back(std::move(call.row));
    };
    visitor.resting = [&](CallRow row) { found.resting.push_back(std::move(row)); };
    visitor.task = [&](TaskRow row) { found.tasks.push_back(std::move(row)); };
    found.status = journal_->Load(visitor, resting_since);
    found.inputs = journal_->Inputs(found.keys).value();
    return found;
  }
  Status Finish(uint32_t call, uint32_t seq, const std::string& result) {
    OutputRow output;
    output.call = call, output.seq = seq, output.idx = seq - 1;
    output.input_id = "in-" + std::to_string(seq - 1), output.status = 1, output.data_format = 4;
    output.result = Bytes(result);
    return Write(Journal::Finish({output}));
  }
  // All of them, and how many records it took.
  int Drop(std::vector<uint32_t> calls) {
    int records = 0;
    while (!calls.empty()) {
      auto left = std::make_shared<std::vector<uint32_t>>();
      EXPECT_TRUE(Write(Journal::DropCalls(calls, left)).ok());
      calls = *left;
      ++records;
    }
    return records;
  }
  static SharedBytes Bytes(const std::string& text) { return std::make_shared<const std::string>(text); }
  static CallRow Call(uint32_t number) {
    CallRow row;
    row.number = number;
    row.call_id = "fc-" + std::to_string(number);
    row.function_id = "fu-1";
    row.call_type = kMap;
    row.invocation_type = 4;
    row.created_at = 12.5;
    row.idempotency_key = "tk/k";
    return row;
  }
  static constexpr int kMap = 2;

  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-journal-" + RandomHex(6));
  Strand strand_{"test"};
  std::unique_ptr<Journal> journal_;
};

TEST_F(JournalTest, KeepsWhatWasWritten) {
  Open();
  std::string binary("\0\x01\xff", 3);
  ASSERT_TRUE(Write(Journal::PutCall(
                        Call(7), {{7, 0, 0, "in-0", "m", Bytes(binary)}, {7, 5, 0, "in-5", "", Bytes("")}}))
                  .ok());
  ASSERT_TRUE(Write(Journal::SetAttempt(7, 5, 2)).ok());
  ASSERT_TRUE(Finish(7, 1, binary).ok());
  ASSERT_TRUE(Write(Journal::PutChunks({{7, 1, Bytes("one")}})).ok());
  ASSERT_TRUE(Write(Journal::PutChunks({{7, 1, Bytes("uno")}})).ok());
  ASSERT_TRUE(Write(Journal::SetCancelled(7)).ok());
  FunctionInfo function;
  function.function_id = "fu-1", function.app_id = "ap-1", function.name = "f";
  function.retry = {3, 2.0, 500, 1000};
  function.limits.set_memory_limit_bytes(77);
  ASSERT_TRUE(Write(Journal::PutFunction(function)).ok());
  ASSERT_TRUE(Write(Journal::PutApp("ap-1", "active")).ok());
  TaskRow task;
  task.task_id = "ta-1", task.state = "ready", task.restricted = task.builder = true;
  task.stop_mode = StopTask::KILL;
  ASSERT_TRUE(Write(Journal::PutTask(task)).ok());
  journal_.reset();
  Open();
  const Found found = Load();
  ASSERT_TRUE(found.status.ok()) << found.status;
  ASSERT_EQ(found.calls.size(), 1u);
  EXPECT_EQ(found.last_call, 7u);
  EXPECT_EQ(found.calls[0].call_id, "fc-7");
  EXPECT_EQ(found.calls[0].idempotency_key, "tk/k");
  EXPECT_TRUE(found.calls[0].cancelled);
  ASSERT_EQ(found.inputs.size(), 1u);
  EXPECT_EQ(found.inputs[0].idx, 5u);
  EXPECT_EQ(found.inputs[0].attempt, 2u);
  EXPECT_EQ(found.keys[0].bytes, 0u);
  ASSERT_EQ(found.outputs.size(), 1u);
  EXPECT_EQ(found.outputs[0].first, 7u);
  EXPECT_EQ(found.outputs[0].second.seq, 1u);
  EXPECT_EQ(found.outputs[0].second.status, 1);
  auto outputs = journal_->Outputs(7, {1}, 1000);
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  EXPECT_EQ(*outputs->at(0).result, binary);
  EXPECT_EQ(journal_->Outputs(7, {1, 2}, 1000).status().code(), Code::kNotFound);
  ASSERT_EQ(found.chunks.size(), 1u);
  EXPECT_EQ(found.chunks[0].second.bytes, 3u);
  EXPECT_EQ(*journal_->Chunks(7, 1, 1000)->at(0).chunk, "uno");
  ASSERT_EQ(found.functions.size(), 1u);
  EXPECT_EQ(found.functions[0].retry.retries, 3u);
  EXPECT_EQ(found.functions[0].limits.memory_limit_bytes(), 77u);
  ASSERT_EQ(found.tasks.size(), 1u);
  EXPECT_TRUE(found.tasks[0].restricted);
  EXPECT_TRUE(found.tasks[0].builder);
  EXPECT_EQ(found.tasks[0].stop_mode, StopTask::KILL);
  EXPECT_EQ(found.apps.size(), 1u);
}

TEST_F(JournalTest, DroppingACallTakesAllOfItAndNothingElse) {
  Open();
  ASSERT_TRUE(Write(Journal::PutCall(Call(1), {{1, 0, 0, "in-a", "", Bytes("x")}})).ok());
  ASSERT_TRUE(Write(Journal::PutCall(Call(2), {{2, 0, 0, "in-b", "", Bytes("x")}})).ok());
  ASSERT_TRUE(Write(Journal::PutChunks({{1, 1, Bytes("c")}, {2, 1, Bytes("c")}})).ok());
  EXPECT_EQ(Drop({1}), 1);
  const Found found = Load();
  ASSERT_EQ(found.calls.size(), 1u);
  EXPECT_EQ(found.inputs[0].input_id, "in-b");
  EXPECT_EQ(found.chunks.size(), 1u);
}

// A call that rests costs a start nothing, and is found by its number with all that it has.
TEST_F(JournalTest, WhatRestsIsNotLoaded) {
  Open();
  for (const uint32_t number : {1U, 2U}) {
    ASSERT_TRUE(Write(Journal::PutCall(Call(number), {})).ok());
    ASSERT_TRUE(Finish(number, 1, "one").ok());
    ASSERT_TRUE(Finish(number, 2, "two").ok());
  }
  ASSERT_TRUE(Write(Journal::PutChunks({{1, 1, Bytes("chunk")}})).ok());
  ASSERT_TRUE(Write(Journal::Rest(1, 1000)).ok());
  journal_.reset();
  Open();
  EXPECT_EQ(Load(1001).resting.size(), 0u) << "too old for its key to count";
  const Found found = Load(1000);
  EXPECT_EQ(found.resting.size(), 1u);
  ASSERT_EQ(found.calls.size(), 1u);
  EXPECT_EQ(found.calls[0].number, 2u);
  EXPECT_EQ(found.outputs.size(), 2u);
  EXPECT_EQ(found.chunks.size(), 0u);
  auto stored = journal_->FindCall(1);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->row.call_id, "fc-1");
  EXPECT_EQ(stored->outputs.size(), 2u);
  EXPECT_EQ(stored->chunks.size(), 1u);
  EXPECT_EQ(journal_->FindCall(3).status().code(), Code::kNotFound);
  ASSERT_TRUE(Write(Journal::Rest(1, 0)).ok());
  EXPECT_EQ(Load().calls.size(), 2u) << "it is taken up again";

  ASSERT_TRUE(Write(Journal::Rest(1, 1000)).ok());
  EXPECT_EQ(journal_->OldCalls(1000, 1000, 1000, 10)->size(), 0u);
  EXPECT_EQ(journal_->OldCalls(1000, 1001, 1000, 10)->size(), 0u) << "its app lives";
  EXPECT_EQ(journal_->OldCalls(1001, 1001, 1000, 10)->size(), 1u);
  ASSERT_TRUE(Write(Journal::PutApp("", "stopped")).ok());
  EXPECT_EQ(journal_->OldCalls(1000, 1001, 1000, 10)->size(), 1u);
}

// No transaction that grows with a call. Between two slices it is neither loaded nor found, and the next
// start goes on with it.
TEST_F(JournalTest, ALargeCallIsDroppedInSlices) {
  Open();
  std::vector<InputRow> inputs;
  for (uint32_t idx = 0; idx < 9000; ++idx) inputs.push_back({1, idx, 0, "in", "", Bytes("x")});
  ASSERT_TRUE(Write(Journal::PutCall(Call(1), std::move(inputs))).ok());
  ASSERT_TRUE(Write(Journal::PutCall(Call(2), {{2, 0, 0, "in-b", "", Bytes("x")}})).ok());
  auto left = std::make_shared<std::vector<uint32_t>>();
  ASSERT_TRUE(Write(Journal::DropCalls({1}, left)).ok());
  EXPECT_EQ(*left, std::vector<uint32_t>{1});
  EXPECT_EQ(journal_->FindCall(1).status().code(), Code::kNotFound);
  journal_.reset();
  Open();
  Found found = Load();
  EXPECT_EQ(found.dropping, std::vector<uint32_t>{1});
  ASSERT_EQ(found.calls.size(), 1u);
  EXPECT_GE(Drop(found.dropping), 2);
  found = Load();
  EXPECT_EQ(found.dropping.size(), 0u);
  EXPECT_EQ(found.inputs.size(), 1u);
}

TEST_F(JournalTest, CallbacksComeInOrder) {
  Open();
  std::vector<int> order;
  std::promise<void> last;
  for (int i = 0; i < 200; ++i) {
    Journal::Record record = Journal::PutApp("ap-" + std::to_string(i), "active");
    record.durable = i % 10 == 0;
    record.done = [&, i](Status status) {
      EXPECT_TRUE(status.ok());
      order.push_back(i);
      if (i == 199) last.set_value();
    };
    journal_->Append(std::move(record));
  }
  last.get_future().wait();
  for (int i = 0; i < 200; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

// A disk that is full for a while. What may be refused is; what must be kept is kept, in order, and written
// once there is room.
TEST_F(JournalTest, AFullDiskRefusesNewWorkAndLosesNoOutput) {
  Open();
  std::atomic<bool> full{true};
  std::vector<std::string> written;
  auto record = [&](const std::string& name, bool must) {
    Journal::Record made;
    made.must = must;
    made.apply = [&, name](store::Session&) -> Status {
      if (full) return ResourceExhausted("no space left on /disk");
      written.push_back(name);
      return {};
    };
    return made;
  };
  std::promise<Status> first, second;
  Journal::Record output = record("output 1", true);
  output.done = [&](Status status) { first.set_value(status); };
  journal_->Append(std::move(output));
  Status refused = Write(record("new call", false));
  EXPECT_EQ(refused.code(), Code::kResourceExhausted);
  EXPECT_NE(refused.message().find("no space left"), std::string::npos);
  output = record("output 2", true);
  output.done = [&](Status status) { second.set_value(status); };
  journal_->Append(std::move(output));
  auto acked = first.get_future();
  EXPECT_EQ(acked.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  full = false;
  EXPECT_TRUE(acked.get().ok());
  EXPECT_TRUE(second.get_future().get().ok());
  EXPECT_EQ(written, (std::vector<std::string>{"output 1", "output 2"}));
  EXPECT_TRUE(Write(record("new call", false)).ok());
}

TEST_F(JournalTest, OneBadRecordDoesNotTakeTheOthersAlong) {
  Open();
  Journal::Record bad;
  bad.apply = [](store::Session& session) { return session.Execute("INSERT INTO nowhere VALUES (1)"); };
  std::promise<Status> good, failed;
  Journal::Record first = Journal::PutApp("ap-1", "active");
  first.done = [&](Status status) { good.set_value(status); };
  bad.done = [&](Status status) { failed.set_value(status); };
  journal_->Append(std::move(first));
  journal_->Append(std::move(bad));
  EXPECT_TRUE(good.get_future().get().ok());
  EXPECT_FALSE(failed.get_future().get().ok());
  EXPECT_EQ(Load().apps.size(), 1u);
}

// A message of the client with a string in `field`, and other fields around it.
std::string Naming(int field, const std::string& id) {
  std::string text("\x08\x01", 2);  // field 1, a number
  text += static_cast<char>(field << 3 | 2);
  text += static_cast<char>(id.size());
  return text + id + std::string("\x7a\x02hi", 4);  // field 15, a string
}

TEST_F(JournalTest, KnowsTheBlobsThatCallsName) {
  Open();
  const std::vector<std::string> all = {"bl-in", "bl-out", "bl-chunk", "bl-other"};
  auto used = [&] { return journal_->BlobsInUse(all).value(); };
  ASSERT_TRUE(Write(Journal::PutCall(Call(7), {{7, 0, 0, "in-0", "", Bytes(Naming(7, "bl-in"))},
                                               {7, 1, 0, "in-1", "", Bytes("no message \xff")}}))
                  .ok());
  EXPECT_EQ(used(), std::set<std::string>{"bl-in"});
  ASSERT_TRUE(Write(Journal::PutChunks({{7, 1, Bytes(Naming(3, "bl-chunk"))}})).ok());
  OutputRow output;
  output.call = 7, output.seq = 1, output.idx = 0;
  output.result = Bytes(Naming(10, "bl-out"));
  ASSERT_TRUE(Write(Journal::Finish({output})).ok());
  EXPECT_EQ(used(), (std::set<std::string>{"bl-out", "bl-chunk"}));  // the input has ended
  journal_.reset();
  Open();
  EXPECT_EQ(used().size(), 2u);
  ASSERT_TRUE(Write(Journal::DropCalls({7}, std::make_shared<std::vector<uint32_t>>())).ok());
  EXPECT_TRUE(used().empty());
}

TEST_F(JournalTest, ReadsTheBlobsOfOlderRows) {
  {
    std::vector<store::Migration> old = JournalMigrations();
    old.resize(1);
    auto db = store::Database::Open(dir_ + "/calls.db", old).value();
    const std::string payload = Naming(7, "bl-old"), result = Naming(10, "bl-result");
    ASSERT_TRUE(
        db->Execute("INSERT INTO input (id, input_id, method, attempt, payload) VALUES (1, 'in', '', 0, ?)",
                    {store::Blob{payload}})
            .ok());
    ASSERT_TRUE(
        db->Execute("INSERT INTO output (id, idx, input_id, task_id, status, data_format, result, text, "
                    "started_at, created_at) VALUES (1, 0, '', '', 1, 0, ?, '', 0, 0)",
                    {store::Blob{result}})
            .ok());
    ASSERT_TRUE(
        db->Execute("INSERT INTO output (id, idx, input_id, task_id, status, data_format, text, started_at, "
                    "created_at) VALUES (2, 0, '', '', 1, 0, '', 0, 0)")
            .ok());
  }
  Open();
  EXPECT_EQ(journal_->BlobsInUse({"bl-old", "bl-result", "bl-none"}).value(),
            (std::set<std::string>{"bl-old", "bl-result"}));
}

}  // namespace
}  // namespace lydian::control
