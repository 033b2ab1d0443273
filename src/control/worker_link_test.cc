// What goes over a worker's stream: how it begins, and how much of it at once.
#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class WorkerLinkTest : public EngineTest {
 protected:
  void BeginWide(uint32_t slots) {
    FunctionInfo info = Function();
    info.slots = info.target_slots = slots;
    info.max_containers = 1;
    Begin(info);
  }
  void MapMany(uint32_t inputs, size_t bytes) {
    NewCall call = CallOf("");
    call.call_type = kCallMap;
    call.inputs.clear();
    for (uint32_t i = 0; i < inputs; ++i) call.inputs.push_back({i, std::string(bytes, 'x'), ""});
    auto created = Create(call);
    ASSERT_TRUE(created.ok()) << created.status();
  }
};

TEST_F(WorkerLinkTest, LeasesAreCutByTheirBytes) {
  BeginWide(40);
  auto worker = Connect();
  MapMany(40, 1 << 20);
  worker->Ready(worker->WaitStart()->task_id());
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(worker->WaitLease());
  EXPECT_LE(worker->LargestMessage(), size_t{5} << 20);
}

TEST_F(WorkerLinkTest, AWorkerThatDoesNotKeepUpIsLeasedNoMore) {
  BeginWide(300);
  std::atomic<size_t> unsent{0};
  std::promise<Task> drained;
  auto worker = Connect(
      Hello(), {[&] { return unsent.load(); }, [&](size_t, Task fn) { drained.set_value(std::move(fn)); }});
  const std::string task = worker->WaitStart(50ms) ? "" : "none yet";
  ASSERT_EQ(task, "none yet");
  MapMany(8, 10);
  auto started = worker->WaitStart();
  ASSERT_TRUE(started);
  unsent = size_t{64} << 20;
  worker->Ready(started->task_id());
  auto waits = drained.get_future();
  ASSERT_EQ(waits.wait_for(3s), std::future_status::ready);
  EXPECT_FALSE(worker->WaitLease(50ms));
  unsent = 0;
  waits.get()();
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(worker->WaitLease());
}

TEST_F(WorkerLinkTest, WhatATaskHoldsMaySpanPages) {
  BeginWide(2);
  auto worker = Connect();
  MapMany(2, 10);
  const std::string task = worker->WaitStart()->task_id();
  worker->Ready(task);
  FakeHello hello = Hello();
  hello.pages.resize(3);
  for (int page = 0; page < 2; ++page) {
    auto lease = worker->WaitLease();
    ASSERT_TRUE(lease);
    RunningTask* running = hello.pages[static_cast<size_t>(page)].add_tasks();
    running->set_task_id(task);
    LeaseRef* ref = running->add_held();
    ref->set_input_id(lease->input_id());
    ref->set_epoch(lease->epoch());
  }
  worker = Connect(hello);
  EXPECT_FALSE(worker->WaitLease(100ms));  // all are held
  EXPECT_FALSE(worker->WaitForget(0ms));
}

TEST_F(WorkerLinkTest, NothingIsSentBeforeAWorkerSaidWhatItHolds) {
  BeginWide(2);
  auto worker = Connect();
  MapMany(1, 10);
  const std::string task = worker->WaitStart()->task_id();
  worker->Ready(task);
  ASSERT_TRUE(worker->WaitLease());
  FakeHello silent = Hello();
  silent.pages.clear();
  auto back = Connect(silent);
  Map("more");  // for the old stream, if for any
  EXPECT_FALSE(back->WaitLease(50ms));
  FromWorker page;
  page.mutable_holdings()->add_tasks()->set_task_id(task);
  page.mutable_holdings()->set_last(true);
  back->Deliver(page);
  EXPECT_TRUE(back->WaitLease());
  EXPECT_TRUE(back->WaitLease());
}

TEST_F(WorkerLinkTest, AnotherProtocolIsRefusedInWords) {
  BeginWide(1);
  FakeHello hello = Hello();
  hello.hello.set_protocol(1);
  auto closed = Connect(hello)->WaitClosed();
  ASSERT_TRUE(closed);
  EXPECT_EQ(closed->message(), "this control speaks worker protocol 2, the worker 1");
}

TEST_F(WorkerLinkTest, AcknowledgementsOfOneWorkerDontWaitForTheLeasesOfAnother) {
  FunctionInfo info = Function();
  info.min_containers = info.max_containers = 2;
  info.limits.set_memory_request_bytes(uint64_t{5} << 30);  // one on each
  Begin(info);
  FakeHello other = Hello();
  other.hello.set_worker_id("wk-2");
  auto idle = Connect(), busy = Connect(other);
  const std::string mine = idle->WaitStart()->task_id();
  idle->Ready(mine);
  Map("once");
  auto lease = idle->WaitLease();
  ASSERT_TRUE(lease);
  engine_->StopTask(mine, "no more", true, [](Status) {});
  ASSERT_TRUE(idle->WaitStop());
  busy->Serve([](const Lease&) { return "done"; });
  std::atomic<bool> enough{false};
  std::thread traffic([&] {
    while (!enough) EXPECT_TRUE(Poll(Map("x")).ok());
  });
  idle->Succeed(*lease, "done");
  EXPECT_TRUE(idle->WaitAck(lease->input_id(), 1000ms));
  enough = true;
  traffic.join();
}

}  // namespace
}  // namespace lydian::control
