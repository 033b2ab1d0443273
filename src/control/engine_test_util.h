// For tests of the call engine: an engine on a folder of its own, and a worker that does as it is told.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "base/fd.h"
#include "base/ids.h"
#include "control/call_engine.h"

namespace lydian::control {

class FakeSpecs : public TaskSpecSource {
 public:
  Result<TaskSpec> MakeTaskSpec(const std::string& function_id) override {
    TaskSpec spec;
    spec.set_function_id(function_id);
    spec.set_app_id("ap-1");
    spec.set_restrict_modal_access(true);
    return spec;
  }
};

struct FakeHello {
  WorkerHello hello;
  std::vector<Holdings> pages = std::vector<Holdings>(1);
  RunningTask* add_tasks() { return pages[0].add_tasks(); }
};

// A worker's end of the link.
class FakeWorker {
 public:
  FakeWorker(CallEngine* engine, const FakeHello& hello, WorkerRegistry::Backlog backlog = {})
      : registry_(engine->registry()), epoch_(hello.hello.epoch()) {
    session_ = registry_.Open([this](const ToWorker& message) { Take(message); },
                              [this](Status status) { Closed(status); }, std::move(backlog));
    FromWorker message;
    *message.mutable_hello() = hello.hello;
    registry_.Deliver(session_, message);
    for (size_t i = 0; i < hello.pages.size(); ++i) {
      *message.mutable_holdings() = hello.pages[i];
      message.mutable_holdings()->set_last(i + 1 == hello.pages.size());
      registry_.Deliver(session_, message);
    }
  }
  ~FakeWorker() { StopServing(); }

  void Drop() { registry_.Closed(session_); }  // the connection breaks
  void Send(const TaskUpdate& update) {
    FromWorker message;
    *message.mutable_task() = update;
    registry_.Deliver(session_, std::move(message));
  }
  void Ready(const std::string& task_id) {
    TaskUpdate update;
    update.set_task_id(task_id);
    update.set_state(TaskUpdate::READY);
    Send(update);
  }
  void Exit(const std::string& task_id, const TaskExit& exit, const std::string& layer_id = "") {
    TaskUpdate update;
    update.set_task_id(task_id);
    update.set_state(TaskUpdate::EXITED);
    *update.mutable_exit() = exit;
    update.set_layer_id(layer_id);
    Send(update);
  }
  void Output(const Lease& lease, int status, const std::string& result) {
    FromWorker message;
    lydian::Output* output = message.mutable_outputs()->add_outputs();
    output->set_input_id(lease.input_id());
    output->set_attempt(lease.attempt());
    output->set_epoch(lease.epoch());
    output->set_task_id(lease.task_id());
    output->set_status(status);
    output->set_result(result);
    registry_.Deliver(session_, std::move(message));
  }
  void Succeed(const Lease& lease, const std::string& result) { Output(lease, 1, result); }
  void Fail(const Lease& lease, const std::string& result) { Output(lease, 2, result); }
  void GiveBack(const Lease& lease) {
    FromWorker message;
    message.mutable_give_back()->set_task_id(lease.task_id());
    LeaseRef* ref = message.mutable_give_back()->add_leases();
    ref->set_input_id(lease.input_id());
    ref->set_attempt(lease.attempt());
    ref->set_epoch(lease.epoch());
    registry_.Deliver(session_, std::move(message));
  }
  void Deliver(FromWorker message) { registry_.Deliver(session_, std::move(message)); }

  using Wait = std::chrono::milliseconds;
  std::optional<TaskSpec> WaitStart(Wait wait = Wait(3000)) { return Pop(starts_, wait); }
  std::optional<Lease> WaitLease(Wait wait = Wait(3000)) { return Pop(leases_, wait); }
  std::optional<StopTask> WaitStop(Wait wait = Wait(3000)) { return Pop(stops_, wait); }
  std::optional<CancelInputs> WaitCancel(Wait wait = Wait(3000)) { return Pop(cancels_, wait); }
  std::optional<RecallInputs> WaitRecall(Wait wait = Wait(3000)) { return Pop(recalls_, wait); }
  std::optional<LogAck> WaitLogAck(Wait wait = Wait(3000)) { return Pop(log_acks_, wait); }
  std::optional<ForgetTasks> WaitForget(Wait wait = Wait(3000)) { return Pop(forgotten_, wait); }
  std::optional<Status> WaitClosed(Wait wait = Wait(3000)) { return Pop(closed_, wait); }
  size_t LargestMessage() {
    std::lock_guard lock(mutex_);
    return largest_;
  }
  bool WaitEndKnown(const std::string& task_id, Wait wait = Wait(3000)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, wait, [&] {
      return std::find(ends_known_.begin(), ends_known_.end(), task_id) != ends_known_.end();
    });
  }
  bool WaitAck(const std::string& input_id, Wait wait = Wait(3000)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, wait,
                             [&] { return std::find(acks_.begin(), acks_.end(), input_id) != acks_.end(); });
  }

  // Starts every task and answers every lease.
  void Serve(std::function<std::string(const Lease&)> answer) {
    server_ = std::thread([this, answer = std::move(answer)] {
      while (!stop_serving_) {
        if (auto task = WaitStart(Wait(1))) Ready(task->task_id());
        while (auto lease = WaitLease(Wait(1))) Succeed(*lease, answer(*lease));
        if (auto stop = WaitStop(Wait(0))) {
          TaskExit exit;
          exit.set_stopped_by_us(true);
          Exit(stop->task_id(), exit);
        }
      }
    });
  }
  void StopServing() {
    stop_serving_ = true;
    if (server_.joinable()) server_.join();
  }

 private:
  template <typename T>
  std::optional<T> Pop(std::deque<T>& queue, Wait wait) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, wait, [&] { return !queue.empty(); })) return std::nullopt;
    T front = std::move(queue.front());
    queue.pop_front();
    return front;
  }
  void Closed(const Status& status) {
    std::lock_guard lock(mutex_);
    closed_.push_back(status);
    changed_.notify_all();
  }
  void Take(const ToWorker& message) {
    std::lock_guard lock(mutex_);
    largest_ = std::max(largest_, message.ByteSizeLong());
    switch (message.kind_case()) {
      case ToWorker::kForget:
        forgotten_.push_back(message.forget());
        break;
      case ToWorker::kStartTask:
        starts_.push_back(message.start_task());
        break;
      case ToWorker::kStopTask:
        stops_.push_back(message.stop_task());
        break;
      case ToWorker::kLeases:
        for (const Lease& lease : message.leases().leases()) leases_.push_back(lease);
        for (const LeaseRef& ref : message.leases().acks()) acks_.push_back(ref.input_id());
        break;
      case ToWorker::kCancel:
        cancels_.push_back(message.cancel());
        break;
      case ToWorker::kRecall:
        recalls_.push_back(message.recall());
        break;
      case ToWorker::kLogAck:
        log_acks_.push_back(message.log_ack());
        break;
      case ToWorker::kEndsKnown:
        for (const std::string& id : message.ends_known().task_ids()) ends_known_.push_back(id);
        break;
      case ToWorker::kOutputAcks:
        for (const LeaseRef& ref : message.output_acks().acks()) acks_.push_back(ref.input_id());
        break;
      default:
        break;
    }
    changed_.notify_all();
  }

  WorkerRegistry& registry_;
  uint64_t epoch_;
  uint64_t session_ = 0;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<TaskSpec> starts_;
  std::deque<Lease> leases_;
  std::deque<StopTask> stops_;
  std::deque<CancelInputs> cancels_;
  std::deque<RecallInputs> recalls_;
  std::deque<LogAck> log_acks_;
  std::deque<ForgetTasks> forgotten_;
  std::deque<Status> closed_;
  size_t largest_ = 0;
  std::deque<std::string> acks_, ends_known_;
  std::thread server_;
  std::atomic<bool> stop_serving_{false};
};

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_).ok());
    OpenLogs();
  }
  void TearDown() override {
    Kill();
    logs_.reset();
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }
  void OpenLogs() {
    auto logs = OpenLogStore(dir_ + "/logs.db");
    ASSERT_TRUE(logs.ok()) << logs.status();
    logs_ = std::move(logs).value();
  }

  static FunctionInfo Function(const std::string& id = "fu-1") {
    FunctionInfo info;
    info.function_id = id;
    info.app_id = "ap-1";
    info.workspace_id = "ac-1";
    info.environment = "main";
    info.name = "f";
    return info;
  }
  EngineOptions Options() {
    EngineOptions options;
    options.journal_path = dir_ + "/calls.db";
    options.logs = logs_.get();
    options.worker_grace = Millis(300);
    options.missing_grace = Millis(100);
    options.start_backoff = Millis(5);
    options.result_text = [](const std::string& result) { return result; };
    return options;
  }
  void OpenEngine(const EngineOptions& options) {
    auto engine = CallEngine::Open(options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = std::move(engine).value();
    engine_->SetTaskSpecSource(&specs_);
  }
  void Begin(const FunctionInfo& info, const EngineOptions& options) {
    options_ = options;
    OpenEngine(options);
    engine_->PutFunction(info, false);
    engine_->ActivateApp("ap-1");
  }
  void Begin(const FunctionInfo& info) { Begin(info, Options()); }
  void Begin() { Begin(Function()); }
  // Control is killed and comes back: nothing but the journal is left.
  void Restart() {
    Kill();
    OpenEngine(options_);
  }
  // The engine before the workers, which it calls.
  void Kill() {
    for (auto& worker : workers_) worker->StopServing();
    engine_.reset();
    workers_.clear();
  }

  static FakeHello Hello(uint64_t epoch = 1) {
    FakeHello made;
    WorkerHello& hello = made.hello;
    hello.set_protocol(2);
    hello.set_worker_id("wk-1");
    hello.set_epoch(epoch);
    hello.mutable_capacity()->set_memory_bytes(uint64_t{8} << 30);
    hello.mutable_capacity()->set_milli_cpu(8000);
    return made;
  }
  FakeWorker* Connect(const FakeHello& hello = Hello(), WorkerRegistry::Backlog backlog = {}) {
    workers_.push_back(std::make_unique<FakeWorker>(engine_.get(), hello, std::move(backlog)));
    return workers_.back().get();
  }

  static CallScope Scope() { return {"ac-1", ""}; }
  static NewCall CallOf(const std::string& payload) {
    NewCall call;
    call.scope = Scope();
    call.function_id = "fu-1";
    call.inputs.push_back({0, payload, ""});
    return call;
  }
  Result<CreatedCall> Create(const NewCall& call) {
    std::promise<Result<CreatedCall>> promise;
    engine_->CreateCall(call, [&](Result<CreatedCall> created) { promise.set_value(std::move(created)); });
    return promise.get_future().get();
  }
  std::string Map(const std::string& payload) {
    auto created = Create(CallOf(payload));
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->call_id : "";
  }
  Result<std::vector<PutInput>> Put(const std::string& call, const std::vector<NewInput>& inputs) {
    std::promise<Result<std::vector<PutInput>>> promise;
    engine_->PutInputs(Scope(), call, "fu-1", inputs,
                       [&](Result<std::vector<PutInput>> put) { promise.set_value(std::move(put)); });
    return promise.get_future().get();
  }
  static OutputsQuery QueryOf(const std::string& call) {
    OutputsQuery query;
    query.scope = Scope();
    query.call_id = call;
    query.timeout = Millis(5000);
    query.last_entry_id = "0-0";
    query.start_idx = query.end_idx = 0;
    return query;
  }
  Result<OutputsPage> Outputs(const OutputsQuery& query) {
    std::promise<Result<OutputsPage>> promise;
    auto asked =
        engine_->GetOutputs(query, [&](Result<OutputsPage> page) { promise.set_value(std::move(page)); });
    return promise.get_future().get();
  }
  Result<OutputsPage> Poll(const std::string& call) { return Outputs(QueryOf(call)); }
  Status Cancel(const std::string& call, bool terminate = false) {
    std::promise<Status> promise;
    engine_->CancelCall(Scope(), call, terminate, [&](Status status) { promise.set_value(status); });
    return promise.get_future().get();
  }
  void StopTask(const std::string& task, bool graceful = false) {
    engine_->StopTask(task, "asked", graceful, [](Status) {});
  }
  Status PutChunks(const std::string& call, const std::string& task,
                   std::vector<std::pair<uint64_t, std::string>> chunks) {
    std::promise<Status> promise;
    engine_->PutChunks(Scope(), call, task, std::move(chunks),
                       [&](Status status) { promise.set_value(status); });
    return promise.get_future().get();
  }

  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-engine-" + RandomHex(6));
  FakeSpecs specs_;
  std::unique_ptr<LogStore> logs_;
  EngineOptions options_;
  std::unique_ptr<CallEngine> engine_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
};

}  // namespace lydian::control
