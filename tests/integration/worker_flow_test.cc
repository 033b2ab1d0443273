// A worker between a played control and real containers.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "base/fd.h"
#include "lydian/admin.pb.h"
#include "rpc/channel.h"
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
  std::cerr << "start to ready " << millis(begun, ready) << " ms, kill switch to exit reported "
            << millis(stopped, ended) << " ms\n";
}

TEST_F(WorkerFlow, TheContainerIsAsDescribed) {
  const std::string task = StartTask(Spec("where"));
  Lease(task, "in-1", 5);  // before it is ready: comes back
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 5);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  EXPECT_EQ(control_->outputs[0].result(), PickledInt(5)) << control_->text[2];
  ASSERT_TRUE(control_->Wait([&] {
    return control_->text[1].find("blob content of /blob/x") != std::string::npos;
  })) << control_->text[1];
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

TEST_F(WorkerFlow, TheEndOfAProcessDoesNotWaitForItsLogs) {
  const std::string task = StartTask(Spec("chatters"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  control_->acknowledge = false;  // more than may be on its way is left behind
  Lease(task, "in-1", 3);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::PROCESS_ENDED); }));
  EXPECT_EQ(control_->Find(Update::PROCESS_ENDED)->exit().text(), "exit code 3");
  EXPECT_TRUE(control_->Saw(Update::CLOSED));
  EXPECT_FALSE(control_->Saw(Update::EXITED));
  // Another control hears of it too, and takes the rest.
  control_->Stop();
  StartControl();
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_TRUE(control_->Saw(Update::PROCESS_ENDED));
  EXPECT_EQ(control_->text[1].size(), size_t{6} << 20);
}

TEST_F(WorkerFlow, AContainerThatFetchesNoMoreSaysSo) {
  const std::string task = StartTask(Spec("last"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 3);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::CLOSED); }));
  EXPECT_TRUE(control_->outputs.empty());  // it still works on this one
  Lease(task, "in-2", 4);
  ASSERT_TRUE(control_->Wait([&] { return control_->given_back.size() == 1; }));
  EXPECT_EQ(control_->given_back[0].input_id(), "in-2");
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->outputs.size(), 1u);
}

TEST_F(WorkerFlow, ATaskThatIsNotHereIsAnswered) {
  Stop("ta-nobody", StopTask::DRAIN);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->Find(Update::EXITED)->task_id(), "ta-nobody");
  EXPECT_TRUE(control_->Find(Update::EXITED)->exit().lost());
  control_->updates.clear();
  Lease("ta-none", "in-1", 1);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->Find(Update::EXITED)->task_id(), "ta-none");
}

TEST_F(WorkerFlow, ATaskWhoseTableIsDamagedIsLostInWords) {
  const std::string task = StartTask(Spec("slow"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 100);
  ASSERT_TRUE(control_->Wait([&] { return control_->text[1] == "begun\n"; }));
  worker_->Stop();
  worker_.reset();
  ASSERT_TRUE(WriteFileAtomic(state_ + "/tasks/" + task + "/table", std::string(8192, '\0')).ok());
  control_->hellos.clear();
  StartWorker();
  EXPECT_TRUE(control_->held.empty());
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->Find(Update::EXITED)->task_id(), task);
  EXPECT_TRUE(control_->Find(Update::EXITED)->exit().lost());
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
  ASSERT_EQ(control_->held.size(), 1u);
  EXPECT_EQ(control_->held[0].held(0).input_id(), "in-1");
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
  ASSERT_EQ(control_->held.size(), 1u);
  EXPECT_EQ(control_->held[0].task_id(), task);
  ASSERT_EQ(control_->held[0].held_size(), 1);
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
  StopSpawner(SIGKILL);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_TRUE(control_->Find(Update::EXITED)->exit().lost());
  control_->updates.clear();
  StartSpawner();
  const std::string next = StartTask(Spec("work"));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(next); }));
}

TEST_F(WorkerFlow, WhatABuilderFunctionWroteBecomesALayer) {
  TaskSpec spec = Spec("writes");
  spec.set_commit_layer(true);
  const std::string task = StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 4);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  Stop(task, StopTask::DRAIN);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  const std::string layer = control_->Find(Update::EXITED)->layer_id();
  ASSERT_FALSE(layer.empty()) << control_->Find(Update::EXITED)->error();
  std::string found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(state_ + "/layers")) {
    if (entry.path().string().ends_with("/opt/kept/file"))
      found = ReadFile(entry.path().string()).value_or("");
  }
  EXPECT_EQ(found, "4");
}

TEST_F(WorkerFlow, AFailedBuilderFunctionLeavesNoLayer) {
  TaskSpec spec = Spec("writes");
  spec.set_commit_layer(true);
  const std::string task = StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 9);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  Stop(task, StopTask::DRAIN);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_EQ(control_->Find(Update::EXITED)->layer_id(), "");
}

// The worker ends between the end of the container and that of the copying: without its layer, the function
// has not ended well, and control is to try again.
TEST_F(WorkerFlow, ALayerThatWasNotKeptIsALostEnd) {
  TaskSpec spec = Spec("writes");
  spec.set_commit_layer(true);
  commits_->Close();
  const std::string task = StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 4);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  Stop(task, StopTask::DRAIN);
  ASSERT_TRUE(commits_->AwaitBegun());
  worker_->Stop();
  worker_.reset();
  EXPECT_FALSE(control_->Saw(Update::EXITED));
  control_->hellos.clear();
  StartWorker();
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_TRUE(control_->Find(Update::EXITED)->exit().lost()) << control_->Find(Update::EXITED)->DebugString();
  EXPECT_EQ(control_->Find(Update::EXITED)->layer_id(), "");
}

TEST_F(WorkerFlow, AnotherWorkerKnowsTheLayerThatWasKept) {
  TaskSpec spec = Spec("writes");
  spec.set_commit_layer(true);
  const std::string task = StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  {
    std::lock_guard lock(control_->mutex);
    control_->acknowledge = false;
  }
  Lease(task, "in-1", 4);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  Stop(task, StopTask::DRAIN);
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  const std::string layer = control_->Find(Update::EXITED)->layer_id();
  ASSERT_FALSE(layer.empty());
  worker_->Stop();
  worker_.reset();
  control_->hellos.clear();
  control_->updates.clear();
  StartWorker();
  ASSERT_TRUE(control_->Wait([&] { return control_->Saw(Update::EXITED); }));
  EXPECT_FALSE(control_->Find(Update::EXITED)->exit().lost());
  EXPECT_EQ(control_->Find(Update::EXITED)->layer_id(), layer);
}

TEST_F(WorkerFlow, LayersThatAreCopiedHoldUpNoStart) {
  commits_->Close();
  std::vector<std::string> writers;
  for (int i = 0; i < 5; ++i) {
    TaskSpec spec = Spec("writes");
    spec.set_commit_layer(true);
    const std::string task = writers.emplace_back(StartTask(spec));
    ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
    Lease(task, "in-" + std::to_string(i), 4);
  }
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == writers.size(); }));
  for (const std::string& task : writers) Stop(task, StopTask::DRAIN);
  ASSERT_TRUE(commits_->AwaitBegun(2));
  for (int i = 0; i < 3; ++i) {
    const std::string next = StartTask(Spec("work"));
    ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(next); })) << i;
  }
}

TEST_F(WorkerFlow, TwoInputsRunTogether) {
  const std::string task = StartTask(Spec("together", 2));
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 1);
  Lease(task, "in-2", 2);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 2; }));
  EXPECT_EQ(control_->outputs[0].status(), 1);
}

TEST_F(WorkerFlow, ABatchIsOneCall) {
  TaskSpec spec = Spec("batch", 1);
  spec.set_batch_max_size(3);
  SetBatched(&spec, 3, 100);
  const std::string task = StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  for (int i = 1; i <= 3; ++i) Lease(task, "in-" + std::to_string(i), i);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 3; }));
  ASSERT_TRUE(control_->Wait([&] { return control_->text[1] == "batch [1, 2, 3]\n"; })) << control_->text[1];
}

TEST_F(WorkerFlow, AnEntrypointWrapsTheRuntime) {
  TaskSpec spec = Spec("work");
  ImageConfig* config = spec.mutable_image()->mutable_config();
  for (const char* word : {"/bin/sh", "-c", "echo entry; exec \"$@\"", "sh"}) config->add_entrypoint(word);
  const std::string task = StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); })) << control_->text[2];
  Lease(task, "in-1", 5);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  ASSERT_TRUE(control_->Wait([&] { return control_->text[1] == "entry\nworking on 5\n"; }))
      << control_->text[1];
}

TEST_F(WorkerFlow, ARestrictedContainerHasItsOwnCallsAlone) {
  TaskSpec spec = Spec("calls");
  spec.set_restrict_modal_access(true);
  const std::string task = StartTask(spec);
  ASSERT_TRUE(control_->Wait([&] { return control_->ready.contains(task); }));
  Lease(task, "in-1", 1);
  ASSERT_TRUE(control_->Wait([&] { return control_->outputs.size() == 1; }));
  EXPECT_NE(control_->outputs[0].result().find("PermissionDeniedError"), std::string::npos);
  EXPECT_TRUE(control_->relayed.empty());
}

// One container by hand, over the admin socket: output, status, timing.
TEST_F(WorkerFlow, DebugRun) {
  std::vector<uint64_t> ready, whole;
  auto channel = rpc::Channel::Create("unix:" + state_ + "/admin.sock");
  for (int i = 0; i < 12; ++i) {
    RunRequest request;
    request.mutable_job()->mutable_rootfs()->add_lowers("/var/tmp/lydian-worker-test/rootfs");
    for (const char* word : {"/bin/sh", "-c", "echo out; echo err >&2; exit 7"})
      request.mutable_job()->mutable_process()->add_argv(word);
    std::mutex mutex;
    std::condition_variable changed;
    std::string out, err, phases;
    int status = -1;
    bool done = false;
    rpc::ClientCallbacks callbacks;
    callbacks.on_message = [&](std::string bytes) {
      RunEvent event;
      ASSERT_TRUE(event.ParseFromString(bytes));
      out += event.stdout_data();
      err += event.stderr_data();
      if (event.has_timing()) {
        ready.push_back(event.timing().ready_nanos());
        whole.push_back(event.timing().exit_nanos());
        for (const Phase& phase : event.timing().phases())
          phases += phase.name() + " " + std::to_string(phase.nanos() / 1000) + "us ";
      }
      if (event.kind_case() == RunEvent::kStatus) status = event.status();
    };
    callbacks.on_done = [&](const Status& ended, rpc::Metadata) {
      EXPECT_TRUE(ended.ok()) << ended;
      std::lock_guard lock(mutex);
      done = true;
      changed.notify_all();
    };
    auto call = channel->Start("/lydian.WorkerAdmin/Run", {}, std::move(callbacks));
    call->Write(request.SerializeAsString());
    call->WritesDone();
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return done; }));
    EXPECT_EQ(out, "out\n");
    EXPECT_EQ(err, "err\n");
    EXPECT_EQ(status, 7 << 8);
    if (i == 11) std::cerr << phases << "\n";
    usleep(200'000);  // the pools refill
  }
  std::sort(ready.begin(), ready.end());
  std::sort(whole.begin(), whole.end());
  std::cerr << "ready to exec p50 " << ready[6] / 1000 << " us, to the reported exit p50 " << whole[6] / 1000
            << " us\n";
  Result<std::string> status = channel->CallBlocking("/lydian.WorkerAdmin/Status", "");
  ASSERT_TRUE(status.ok()) << status.status();
  StatusResponse response;
  ASSERT_TRUE(response.ParseFromString(*status));
  EXPECT_EQ(response.processes(0).role(), "worker");
  EXPECT_EQ(response.processes(1).role(), "spawner");
}

}  // namespace
}  // namespace lydian::worker
