// Tasks that take no more, that end, that nobody knows any more: what becomes of their inputs.
#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class TaskEndsTest : public EngineTest {
 protected:
  TaskSpec StartOne(FakeWorker* worker) {
    auto task = worker->WaitStart();
    EXPECT_TRUE(task);
    return task ? *task : TaskSpec();
  }
  static TaskUpdate Update(const std::string& task_id, TaskUpdate::State state) {
    TaskUpdate update;
    update.set_task_id(task_id);
    update.set_state(state);
    return update;
  }
  static FakeHello Naming(const std::string& task_id, bool stopping = false) {
    FakeHello hello = Hello();
    RunningTask* running = hello.add_tasks();
    running->set_task_id(task_id);
    running->set_stopping(stopping);
    return hello;
  }
};

TEST_F(TaskEndsTest, AClosedTaskGetsNoMoreAndAnotherDoes) {
  FunctionInfo info = Function();
  info.slots = info.target_slots = 4;
  info.min_containers = info.max_containers = 2;
  Begin(info);
  auto worker = Connect();
  const std::string a = StartOne(worker).task_id(), b = StartOne(worker).task_id();
  worker->Ready(a);
  Map("one");
  auto one = worker->WaitLease();
  ASSERT_TRUE(one);
  ASSERT_EQ(one->task_id(), a);
  worker->Send(Update(a, TaskUpdate::CLOSED));
  worker->Ready(b);
  for (int i = 0; i < 3; ++i) {  // b has more in work than a, and is the one all the same
    Map("more");
    auto lease = worker->WaitLease();
    ASSERT_TRUE(lease);
    EXPECT_EQ(lease->task_id(), b);
  }
}

TEST_F(TaskEndsTest, AHelloSaysThatATaskTakesNoMore) {
  Begin();
  auto worker = Connect();
  Map("one");
  const std::string task = StartOne(worker).task_id();
  worker->Ready(task);
  auto one = worker->WaitLease();
  ASSERT_TRUE(one);
  worker = Connect(Naming(task, /*stopping=*/true));  // it doesn't hold the input
  EXPECT_TRUE(worker->WaitStart());                   // of a container that can take it
  EXPECT_FALSE(worker->WaitLease(50ms));
}

TEST_F(TaskEndsTest, WhatIsGivenBackUnaskedDoesNotGoRoundAndRound) {
  FunctionInfo info = Function();
  info.slots = info.target_slots = 4;
  info.min_containers = info.max_containers = 2;
  Begin(info);
  auto worker = Connect();
  const std::string a = StartOne(worker).task_id(), b = StartOne(worker).task_id();
  worker->Ready(a);
  worker->Ready(b);
  Map("x");
  int round = 0;
  for (auto lease = worker->WaitLease(); lease; lease = worker->WaitLease(300ms)) {
    ASSERT_LT(++round, 100);
    if (lease->task_id() == a) {
      worker->GiveBack(*lease);
    } else {
      worker->Succeed(*lease, "done");
      break;
    }
  }
  EXPECT_LE(round, 2);
}

TEST_F(TaskEndsTest, TheOnlyTaskGetsAgainWhatItGaveBackButNotAtOnce) {
  Begin();
  auto worker = Connect();
  const std::string call = Map("x");
  const std::string task = StartOne(worker).task_id();
  worker->Ready(task);
  const auto until = std::chrono::steady_clock::now() + 600ms;
  int rounds = 0;
  while (std::chrono::steady_clock::now() < until) {
    auto lease = worker->WaitLease(10ms);
    if (!lease) continue;
    ++rounds;
    worker->GiveBack(*lease);
  }
  EXPECT_GE(rounds, 2);
  EXPECT_LE(rounds, 10);  // each wait is twice the one before
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  worker->Succeed(*lease, "done");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "done");
}

TEST_F(TaskEndsTest, TheEndOfAProcessSettlesItsInputsBeforeItsLogsAreThrough) {
  FunctionInfo info = Function();
  info.retry.retries = 1;
  Begin(info);
  auto worker = Connect();
  const std::string call = Map("x");
  const std::string task = StartOne(worker).task_id();
  worker->Ready(task);
  ASSERT_TRUE(worker->WaitLease());
  TaskUpdate ended = Update(task, TaskUpdate::PROCESS_ENDED);
  ended.mutable_exit()->set_exit_code(3);
  ended.mutable_exit()->set_text("exit code 3");
  worker->Send(ended);
  worker->Send(ended);  // and again, as after a new connection: it counts once
  const std::string next = StartOne(worker).task_id();
  worker->Ready(next);
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->task_id(), next);
  EXPECT_EQ(lease->attempt(), 1u);
  worker->Exit(task, ended.exit());  // nothing is left to settle
  worker->Succeed(*lease, "done");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "done");
}

TEST_F(TaskEndsTest, AnEndIsConfirmedWhoeverKnowsTheTask) {
  Begin();
  auto worker = Connect();
  Map("x");
  const std::string task = StartOne(worker).task_id();
  TaskExit exit;
  exit.set_lost(true);
  worker->Exit(task, exit);
  EXPECT_TRUE(worker->WaitEndKnown(task));
  worker->Exit("ta-of-another-life", exit);
  EXPECT_TRUE(worker->WaitEndKnown("ta-of-another-life"));
}

TEST_F(TaskEndsTest, ARefusedTaskLeavesNoInputBehind) {
  Begin();
  auto worker = Connect();
  const std::string call = Map("x");
  const std::string task = StartOne(worker).task_id();
  worker->Ready(task);
  ASSERT_TRUE(worker->WaitLease());
  TaskUpdate refused = Update(task, TaskUpdate::REFUSED);  // no sound worker says so after READY
  refused.set_error("no");
  refused.set_retryable(true);
  worker->Send(refused);
  const std::string next = StartOne(worker).task_id();
  worker->Ready(next);
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->attempt(), 0u);
  worker->Succeed(*lease, "done");
  EXPECT_EQ(*Poll(call)->outputs[0].result, "done");
}

TEST_F(TaskEndsTest, AStartupTimeoutOutlivesControl) {
  FunctionInfo info = Function();
  info.startup_timeout_secs = 2;
  info.max_containers = 1;
  Begin(info);
  auto worker = Connect();
  Map("x");
  const std::string task = StartOne(worker).task_id();
  TaskUpdate started = Update(task, TaskUpdate::STARTED);
  started.set_at(1);  // long ago
  worker->Send(started);
  worker->Send(Update("", TaskUpdate::EXITED));
  ASSERT_TRUE(worker->WaitEndKnown(""));  // so control has heard the first
  Restart();
  worker = Connect(Naming(task));
  worker->Send(started);
  auto stop = worker->WaitStop(4s);
  ASSERT_TRUE(stop);
  EXPECT_EQ(stop->mode(), StopTask::KILL);
  // One that is being killed is killed after the next restart too.
  Restart();
  worker = Connect(Naming(task));
  stop = worker->WaitStop();
  ASSERT_TRUE(stop);
  EXPECT_EQ(stop->mode(), StopTask::KILL);
}

class BuilderTest : public TaskEndsTest {
 protected:
  // A builder whose lease was sent.
  Lease BeginOne(FakeWorker* worker) {
    engine_->RunBuilder("fu-1", "input", [this](BuilderOutcome outcome) { done_.set_value(outcome); });
    worker->Ready(StartOne(worker).task_id());
    auto lease = worker->WaitLease();
    EXPECT_TRUE(lease);
    return lease ? *lease : Lease();
  }
  void Finish(FakeWorker* worker, const Lease& lease) {
    worker->Succeed(lease, "done");
    worker->Exit(lease.task_id(), TaskExit(), "ly-1");
    auto outcome = done_.get_future();
    ASSERT_EQ(outcome.wait_for(3s), std::future_status::ready);
    EXPECT_EQ(outcome.get().layer_id, "ly-1");
  }
  std::promise<BuilderOutcome> done_;
};

// It would wait for a worker with a function that may be forgotten meanwhile.
TEST_F(BuilderTest, AStoppedAppGetsNone) {
  Begin();
  engine_->StopApp("ap-1", "it was stopped by its owner", 0, nullptr);
  engine_->RunBuilder("fu-1", "input", [this](BuilderOutcome outcome) { done_.set_value(outcome); });
  auto outcome = done_.get_future();
  ASSERT_EQ(outcome.wait_for(3s), std::future_status::ready);
  EXPECT_EQ(outcome.get().status.message(), "it was stopped by its owner");
}

TEST_F(BuilderTest, ItsLostInputGoesToItsOwnTaskAgain) {
  Begin();
  const Lease lost = BeginOne(Connect());
  auto worker = Connect(Naming(lost.task_id()));
  auto again = worker->WaitLease();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->task_id(), lost.task_id());
  Finish(worker, *again);
}

TEST_F(BuilderTest, SoDoesOneThatIsGivenBack) {
  Begin();
  auto worker = Connect();
  worker->GiveBack(BeginOne(worker));
  auto again = worker->WaitLease();
  ASSERT_TRUE(again);
  Finish(worker, *again);
}

TEST_F(BuilderTest, ARestartedControlStopsWhatNobodyWaitsFor) {
  Begin();
  const Lease lease = BeginOne(Connect());
  Restart();
  auto worker = Connect(Naming(lease.task_id()));
  auto stop = worker->WaitStop();
  ASSERT_TRUE(stop);
  EXPECT_EQ(stop->task_id(), lease.task_id());
  EXPECT_EQ(stop->mode(), StopTask::KILL);
}

}  // namespace
}  // namespace lydian::control
