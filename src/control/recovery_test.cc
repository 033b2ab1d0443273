// The engine killed and started again, workers that break off and come back.
#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class RecoveryTest : public EngineTest {
 protected:
  // A ready task with an input in hand.
  Lease RunOne(FakeWorker* worker, std::string* call, std::string* task_id) {
    *call = Map("x");
    auto task = worker->WaitStart();
    EXPECT_TRUE(task);
    *task_id = task->task_id();
    worker->Ready(*task_id);
    auto lease = worker->WaitLease();
    EXPECT_TRUE(lease);
    return *lease;
  }
  static FakeHello Holding(const std::string& task_id, std::vector<Lease> held, uint64_t epoch = 1) {
    FakeHello hello = Hello(epoch);
    RunningTask* running = hello.add_tasks();
    running->set_task_id(task_id);
    running->set_function_id("fu-1");
    running->set_app_id("ap-1");
    for (const Lease& lease : held) {
      LeaseRef* ref = running->add_held();
      ref->set_input_id(lease.input_id());
      ref->set_attempt(lease.attempt());
      ref->set_epoch(lease.epoch());
    }
    return hello;
  }
};

TEST_F(RecoveryTest, FinishedOutputsAndQueuedInputsSurvive) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  Lease lease = RunOne(worker, &call, &task);
  worker->Succeed(lease, "done");
  ASSERT_TRUE(worker->WaitAck(lease.input_id()));
  std::string queued = Map("later");
  Restart();
  EXPECT_EQ(*Poll(call)->outputs[0].result, "done");
  worker = Connect();  // nothing runs there any more
  auto next = worker->WaitStart();
  ASSERT_TRUE(next);
  worker->Ready(next->task_id());
  auto again = worker->WaitLease();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->input(), "later");
  worker->Succeed(*again, "ok");
  EXPECT_EQ(*Poll(queued)->outputs[0].result, "ok");
}

TEST_F(RecoveryTest, ARunningInputIsTakenUpAndNotRunAgain) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  Lease lease = RunOne(worker, &call, &task);
  Restart();
  worker = Connect(Holding(task, {lease}));
  EXPECT_FALSE(worker->WaitLease(100ms));
  worker->Succeed(lease, "from before");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "from before");
  EXPECT_FALSE(worker->WaitStart(100ms));
  EXPECT_FALSE(worker->WaitForget(0ms));
  // The container goes on with new work.
  std::string next = Map("y");
  auto more = worker->WaitLease();
  ASSERT_TRUE(more);
  EXPECT_EQ(more->task_id(), task);
  EXPECT_TRUE(engine_->IdentityOfTask(task)->restricted);
}

TEST_F(RecoveryTest, AMapGoesOnWithItsCursor) {
  Begin();
  auto worker = Connect();
  NewCall map = CallOf("");
  map.call_type = kCallMap;
  map.inputs = {{0, "a", ""}, {1, "b", ""}};
  std::string call = Create(map)->call_id;
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  worker->Succeed(*lease, "ra");
  OutputsQuery query = QueryOf(call);
  query.start_idx.reset();
  query.end_idx.reset();
  auto page = Outputs(query);
  ASSERT_EQ(page->outputs.size(), 1u);
  query.last_entry_id = page->last_entry_id;
  Restart();
  ASSERT_TRUE(Put(call, {{0, "a", ""}, {2, "c", ""}}).ok());  // one of them again
  worker = Connect();
  worker->Serve([](const Lease& in) { return "r" + in.input(); });
  std::set<uint32_t> seen = {0};
  while (seen.size() < 3) {
    page = Outputs(query);
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_FALSE(page->outputs.empty());
    for (const OutputView& output : page->outputs) EXPECT_TRUE(seen.insert(output.idx).second);
    query.last_entry_id = page->last_entry_id;
  }
  worker->StopServing();
}

TEST_F(RecoveryTest, AttemptsAreRemembered) {
  FunctionInfo info = Function();
  info.retry = {1, 1.0, 1, 1};
  Begin(info);
  auto worker = Connect();
  std::string call, task;
  Lease lease = RunOne(worker, &call, &task);
  worker->Fail(lease, "first");
  ASSERT_TRUE(worker->WaitAck(lease.input_id()));
  Restart();
  worker = Connect();
  auto next = worker->WaitStart();
  worker->Ready(next->task_id());
  auto again = worker->WaitLease();
  EXPECT_EQ(again->attempt(), 1u);
  worker->Fail(*again, "second");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "second");
}

TEST_F(RecoveryTest, AWorkerThatComesBackInTimeKeepsItsTasks) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  Lease lease = RunOne(worker, &call, &task);
  worker->Drop();
  std::this_thread::sleep_for(50ms);
  auto back = Connect(Holding(task, {lease}, 2));  // restarted: another epoch, the container adopted
  back->Succeed(lease, "ok");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "ok");
  EXPECT_FALSE(back->WaitStart(50ms));
}

TEST_F(RecoveryTest, AWorkerThatDoesNotComeBackLosesThemWithoutAnAttempt) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  RunOne(worker, &call, &task);
  worker->Drop();
  std::this_thread::sleep_for(500ms);
  auto back = Connect(Holding(task, {}));
  auto forget = back->WaitForget();
  ASSERT_TRUE(forget);
  ASSERT_EQ(forget->task_ids_size(), 1);
  EXPECT_EQ(forget->task_ids(0), task);
  auto next = back->WaitStart();
  ASSERT_TRUE(next);
  back->Ready(next->task_id());
  auto lease = back->WaitLease();
  EXPECT_EQ(lease->attempt(), 0u);
  back->Succeed(*lease, "ok");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "ok");
}

TEST_F(RecoveryTest, LeasesThatAReturnedWorkerDoesNotHoldRunAgain) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  RunOne(worker, &call, &task);
  worker->Drop();
  auto back = Connect(Holding(task, {}));  // its container never got it
  auto lease = back->WaitLease();
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->task_id(), task);
  back->Succeed(*lease, "ok");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "ok");
}

TEST_F(RecoveryTest, ATaskThatEndedMeanwhileIsToldByItsExit) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  RunOne(worker, &call, &task);
  worker->Drop();
  auto back = Connect();
  TaskExit exit;
  exit.set_signal(11);
  exit.set_text("killed by signal 11 (SIGSEGV)");
  back->Exit(task, exit);
  EXPECT_EQ(Poll(call)->outputs[0].text, "Function f: container killed by signal 11 (SIGSEGV)");
}

TEST_F(RecoveryTest, AStoppedAppStaysStopped) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  RunOne(worker, &call, &task);
  engine_->StopApp("ap-1", "stop", 1000, nullptr);
  ASSERT_TRUE(worker->WaitStop());
  Restart();
  std::promise<void> done;
  engine_->StopApp("ap-1", "stop", 1000, [&] { done.set_value(); });
  worker = Connect(Holding(task, {}));
  EXPECT_TRUE(worker->WaitStop());
  TaskExit exit;
  exit.set_stopped_by_us(true);
  worker->Exit(task, exit);
  EXPECT_EQ(done.get_future().wait_for(3s), std::future_status::ready);
  EXPECT_EQ(Poll(call)->outputs[0].status, static_cast<int>(ResultStatus::kTerminated));
}

TEST_F(RecoveryTest, LogsGoOnWhereTheyWereStored) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  RunOne(worker, &call, &task);
  FromWorker message;
  LogBatch* batch = message.mutable_log();
  batch->set_task_id(task);
  batch->set_stdout_offset(6);
  LogEntry* entry = batch->add_entries();
  entry->set_file_descriptor(1);
  entry->set_data("hello\n");
  worker->Deliver(message);
  auto ack = worker->WaitLogAck();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->stdout_offset(), 6u);
  Restart();
  worker = Connect(Holding(task, {}));
  ack = worker->WaitLogAck();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->stdout_offset(), 6u);
  worker->Deliver(message);  // sent again all the same
  batch->set_stdout_offset(12);
  entry->set_data("world\n");
  worker->Deliver(message);
  std::string text;
  uint64_t after = 0;
  while (text.find("world") == std::string::npos) {
    std::promise<LogStore::Page> promise;
    auto asked = logs_->Read("ap-1", after, {}, 100, 3000,
                             [&](Result<LogStore::Page> page) { promise.set_value(std::move(*page)); });
    LogStore::Page page = promise.get_future().get();
    ASSERT_FALSE(page.records.empty());
    for (const LogRecord& record : page.records) {
      text += record.data;
      after = record.seq;
    }
  }
  EXPECT_EQ(text, "hello\nworld\n");
}

TEST_F(RecoveryTest, GeneratorDataSurvives) {
  FunctionInfo info = Function();
  info.generator = true;
  Begin(info);
  auto worker = Connect();
  std::string call, task;
  RunOne(worker, &call, &task);
  ASSERT_TRUE(PutChunks(call, task, {{1, "one"}}).ok());
  Restart();
  std::promise<Result<DataChunks>> got;
  auto asked = engine_->NextChunks(Scope(), call, 0,
                                   [&](Result<DataChunks> chunks) { got.set_value(std::move(chunks)); });
  EXPECT_EQ(*got.get_future().get()->chunks[0].second, "one");
}

TEST_F(RecoveryTest, ACancelledCallIsNotBegunAgain) {
  Begin();
  auto worker = Connect();
  std::string call, task;
  RunOne(worker, &call, &task);
  ASSERT_TRUE(Cancel(call).ok());
  ASSERT_TRUE(worker->WaitCancel());
  Restart();
  Connect();
  EXPECT_EQ(Poll(call)->outputs[0].status, static_cast<int>(ResultStatus::kTerminated));
}

}  // namespace
}  // namespace lydian::control
