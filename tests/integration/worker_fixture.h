// A worker as it is, with its real spawner and runtime, between a control that the test plays and containers
// that run the client's real runtime. Needs root, mmdebstrap (once, for a root file system with Python 3) and
// the project's .venv.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "lydian/worker.pb.h"
#include "rpc/server.h"
#include "worker/worker.h"

namespace lydian::worker {

// Control, as a worker sees it: takes everything down, acknowledges what it is told to.
class FakeControl {
 public:
  explicit FakeControl(const std::string& socket);
  ~FakeControl();
  void Send(const ToWorker& message);
  // Waits until `condition` holds over what has arrived (10 s). False when it never did.
  bool Wait(const std::function<bool()>& condition, int seconds = 20);
  void Stop();

  // Under mutex: use inside Wait, or after it.
  std::mutex mutex;
  std::vector<WorkerHello> hellos;
  std::vector<RunningTask> held;  // as the newest worker said
  bool settled = false;           // it has said all
  std::vector<TaskUpdate> updates;
  std::vector<Output> outputs;
  std::vector<LeaseRef> given_back;
  std::set<std::string> ready;
  std::map<int, std::string> text;   // by file descriptor
  std::vector<std::string> relayed;  // "Method task"
  bool acknowledge = true;           // outputs and logs

  bool Saw(TaskUpdate::State state) const;
  const TaskUpdate* Find(TaskUpdate::State state) const;

 private:
  void Take(FromWorker message);
  std::condition_variable changed_;
  std::shared_ptr<rpc::RawStream> stream_;
  std::string known_;  // offsets of logs that were stored
  std::map<std::string, std::pair<uint64_t, uint64_t>> stored_;
  std::unique_ptr<rpc::Server> server_;
};

// Holds back the copying of layers: a copy that has begun goes on until it is told to stop.
class CommitGate {
 public:
  Status Wait(const std::function<Status()>& check);  // on the worker's thread
  void Close();
  bool AwaitBegun(int copies = 1);

 private:
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  bool closed_ = false;
  int begun_ = 0;
};

class WorkerFlow : public testing::Test {
 protected:
  static void StartSpawner();
  void SetUp() override;
  void TearDown() override;
  void StartWorker();
  void StartControl();
  void StopSpawner(int signal);
  // A task of function `name` in /root/flow.py.
  TaskSpec Spec(const std::string& name, uint32_t slots = 1);
  static void SetBatched(TaskSpec* spec, uint32_t size, uint64_t linger_ms);
  std::string StartTask(TaskSpec spec);
  void Lease(const std::string& task_id, const std::string& input_id, int argument, uint32_t attempt = 0);
  void Stop(const std::string& task_id, StopTask::Mode mode, uint32_t grace_ms = 5000);
  // Pickled ints are what the test's functions take and give.
  static std::string PickledCall(int argument);
  static std::string PickledInt(int value);

  std::string state_ = "/var/tmp/lydian-worker-test/state";
  std::shared_ptr<CommitGate> commits_ = std::make_shared<CommitGate>();
  std::unique_ptr<FakeControl> control_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace lydian::worker
