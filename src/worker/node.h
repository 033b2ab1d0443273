// The worker's truth: its tasks, its spawner, its builds. Messages from control and containers come together
// here, on one strand.
//
// Thread-safety: public methods from any thread. Ownership: what it stands on outlives it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/executor.h"
#include "build/builder.h"
#include "image/layer_store.h"
#include "lydian/admin.pb.h"
#include "lydian/worker.pb.h"
#include "spawner/client.h"
#include "worker/container_task.h"
#include "worker/guest_api.h"
#include "worker/link.h"

namespace lydian::worker {

struct NodeOptions {
  std::string state_dir;  // <state>/worker
  std::string worker_id;
  uint64_t epoch = 0;
  std::string version;
  std::string client_version;
  uint64_t memory_reserve_bytes = 0;  // what is not for containers
  uint64_t disk_reserve_bytes = uint64_t{2} << 30;
  // Connects to the spawner; tried until it works, and again when the connection breaks.
  std::function<Result<std::unique_ptr<spawner::Client>>(spawner::ClientEvents)> connect_spawner;
  std::function<void()> on_spawner;  // a spawner is there (its bridge may be new)
};

class Node : public GuestBackend {
 public:
  explicit Node(NodeOptions options, Strand* strand, Pool* pool);
  ~Node() override;

  // The rest of what it stands on, before Start.
  TaskGround& ground() { return ground_; }
  void SetLink(Link* link) { link_ = link; }

  // Connects to the spawner, adopts what runs, then calls `adopted` on the strand.
  void Start(std::function<void()> adopted);
  void Stop();  // lets go of everything; containers go on

  // Of the link; on the strand.
  WorkerHello MakeHello();  // who we are; what we hold is said when control has welcomed us
  void OnWelcome();
  void OnMessage(ToWorker message);
  void Acked(const google::protobuf::RepeatedPtrField<LeaseRef>& acks);

  std::shared_ptr<spawner::Client> spawner();
  void Status(StatusResponse* response, std::function<void()> done);
  // For containers that are nobody's task (debug run): told when they end, or that the spawner is gone.
  void WatchContainer(const std::string& container_id, std::function<void(const ExitEvent&)> on_exit);
  void UnwatchContainer(const std::string& container_id);
  std::string RefuseReason();  // "" or "no space left ..."

  // GuestBackend.
  void GuestHello(const std::string& task_id) override;
  void GuestHeartbeat(const std::string& task_id, rpc::Ctx ctx,
                      std::function<void(Result<std::vector<std::string>>)> reply) override;
  void GuestAsks(const std::string& task_id, std::shared_ptr<InputQuestion> question) override;
  void GuestWithdraws(const std::string& task_id, std::shared_ptr<InputQuestion> question) override;
  void GuestPuts(const std::string& task_id, std::vector<Output> outputs,
                 std::function<void()> done) override;
  void GuestResult(const std::string& task_id, std::string result, std::function<void()> done) override;
  void GuestStopsItself(const std::string& task_id, std::function<void()> done) override;

 private:
  using TaskPtr = std::shared_ptr<ContainerTask>;
  TaskPtr Find(const std::string& task_id);
  void ConnectSpawner();
  void SpawnerLost(uint64_t generation, const lydian::Status& status);
  void Adopt(const ContainerList& list);
  void AdoptOne(ContainerInfo info);
  void AdoptRemains();
  void AdoptionStep();
  void Discard(const std::string& container_id, const std::string& why);
  void OnExit(const ExitEvent& event);
  void KeepStore(ToWorker message);  // inventories and removals
  void SendHoldings();
  void Take(const Leases& leases);
  TaskPtr FindOrAnswer(const std::string& task_id);
  void StartTask(TaskSpec spec);
  void StartBuild(const BuildSpec& spec);
  void OnBuildUpdate(BuildUpdate update);
  void Ensure(const EnsureAsset& asset);
  void SendAsset(const std::string& request_id, const lydian::Status& status);
  WorkerCapacity Capacity();
  void CheckDisk();

  NodeOptions options_;
  Strand* strand_;
  Pool* pool_;
  Link* link_ = nullptr;
  TaskGround ground_;
  std::mutex spawner_mutex_;  // guards spawner_
  std::shared_ptr<spawner::Client> spawner_;
  // On the strand:
  uint64_t spawner_generation_ = 0;
  bool stopped_ = false, spawner_told_ = false;
  std::map<std::string, TaskPtr> tasks_;  // by task id
  std::map<std::string, TaskPtr> by_container_;
  std::map<std::string, std::function<void(const ExitEvent&)>> watched_;
  std::set<std::string> discarded_;
  std::map<std::string, TaskUpdate> ended_;  // said, and not confirmed: again after a reconnect
  std::set<std::string> builds_;
  std::deque<BuildUpdate> build_updates_;  // while control is away
  size_t build_update_bytes_ = 0;
  std::function<void()> adopted_;
  size_t adopting_ = 0;
  bool disk_low_ = false;
  std::optional<Strand::TimerId> disk_timer_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace lydian::worker
