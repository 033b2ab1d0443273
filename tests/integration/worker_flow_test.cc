// A worker between a played control and real containers.
#include <gtest/gtest.h>

#include "worker_fixture.h"

namespace lydian::worker {
namespace {

using Update = TaskUpdate;

TEST_F(WorkerFlow, AnInputGoesInAndItsOutputComesOut) {
  const auto begun = std::chrono::steady_clock::now();
  const std::string task = StartTask(Spec("work"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  const auto ready = std::chrono::steady_clock::now();
  Lease(task, "in-1", 5);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  EXPECT_EQ(control_->outputs[0].result(), PickledInt(6));
  EXPECT_EQ(control_->outputs[0].status(), 1);
  EXPECT_EQ(control_->outputs[0].epoch(), 1u);
  Lease(task, "in-2", 6);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 2; }));
  const auto stopped = std::chrono::steady_clock::now();
  Stop(task, StopTask::GRACEFUL);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  const auto ended = std::chrono::steady_clock::now();
  EXPECT_EQ(control_->text[1], "working on 5\nworking on 6\n");
  EXPECT_EQ(control_->text[2], "on stderr\non stderr\n");
  EXPECT_EQ(control_->Find(Update::EXITED)->exit().text(), "exit code 0");
  EXPECT_TRUE(control_->Find(Update::EXITED)->exit().stopped_by_us());
  auto millis = [](auto from, auto to) { return std::chrono::duration_cast<Millis>(to - from).count(); };
  std::cerr << "start to ready " << millis(begun, ready) << " ms, kill switch to exit reported " << millis(stopped, ended) << " ms\n";
}

TEST_F(WorkerFlow, TheContainerIsAsDescribed) {
  const std::string task = StartTask(Spec("where"));
  Lease(task, "in-1", 5);  // before it is ready: comes back
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 5);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  EXPECT_EQ(control_->outputs[0].result(), PickledInt(5)) << control_->text[2];
  ASSERT_TRUE(control_->Wait([&] { return control_->text[1].find("blob content of /blob/x") != std::string::npos; })) << control_->text[1];
  EXPECT_NE(control_->text[1].find("http 404 Only blob URLs"), std::string::npos) << control_->text[1];
  EXPECT_EQ(control_->text[2], "");
}

TEST_F(WorkerFlow, DeathsAreTold) {
  const std::string task = StartTask(Spec("dies"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 3);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->Find(Update::EXITED)->exit().text(), "exit code 3");
  EXPECT_FALSE(control_->Find(Update::EXITED)->exit().stopped_by_us());
  control_->updates.clear();
  const std::string killed = StartTask(Spec("dies"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(killed); }));
  Lease(killed, "in-2", 9);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->Find(Update::EXITED)->exit().text(), "killed by signal 9 (SIGKILL)");
}

TEST_F(WorkerFlow, AFailedImportIsAFailureOfTheTask) {
  TaskSpec spec = Spec("work");
  spec.set_function_name("absent");
  std::string def = spec.function_def();
  def.replace(def.find("flow"), 4, "gone");  // the module's name
  spec.set_function_def(def);
  StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  ASSERT_TRUE(control_->Saw(Update::INIT_FAILED));
  EXPECT_NE(control_->Find(Update::INIT_FAILED)->result().find("ModuleNotFoundError"), std::string::npos);
  EXPECT_FALSE(control_->Saw(Update::READY));
  EXPECT_EQ(control_->Find(Update::EXITED)->exit().text(), "exit code 0");
}

TEST_F(WorkerFlow, AnotherControlGetsWhatTheFirstDidNotTake) {
  const std::string task = StartTask(Spec("work"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  control_->acknowledge = false;
  Lease(task, "in-1", 7);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  control_->Stop();
  StartControl();
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1 && !control_->text[1].empty(); }));
  ASSERT_EQ(control_->hellos.size(), 1u);
  ASSERT_EQ(control_->hellos[0].tasks_size(), 1);
  EXPECT_EQ(control_->hellos[0].tasks(0).held(0).input_id(), "in-1");
  EXPECT_EQ(control_->outputs[0].result(), PickledInt(8));
  EXPECT_EQ(control_->text[1], "working on 7\n");
  // The container lives on: its answer came.
  Lease(task, "in-2", 1);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 2; }));
}

TEST_F(WorkerFlow, AnotherWorkerAdoptsWhatRuns) {
  const std::string task = StartTask(Spec("slow"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 2);
  ASSERT_TRUE(control_->Wait([&] { return control_->text[1] == "begun\n"; }));
  worker_->Stop();
  worker_.reset();
  control_->hellos.clear();
  StartWorker();
  ASSERT_EQ(control_->hellos[0].tasks_size(), 1);
  EXPECT_EQ(control_->hellos[0].tasks(0).task_id(), task);
  ASSERT_EQ(control_->hellos[0].tasks(0).held_size(), 1);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  EXPECT_EQ(control_->outputs[0].result(), PickledInt(2));
  Lease(task, "in-2", 0);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 2; }));
  Stop(task, StopTask::DRAIN);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->text[1], "begun\ndonebegun\ndone");
  EXPECT_EQ(control_->text[2], "");
}

TEST_F(WorkerFlow, ARunningInputIsInterrupted) {
  const std::string task = StartTask(Spec("slow"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 100);
  ASSERT_TRUE(control_->Wait([&] { return control_->text[1] == "begun\n"; }));
  Stop(task, StopTask::GRACEFUL);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }, 4));
  EXPECT_EQ(control_->Find(Update::EXITED)->exit().text(), "exit code 0");
  EXPECT_TRUE(control_->outputs.empty());
}

TEST_F(WorkerFlow, CancelledInputsEndInPlace) {
  const std::string task = StartTask(Spec("slow"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 100);
  ASSERT_TRUE(control_->Wait([&] { return control_->text[1] == "begun\n"; }));
  ToWorker cancel;
  cancel.mutable_cancel()->set_task_id(task);
  cancel.mutable_cancel()->add_input_ids("in-1");
  control_->Send(cancel);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }, 5));
  EXPECT_EQ(control_->outputs[0].status(), 3);  // TERMINATED
}

TEST_F(WorkerFlow, OtherCallsGoToControl) {
  const std::string task = StartTask(Spec("calls"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 1);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  EXPECT_EQ(control_->outputs[0].status(), 2);
  EXPECT_NE(control_->outputs[0].result().find("NotFoundError"), std::string::npos);
  ASSERT_FALSE(control_->relayed.empty());
  EXPECT_EQ(control_->relayed.back(), "FunctionGet " + task);
}

TEST_F(WorkerFlow, ADeadSpawnerLosesItsContainersAndNothingElse) {
  const std::string task = StartTask(Spec("slow"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  StopSpawner();
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_TRUE(control_->Find(Update::EXITED)->exit().lost());
  control_->updates.clear();
  StartSpawner();
  const std::string next = StartTask(Spec("work"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(next); }));
}

}  // namespace
}  // namespace lydian::worker
