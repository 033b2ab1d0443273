// One task: from its spec to its container, and to its end. Everything on the node's strand.
//
// States: kPreparing (files and layers) -> kStarting (asked the spawner) -> kRunning -> kEnded (the process
// is gone; what is left of its logs and outputs travels) -> gone (Hooks.gone). Errors before kRunning end as
// REFUSED, after it as EXITED.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/executor.h"
#include "build/builder.h"
#include "image/layer_store.h"
#include "lydian/worker.pb.h"
#include "rpc/server.h"
#include "spawner/client.h"
#include "worker/guest_http.h"
#include "worker/input_desk.h"
#include "worker/lease_table.h"
#include "worker/log_pump.h"
#include "worker/objects.h"
#include "worker/task_job.h"

namespace lydian::worker {

// What tasks stand on; outlives them.
struct TaskGround {
  std::string tasks_dir;
  Strand* strand = nullptr;
  Pool* pool = nullptr;            // what every start needs: nothing that takes long
  Pool* commits = nullptr;         // for the copying of layers
  uint32_t commit_seconds = 3600;  // the copying of a layer may take as long
  LogPump* logs = nullptr;
  GuestHttp* http = nullptr;
  Objects* objects = nullptr;
  image::LayerStore* layers = nullptr;
  build::Builder* builder = nullptr;
  std::string launcher_layer;  // a lower with kLauncherPath
  std::string default_client_version;
  std::function<std::shared_ptr<spawner::Client>()> spawner;
  std::function<Result<std::unique_ptr<rpc::Server>>(int listener, const TaskSpec& spec)> serve;
  std::function<std::string()> refuse;  // "" or why nothing may be started (no space left)
  std::function<void(FromWorker)> send;
  std::function<void(const Output& output, bool soon)> send_output;
  std::function<void(const std::string& task_id)> gone;
  std::function<void(const TaskUpdate&)> ended;  // EXITED or REFUSED as it was sent
};

class ContainerTask : public std::enable_shared_from_this<ContainerTask> {
 public:
  ContainerTask(TaskGround* ground, TaskSpec spec);
  ~ContainerTask();

  void Begin();
  // A container of an earlier worker. False: it can't go on (never got its identity) and is to be killed.
  bool Adopt(spawner::Container container, bool exited, const ExitEvent& exit);
  // Only its folder is left: what it logged is sent, then its end.
  void AdoptRemains();
  static Result<TaskSpec> ReadSpec(const std::string& dir);

  void Stop(StopTask::Mode mode, uint32_t grace_ms, const std::string& reason);
  void OnExit(const ExitEvent& event);
  void OnSpawnerLost();
  std::unique_ptr<rpc::Server> TakeServer() { return std::move(server_); }  // of a worker that lets go
  void OnWelcome();  // says again what control may not know
  void Drop();       // control doesn't know it: nothing more is reported
  // All was told, or nobody wants to hear it: only its folder is still there, and it is nobody's task.
  bool leaving() const { return dropped_ || removing_; }
  void StopCommit() { commit_stopped_ = true; }  // of its layer, if that is under way

  void AddLease(const Lease& lease);
  void Cancel(const CancelInputs& cancel);
  void Recall(const RecallInputs& recall);  // those that the container doesn't have yet
  void Acked(const LeaseRef& lease);

  void Hello() { hello_ = true; }
  void Heartbeat(rpc::Ctx ctx, std::function<void(Result<std::vector<std::string>>)> reply);
  void Ask(std::shared_ptr<InputQuestion> question);
  void Withdraw(const std::shared_ptr<InputQuestion>& question);
  void Put(std::vector<Output> outputs, std::function<void()> done);
  void Failed(std::string result, std::function<void()> done);
  void StopItself(std::function<void()> done);

  const TaskSpec& spec() const { return spec_; }
  const std::string& container_id() const { return container_id_; }
  int pid() const { return pid_; }
  const std::string& ip() const { return ip_; }
  double started_at() const { return started_at_; }
  std::string StateName() const;
  bool alive() const { return state_ != State::kEnded; }
  RunningTask Describe() const;

 private:
  enum class State { kPreparing, kStarting, kRunning, kEnded };
  struct Preparation;

  std::string Dir() const { return ground_->tasks_dir + "/" + spec_.task_id(); }
  void WriteFiles(std::shared_ptr<Preparation> preparation);
  void GatherLayers(std::shared_ptr<Preparation> preparation);
  void Gathered(std::shared_ptr<Preparation> preparation, size_t slot,
                Result<std::vector<std::string>> layers);
  void Resolve(std::shared_ptr<Preparation> preparation);
  void Create(std::shared_ptr<Preparation> preparation);
  void Created(Result<spawner::Container> container, const std::string& identity);
  Status Serve(spawner::Container* container);
  Status NoteLayers(const std::vector<std::string>& ids) const;
  void PinNoted();
  Status OpenFiles();
  void SendIdentity(std::string frame);
  void OpenDesk();
  void Refuse(const Status& status);
  void End(const TaskExit& exit, bool commit);
  void Finalize();  // kills what is left, then takes the last of the logs
  void NoteExit();
  void CommitLayer();
  void LoseLayer();
  void Vanish(const std::string& why);  // nothing of it can be told but that it is lost
  void SayProcessEnded();
  Result<std::string> TakeLayer();
  void DropWritable();
  void TrySendExit();
  void TryLeave();
  void Update(TaskUpdate::State state, const std::function<void(TaskUpdate*)>& fill = nullptr);
  void Signal(int signal);
  void KillNow();
  void ArmGrace(uint32_t grace_ms);
  void OnReady();
  void AnswerHeartbeat();
  void StopServing();

  TaskGround* ground_;
  TaskSpec spec_;
  State state_ = State::kPreparing;
  std::string container_id_, ip_;
  int pid_ = 0;
  double started_at_ = 0;
  std::shared_ptr<LeaseTable> table_;
  std::unique_ptr<OutputSpool> spool_;
  std::unique_ptr<InputDesk> desk_;
  std::unique_ptr<rpc::Server> server_;
  std::shared_ptr<void> pin_;
  UniqueFd writable_;  // of a task whose writes become a layer
  UniqueFd control_;
  bool hello_ = false;
  // Stopping.
  bool stopping_ = false, stop_signalled_ = false, dropped_ = false;
  std::optional<Strand::TimerId> grace_timer_;
  // Heartbeats and cancellations.
  std::function<void(Result<std::vector<std::string>>)> heartbeat_;
  uint64_t heartbeat_number_ = 0;
  std::optional<Strand::TimerId> heartbeat_timer_;
  std::vector<std::string> cancelled_;
  // The end.
  std::string init_result_;
  TaskExit exit_;
  std::string layer_id_, end_error_;
  std::atomic<bool> commit_stopped_ = false;
  bool exit_known_ = false;  // exit_ is what it is, whatever becomes of a layer
  bool finalized_ = false, logs_sent_ = false, logs_acked_ = false, exit_sent_ = false, removing_ = false;
};

}  // namespace lydian::worker
