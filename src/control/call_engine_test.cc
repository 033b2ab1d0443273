#include "control/call_engine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class CallEngineTest : public EngineTest {};

TEST_F(CallEngineTest, ACallRunsAndItsOutputIsDelivered) {
  Begin();
  auto worker = Connect();
  std::string call = Map("hello");
  auto task = worker->WaitStart();
  ASSERT_TRUE(task);
  EXPECT_EQ(task->function_id(), "fu-1");
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->input(), "hello");
  EXPECT_EQ(lease->attempt(), 0u);
  EXPECT_EQ(lease->function_call_id(), call);
  worker->Succeed(*lease, "world");
  auto page = Poll(call);
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(*page->outputs[0].result, "world");
  EXPECT_EQ(page->unfinished, 0);
  EXPECT_TRUE(worker->WaitAck(lease->input_id()));
}

TEST_F(CallEngineTest, UnknownAndForeignIdsAreNotFound) {
  Begin();
  NewCall call = CallOf("x");
  call.function_id = "fu-none";
  EXPECT_EQ(Create(call).status().code(), Code::kNotFound);
  call = CallOf("x");
  call.scope.workspace_id = "ac-other";
  EXPECT_EQ(Create(call).status().code(), Code::kNotFound);
  std::string id = Map("x");
  OutputsQuery query;
  query.scope.workspace_id = "ac-other";
  query.call_id = id;
  EXPECT_EQ(Outputs(query).status().code(), Code::kNotFound);
}

TEST_F(CallEngineTest, ARepeatedCreateIsOneCall) {
  Begin();
  NewCall call = CallOf("x");
  call.idempotency_key = "tk-1/k";
  auto first = Create(call), second = Create(call);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->call_id, second->call_id);
  EXPECT_EQ(first->inputs[0].input_id, second->inputs[0].input_id);
  Restart();
  auto third = Create(call);
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(first->call_id, third->call_id);
  call.idempotency_key = "tk-2/k";
  EXPECT_NE(Create(call)->call_id, first->call_id);
}

TEST_F(CallEngineTest, AMapDeliversEveryOutputOnce) {
  Begin();
  auto worker = Connect();
  NewCall map = CallOf("");
  map.call_type = kCallMap;
  map.inputs.clear();
  std::string call = Create(map)->call_id;
  std::thread put([&] {
    for (uint32_t i = 0; i < 200; i += 40) {
      std::vector<NewInput> inputs;
      for (uint32_t k = i; k < i + 40; ++k) inputs.push_back({k, std::to_string(k), ""});
      ASSERT_TRUE(Put(call, inputs).ok());
      auto again = Put(call, inputs);  // a client that did not get the answer
      ASSERT_TRUE(again.ok());
      EXPECT_EQ(again->size(), 40u);
    }
  });
  worker->Serve([](const Lease& lease) { return "r" + lease.input(); });
  std::map<uint32_t, std::string> seen;
  std::string cursor = "0-0";
  int polls = 0;
  while (seen.size() < 200 && polls < 200) {
    OutputsQuery query = QueryOf(call);
    query.start_idx.reset();
    query.end_idx.reset();
    query.last_entry_id = cursor;
    auto page = Outputs(query);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const OutputView& output : page->outputs)
      EXPECT_TRUE(seen.emplace(output.idx, *output.result).second);
    cursor = page->last_entry_id;
    ++polls;
  }
  put.join();
  ASSERT_EQ(seen.size(), 200u);
  EXPECT_EQ(seen[123], "r123");
  EXPECT_LT(polls, 100);  // gathered, not one by one
  OutputsQuery end = QueryOf(call);
  end.start_idx.reset();
  end.end_idx.reset();
  end.clear_on_success = true;
  end.timeout = Millis(0);
  EXPECT_TRUE(Outputs(end)->outputs.empty());
  worker->StopServing();
}

// As clients other than Python's ask: for one output of a unary call, whatever its index, to be cleared.
TEST_F(CallEngineTest, AUnaryCallsOutputIsDeliveredBeforeItIsCleared) {
  Begin();
  auto worker = Connect();
  std::string call = Create(CallOf("x"))->call_id;
  auto task = worker->WaitStart();
  ASSERT_TRUE(task);
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  OutputsQuery query = QueryOf(call);
  query.start_idx.reset();
  query.end_idx.reset();
  query.clear_on_success = true;
  query.max_values = 1;
  query.last_entry_id = "0-0";
  query.timeout = Millis(10'000);
  auto asked = std::async(std::launch::async, [&] { return Outputs(query); });
  worker->Succeed(*lease, "done");
  for (auto page : {asked.get(), Outputs(query)}) {  // the answer may have been lost on the way
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_EQ(page->outputs.size(), 1u);
    EXPECT_EQ(*page->outputs[0].result, "done");
  }
}

TEST_F(CallEngineTest, APollThatFindsNothingIsHeldAndThenEmpty) {
  Begin();
  std::string call = Map("x");
  OutputsQuery query = QueryOf(call);
  query.timeout = Millis(1000);
  auto before = std::chrono::steady_clock::now();
  auto page = Outputs(query);
  EXPECT_TRUE(page->outputs.empty());
  EXPECT_EQ(page->unfinished, 1);
  auto took = std::chrono::steady_clock::now() - before;
  EXPECT_GE(took, 900ms);
  EXPECT_LT(took, 1000ms);
}

TEST_F(CallEngineTest, RetriesCountAttemptsAndReportTheLastError) {
  FunctionInfo info = Function();
  info.retry = {2, 1.0, 1, 10};
  Begin(info);
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  for (uint32_t attempt = 0; attempt < 3; ++attempt) {
    auto lease = worker->WaitLease();
    ASSERT_TRUE(lease);
    EXPECT_EQ(lease->attempt(), attempt);
    worker->Fail(*lease, "error " + std::to_string(attempt));
  }
  auto page = Poll(call);
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(*page->outputs[0].result, "error 2");
  EXPECT_EQ(page->outputs[0].status, static_cast<int>(ResultStatus::kFailure));
}

TEST_F(CallEngineTest, ACrashNamesFunctionAndSignal) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  ASSERT_TRUE(worker->WaitLease());
  TaskExit exit;
  exit.set_signal(9);
  exit.set_text("killed by signal 9 (SIGKILL)");
  worker->Exit(task->task_id(), exit);
  auto page = Poll(call);
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(page->outputs[0].text, "Function f: container killed by signal 9 (SIGKILL)");
  // The next call works.
  std::string next = Map("y");
  task = worker->WaitStart();
  worker->Ready(task->task_id());
  worker->Succeed(*worker->WaitLease(), "ok");
  EXPECT_EQ(*Poll(next)->outputs[0].result, "ok");
}

TEST_F(CallEngineTest, ALostContainerCountsNoAttempt) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  ASSERT_TRUE(worker->WaitLease());
  TaskExit exit;
  exit.set_lost(true);
  exit.set_text("the spawner died");
  worker->Exit(task->task_id(), exit);
  task = worker->WaitStart();
  ASSERT_TRUE(task);
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->attempt(), 0u);
  worker->Succeed(*lease, "ok");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "ok");
}

TEST_F(CallEngineTest, OutputsOfAnotherAttemptOrTaskDoNotCount) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  Lease other = *lease;
  other.set_attempt(7);
  worker->Succeed(other, "wrong attempt");
  other = *lease;
  other.set_task_id("ta-OTHER");
  worker->Succeed(other, "wrong task");
  other = *lease;
  other.set_epoch(99);
  worker->Succeed(other, "wrong epoch");
  EXPECT_TRUE(worker->WaitAck(lease->input_id()));  // all are acknowledged, so that nobody sends for ever
  worker->Succeed(*lease, "right");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "right");
}

TEST_F(CallEngineTest, AnInitFailureEndsWhatIsQueued) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  TaskUpdate update;
  update.set_task_id(task->task_id());
  update.set_state(TaskUpdate::INIT_FAILED);
  update.set_result("no module named numpy");
  worker->Send(update);
  auto page = Poll(call);
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(*page->outputs[0].result, "no module named numpy");
  worker->Exit(task->task_id(), {});
  Map("y");
  EXPECT_TRUE(worker->WaitStart());
}

TEST_F(CallEngineTest, ContainersThatDieBeforeTheyAreReadyEndTheCall) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  for (int i = 0; i < 3; ++i) {
    auto task = worker->WaitStart();
    ASSERT_TRUE(task) << i;
    TaskExit exit;
    exit.set_exit_code(3);
    exit.set_text("exit code 3");
    worker->Exit(task->task_id(), exit);
  }
  auto page = Poll(call);
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(page->outputs[0].text, "Function f: container ended with exit code 3 before it was ready");
}

TEST_F(CallEngineTest, ATimeoutEndsTheInputAndItsContainer) {
  FunctionInfo info = Function();
  info.timeout_secs = 1;
  Begin(info);
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  ASSERT_TRUE(worker->WaitLease());
  auto page = Poll(call);
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(page->outputs[0].status, static_cast<int>(ResultStatus::kTimeout));
  EXPECT_NE(page->outputs[0].text.find("Function f: an input ran for longer than its timeout of 1 s"),
            std::string::npos);
  auto stop = worker->WaitStop();
  ASSERT_TRUE(stop);
  EXPECT_EQ(stop->mode(), StopTask::KILL);
}

TEST_F(CallEngineTest, CancellingEndsQueuedInputsAndAsksRunningOnes) {
  FunctionInfo info = Function();
  info.max_containers = 1;
  Begin(info);
  auto worker = Connect();
  std::string running = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  std::string queued = Map("y");
  EXPECT_TRUE(Cancel(queued).ok());
  EXPECT_EQ(Poll(queued)->outputs[0].status, static_cast<int>(ResultStatus::kTerminated));
  EXPECT_TRUE(Cancel(running).ok());
  auto cancel = worker->WaitCancel();
  ASSERT_TRUE(cancel);
  EXPECT_EQ(cancel->input_ids(0), lease->input_id());
  worker->Output(*lease, static_cast<int>(ResultStatus::kTerminated), "stopped");
  EXPECT_EQ(*Poll(running)->outputs[0].result, "stopped");
}

TEST_F(CallEngineTest, StoppingAnAppEndsEverythingAndTells) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  ASSERT_TRUE(worker->WaitLease());
  std::string queued = Map("y");
  auto second = worker->WaitStart();
  ASSERT_TRUE(second);
  std::promise<void> done;
  engine_->StopApp("ap-1", "the client went away", 1000, [&] { done.set_value(); });
  auto future = done.get_future();
  EXPECT_EQ(Poll(queued)->outputs[0].text, "the client went away");
  EXPECT_EQ(worker->WaitStop()->mode(), StopTask::GRACEFUL);
  ASSERT_TRUE(worker->WaitStop());
  EXPECT_EQ(future.wait_for(50ms), std::future_status::timeout);
  TaskExit exit;
  exit.set_stopped_by_us(true);
  worker->Exit(task->task_id(), exit);
  TaskUpdate refused;
  refused.set_task_id(second->task_id());
  refused.set_state(TaskUpdate::REFUSED);
  refused.set_error("it was stopped before it had started");
  worker->Send(refused);
  ASSERT_EQ(future.wait_for(5s), std::future_status::ready);
  EXPECT_EQ(Poll(call)->outputs[0].text, "the client went away");
  std::promise<std::string> lines;
  auto asked = logs_->Read("ap-1", 0, {}, 100, 0, [&](Result<LogStore::Page> page) {
    std::string text;
    for (const auto& record : page.ok() ? page->records : std::vector<LogRecord>()) text += record.data;
    lines.set_value(text);
  });
  // What was stopped as asked is no trouble to tell of.
  EXPECT_EQ(lines.get_future().get().find("can't be started"), std::string::npos);
  EXPECT_EQ(Create(CallOf("z")).status().code(), Code::kFailedPrecondition);
  std::promise<void> again;
  engine_->StopApp("ap-1", "", 0, [&] { again.set_value(); });
  EXPECT_EQ(again.get_future().wait_for(5s), std::future_status::ready);
}

TEST_F(CallEngineTest, AGracefulStopLetsInputsFinishAndTakesNoMore) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  StopTask(task->task_id(), /*graceful=*/true);
  auto stop = worker->WaitStop();
  ASSERT_TRUE(stop);
  EXPECT_EQ(stop->mode(), StopTask::DRAIN);
  std::string other = Map("y");  // for another container
  auto next = worker->WaitStart();
  ASSERT_TRUE(next);
  EXPECT_NE(next->task_id(), task->task_id());
  worker->Succeed(*lease, "ok");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "ok");
}

TEST_F(CallEngineTest, AGivenBackLeaseCountsNoAttempt) {
  Begin();
  auto worker = Connect();
  std::string call = Map("x");
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  StopTask(task->task_id());
  ASSERT_TRUE(worker->WaitStop());
  worker->GiveBack(*lease);
  auto next = worker->WaitStart();
  ASSERT_TRUE(next);
  worker->Ready(next->task_id());
  auto again = worker->WaitLease();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->task_id(), next->task_id());
  EXPECT_EQ(again->attempt(), 0u);
  worker->Succeed(*again, "ok");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "ok");
}

TEST_F(CallEngineTest, ShortInputsAreLeasedAheadAndAskedBackBehindALongOne) {
  FunctionInfo info = Function();
  info.max_containers = 1;
  Begin(info);
  auto worker = Connect();
  NewCall map = CallOf("");
  map.call_type = kCallMap;
  map.inputs.clear();
  std::string call = Create(map)->call_id;
  std::vector<NewInput> inputs;
  for (uint32_t i = 0; i < 100; ++i) inputs.push_back({i, "x", ""});
  ASSERT_TRUE(Put(call, inputs).ok());
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  auto first = worker->WaitLease();
  EXPECT_FALSE(worker->WaitLease(50ms));  // its speed is not known yet
  worker->Succeed(*first, "r");
  auto second = worker->WaitLease();
  ASSERT_TRUE(second);
  worker->Succeed(*second, "r");
  int ahead = 0;
  std::vector<Lease> behind;
  while (auto lease = worker->WaitLease(30ms)) {
    behind.push_back(*lease);
    if (++ahead > 60) break;
  }
  if (ahead > 1) {  // a slow machine may see them as long
    auto recall = worker->WaitRecall();
    ASSERT_TRUE(recall);
    EXPECT_EQ(recall->input_ids_size(), ahead - 1);
    std::promise<FunctionStats> stats;
    engine_->Stats(info.function_id, [&](FunctionStats got) { stats.set_value(got); });
    FunctionStats seen = stats.get_future().get();
    EXPECT_EQ(seen.running, 1U) << "what is leased ahead waits";
    EXPECT_EQ(seen.queued, 97U);
    EXPECT_EQ(seen.free, 0U);
    for (size_t i = 1; i < behind.size(); ++i) worker->GiveBack(behind[i]);
    EXPECT_FALSE(worker->WaitLease(50ms));  // not to the one that is stuck
  }
}

TEST_F(CallEngineTest, BatchesAreOfOneMethodAndStayOpenForMore) {
  FunctionInfo info = Function();
  info.batch_max_size = 4;
  info.slots = info.target_slots = 4;
  info.batch_linger_ms = 2000;
  info.max_containers = 1;
  Begin(info);
  auto worker = Connect();
  NewCall map = CallOf("");
  map.call_type = kCallMap;
  map.inputs.clear();
  std::string call = Create(map)->call_id;
  ASSERT_TRUE(Put(call, {{0, "a", "m"}, {1, "b", "m"}, {2, "c", "other"}, {3, "d", "m"}}).ok());
  auto task = worker->WaitStart();
  EXPECT_EQ(task->batch_max_size(), 4u);
  worker->Ready(task->task_id());
  std::vector<Lease> batch;
  for (int i = 0; i < 3; ++i) batch.push_back(*worker->WaitLease());
  EXPECT_EQ(batch[0].input() + batch[1].input() + batch[2].input(), "abd");
  EXPECT_FALSE(worker->WaitLease(50ms));
  ASSERT_TRUE(Put(call, {{4, "e", "m"}, {5, "f", "m"}}).ok());  // one more fits into the open one
  batch.push_back(*worker->WaitLease());
  EXPECT_EQ(batch.back().input(), "e");
  EXPECT_FALSE(worker->WaitLease(50ms));
  for (size_t i = 0; i + 1 < batch.size(); ++i) worker->Succeed(batch[i], "r");
  EXPECT_FALSE(worker->WaitLease(50ms));  // in work until the last of it
  worker->Succeed(batch.back(), "r");
  EXPECT_EQ(worker->WaitLease()->input(), "c");
}

TEST_F(CallEngineTest, ABusyDiskRefusesNothingThatWasPromised) {
  // The bound of what may be queued.
  EngineOptions options = Options();
  options.max_queued_inputs = 8;  // a function's share is a quarter
  Begin(Function(), options);
  Map("a");
  Map("b");
  EXPECT_EQ(Create(CallOf("c")).status().code(), Code::kResourceExhausted);
}

TEST_F(CallEngineTest, GeneratorDataFlowsInOrder) {
  FunctionInfo info = Function();
  info.generator = true;
  Begin(info);
  auto worker = Connect();
  NewCall generator = CallOf("x");
  generator.invocation_type = kSyncLegacy;
  std::string call = Create(generator)->call_id;
  auto task = worker->WaitStart();
  worker->Ready(task->task_id());
  ASSERT_TRUE(worker->WaitLease());
  std::promise<Result<DataChunks>> got;
  auto asked = engine_->NextChunks(Scope(), call, 0,
                                   [&](Result<DataChunks> chunks) { got.set_value(std::move(chunks)); });
  EXPECT_EQ(PutChunks(call, "ta-OTHER", {{1, "one"}}).code(), Code::kPermissionDenied);
  EXPECT_TRUE(PutChunks(call, task->task_id(), {{2, "two"}}).ok());
  EXPECT_TRUE(PutChunks(call, task->task_id(), {{1, "one"}}).ok());
  auto chunks = got.get_future().get();
  ASSERT_TRUE(chunks.ok());
  ASSERT_EQ(chunks->chunks.size(), 2u);
  EXPECT_EQ(*chunks->chunks[0].second, "one");
  EXPECT_EQ(PutChunks(call, task->task_id(), {{0, "zero"}}).code(), Code::kInvalidArgument);
}

TEST_F(CallEngineTest, ABuilderRunsOnceAndCommits) {
  Begin();
  auto worker = Connect();
  std::promise<BuilderOutcome> done;
  engine_->RunBuilder("fu-1", "input", [&](BuilderOutcome outcome) { done.set_value(std::move(outcome)); });
  auto task = worker->WaitStart();
  EXPECT_TRUE(task->commit_layer());
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  EXPECT_EQ(lease->input(), "input");
  worker->Succeed(*lease, "");
  worker->Exit(task->task_id(), {}, "la-1");
  BuilderOutcome outcome = done.get_future().get();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.layer_id, "la-1");
}

TEST_F(CallEngineTest, IdentityIsThatOfTheAliveTask) {
  Begin();
  auto worker = Connect();
  Map("x");
  auto task = worker->WaitStart();
  auto identity = engine_->IdentityOfTask(task->task_id());
  ASSERT_TRUE(identity);
  EXPECT_EQ(identity->workspace_id, "ac-1");
  EXPECT_EQ(identity->environment, "main");
  TaskExit exit;
  exit.set_lost(true);
  worker->Exit(task->task_id(), exit);
  worker->WaitStart();
  EXPECT_FALSE(engine_->IdentityOfTask(task->task_id()));
  std::promise<Result<TaskView>> ended;
  engine_->TaskById(task->task_id(), [&](Result<TaskView> view) { ended.set_value(std::move(view)); });
  auto view = ended.get_future().get();
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->state, "ended");
}

}  // namespace
}  // namespace lydian::control
