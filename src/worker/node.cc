#include "worker/node.h"

#include <signal.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <future>

#include "base/fd.h"
#include "base/log.h"
#include "base/text.h"
#include "worker/exit_text.h"
#include "worker/link_limits.h"
#include "worker/store_keeper.h"

namespace lydian::worker {
namespace {
constexpr Millis kSpawnerPause{50};
constexpr std::chrono::seconds kDiskPause{2};
constexpr size_t kMostBuildBytes = 16 << 20;
}  // namespace

Node::Node(NodeOptions options, Strand* strand, Pool* pool)
    : options_(std::move(options)), strand_(strand), pool_(pool) {
  ground_.tasks_dir = options_.state_dir + "/tasks";
  ground_.strand = strand;
  ground_.pool = pool;
  ground_.default_client_version = options_.client_version;
  ground_.spawner = [this] { return spawner(); };
  ground_.refuse = [this] { return RefuseReason(); };
  ground_.send = [this](FromWorker message) { link_->Send(std::move(message)); };
  ground_.send_output = [this](const Output& output, bool soon) { link_->SendOutput(output, soon); };
  ground_.gone = [this](const std::string& task_id) {
    if (TaskPtr task = Find(task_id)) by_container_.erase(task->container_id());
    tasks_.erase(task_id);
    CheckDisk();
  };
  ground_.ended = [this](const TaskUpdate& update) { ended_[update.task_id()] = update; };
}

Node::~Node() { *alive_ = false; }

std::shared_ptr<spawner::Client> Node::spawner() {
  std::lock_guard lock(spawner_mutex_);
  return spawner_;
}

Node::TaskPtr Node::Find(const std::string& task_id) {
  auto it = tasks_.find(task_id);
  return it == tasks_.end() ? nullptr : it->second;
}

void Node::Start(std::function<void()> adopted) {
  strand_->Post([this, adopted = std::move(adopted)]() mutable {
    adopted_ = std::move(adopted);
    ConnectSpawner();
  });
}

void Node::Stop() {
  std::promise<void> done;
  std::vector<std::unique_ptr<rpc::Server>> servers;
  strand_->Post([&] {
    stopped_ = true;
    if (disk_timer_) strand_->CancelTimer(*disk_timer_);
    watched_.clear();
    for (auto& [id, task] : tasks_) {
      servers.push_back(task->TakeServer());
      task->StopCommit();
    }
    done.set_value();
  });
  done.get_future().wait();
  // Their connections break; containers ask again, and the next worker answers. The strand still runs: held
  // calls are let go there.
  for (auto& server : servers) {
    if (server) server->Stop(200);
  }
  std::shared_ptr<spawner::Client> client;
  {
    std::lock_guard lock(spawner_mutex_);
    client = std::move(spawner_);
  }
}

// ---- The spawner.

void Node::ConnectSpawner() {
  if (stopped_) return;
  const uint64_t generation = ++spawner_generation_;
  spawner::ClientEvents events;
  events.on_exit = [this, alive = alive_](const ExitEvent& event) {
    strand_->Post([this, alive, event] {
      if (*alive) OnExit(event);
    });
  };
  events.on_disconnect = [this, generation, alive = alive_](const lydian::Status& status) {
    strand_->Post([this, generation, alive, status] {
      if (*alive) SpawnerLost(generation, status);
    });
  };
  Result<std::unique_ptr<spawner::Client>> client = options_.connect_spawner(std::move(events));
  if (!client.ok()) {
    if (!spawner_told_) LOG_WARN("the spawner can't be reached; trying on", {{"error", client.status()}});
    spawner_told_ = true;
    strand_->PostAfter(kSpawnerPause, [this, alive = alive_] {
      if (*alive) ConnectSpawner();
    });
    return;
  }
  spawner_told_ = false;
  std::shared_ptr<spawner::Client> shared = std::move(*client);
  LOG_INFO("connected to the spawner", {{"pid", shared->pid()}});
  {
    std::lock_guard lock(spawner_mutex_);
    spawner_ = shared;
  }
  if (options_.on_spawner) options_.on_spawner();
  shared->List([this, generation, alive = alive_](Result<ContainerList> list) {
    strand_->Post([this, generation, alive, list = std::move(list)] {
      if (!*alive || generation != spawner_generation_) return;
      // A failure is the connection's, and comes as its end.
      if (list.ok()) Adopt(*list);
    });
  });
}

void Node::SpawnerLost(uint64_t generation, const lydian::Status& status) {
  if (generation != spawner_generation_ || stopped_) return;
  LOG_WARN("the spawner is gone", {{"error", status}});
  std::shared_ptr<spawner::Client> gone;
  {
    std::lock_guard lock(spawner_mutex_);
    gone = std::move(spawner_);
  }
  pool_->Post([gone = std::move(gone)]() mutable { gone.reset(); });  // joins its thread
  for (auto& [id, task] : std::map(tasks_)) task->OnSpawnerLost();
  ExitEvent lost;
  lost.set_status(SIGKILL);
  for (auto& [id, on_exit] : std::exchange(watched_, {})) {
    lost.set_container_id(id);
    on_exit(lost);
  }
  adopting_ = 0;
  ConnectSpawner();
}

void Node::Adopt(const ContainerList& list) {
  adopting_ = 1;
  for (const ContainerInfo& info : list.containers()) {
    if (by_container_.contains(info.container_id())) continue;
    ++adopting_;
    AdoptOne(info);
  }
  AdoptionStep();
}

void Node::AdoptOne(ContainerInfo info) {
  const std::string task_id = OwnerTaskId(info.job().owner_data());
  Result<TaskSpec> spec = task_id.empty() || task_id.find('/') != std::string::npos
                              ? NotFound("not a task's")
                              : ContainerTask::ReadSpec(ground_.tasks_dir + "/" + task_id);
  if (!spec.ok()) {
    Discard(info.container_id(), spec.status().message());
    return AdoptionStep();
  }
  auto client = spawner();
  if (!client) return;
  client->Attach(info.container_id(), [this, alive = alive_, generation = spawner_generation_, info,
                                       spec = *spec](Result<spawner::Container> container) {
    auto shared = std::make_shared<Result<spawner::Container>>(std::move(container));
    strand_->Post([this, alive, generation, info, spec, shared] {
      if (!*alive || generation != spawner_generation_) return;  // of a spawner that is gone
      if (!shared->ok()) {
        LOG_WARN("a container can't be attached to",
                 {{"container_id", info.container_id()}, {"error", shared->status()}});
        return AdoptionStep();
      }
      auto task = std::make_shared<ContainerTask>(&ground_, spec);
      const bool exited = (*shared)->info.exited();
      const ExitEvent exit = (*shared)->info.exit();
      if (task->Adopt(std::move(**shared), exited, exit)) {
        LOG_INFO("task adopted", {{"task_id", spec.task_id()}, {"container_id", info.container_id()}});
        tasks_[spec.task_id()] = task;
        by_container_[info.container_id()] = task;
      } else {
        Discard(info.container_id(), "it can't go on");
      }
      AdoptionStep();
    });
  });
}

void Node::Discard(const std::string& container_id, const std::string& why) {
  auto client = spawner();
  if (!client || watched_.contains(container_id)) return;
  LOG_WARN("a container that nobody knows is killed", {{"container_id", container_id}, {"why", why}});
  discarded_.insert(container_id);
  client->Kill(container_id, [client, container_id](const lydian::Status&) {
    // Refused while it still runs; its exit event removes it then.
    client->Remove(container_id, [](const lydian::Status&) {});
  });
}

void Node::AdoptionStep() {
  if (adopting_ == 0 || --adopting_ > 0) return;
  AdoptRemains();
  if (adopted_) std::exchange(adopted_, nullptr)();
}

// Folders of tasks whose containers are gone.
void Node::AdoptRemains() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(ground_.tasks_dir, error)) {
    const std::string task_id = entry.path().filename().string();
    if (tasks_.contains(task_id)) continue;
    Result<TaskSpec> spec = ContainerTask::ReadSpec(entry.path().string());
    if (!spec.ok() || spec->task_id() != task_id) {
      if (lydian::Status status = RemoveTree(entry.path().string()); !status.ok()) {
        LOG_WARN("a folder of an unknown task stays", {{"task_id", task_id}, {"error", status}});
      }
      continue;
    }
    auto task = std::make_shared<ContainerTask>(&ground_, *spec);
    tasks_[task_id] = task;
    task->AdoptRemains();
  }
}

void Node::OnExit(const ExitEvent& event) {
  if (!event.exec_id().empty()) return;
  const std::string& id = event.container_id();
  if (auto it = by_container_.find(id); it != by_container_.end()) return it->second->OnExit(event);
  if (auto it = watched_.find(id); it != watched_.end()) {
    auto on_exit = std::move(it->second);
    watched_.erase(it);
    return on_exit(event);
  }
  if (discarded_.erase(id) > 0) {
    if (auto client = spawner()) client->Remove(id, [](const lydian::Status&) {});
    return;
  }
  ground_.builder->OnExit(id, event.status(), event.oom_killed());
}

void Node::WatchContainer(const std::string& container_id, std::function<void(const ExitEvent&)> on_exit) {
  strand_->Dispatch([this, container_id, on_exit = std::move(on_exit)] { watched_[container_id] = on_exit; });
}
void Node::UnwatchContainer(const std::string& container_id) {
  strand_->Dispatch([this, container_id] { watched_.erase(container_id); });
}

// ---- Control.

WorkerHello Node::MakeHello() {
  WorkerHello hello;
  hello.set_protocol(2);
  hello.set_worker_id(options_.worker_id);
  hello.set_epoch(options_.epoch);
  hello.set_version(options_.version);
  *hello.mutable_capacity() = Capacity();
  return hello;
}

void Node::SendHoldings() {
  std::vector<RunningTask> tasks;
  for (const auto& [id, task] : tasks_) {
    // An ended one counts until its end was told: its logs and outputs still come.
    if (!task->leaving()) tasks.push_back(task->Describe());
  }
  for (Holdings& page : PagesOf(tasks, {builds_.begin(), builds_.end()})) {
    FromWorker message;
    *message.mutable_holdings() = std::move(page);
    link_->Send(std::move(message));
  }
}

void Node::OnWelcome() {
  SendHoldings();
  for (const auto& [id, update] : ended_) {
    if (TaskPtr task = Find(id); task && !task->leaving()) continue;  // says so itself, behind its logs
    FromWorker message;
    *message.mutable_task() = update;
    link_->Send(std::move(message));
  }
  for (auto& [id, task] : std::map(tasks_)) task->OnWelcome();
  ground_.logs->SetLinkUp(true);
  build_update_bytes_ = 0;
  for (BuildUpdate& update : std::exchange(build_updates_, {})) {
    FromWorker message;
    *message.mutable_build() = std::move(update);
    link_->Send(std::move(message));
  }
}

void Node::Acked(const google::protobuf::RepeatedPtrField<LeaseRef>& acks) {
  for (const LeaseRef& ref : acks) {
    if (TaskPtr task = Find(ref.task_id())) task->Acked(ref);
  }
}

void Node::OnMessage(ToWorker message) {
  switch (message.kind_case()) {
    case ToWorker::kStartTask:
      return StartTask(std::move(*message.mutable_start_task()));
    case ToWorker::kStopTask:
      if (TaskPtr task = FindOrAnswer(message.stop_task().task_id())) {
        task->Stop(message.stop_task().mode(), message.stop_task().grace_ms(), message.stop_task().reason());
      }
      return;
    case ToWorker::kLeases:
      return Take(message.leases());
    case ToWorker::kRecall:
      if (TaskPtr task = FindOrAnswer(message.recall().task_id())) task->Recall(message.recall());
      return;
    case ToWorker::kCancel:
      if (TaskPtr task = FindOrAnswer(message.cancel().task_id())) task->Cancel(message.cancel());
      return;
    case ToWorker::kOutputAcks:
      return Acked(message.output_acks().acks());
    case ToWorker::kEndsKnown:
      for (const std::string& id : message.ends_known().task_ids()) ended_.erase(id);
      return;
    case ToWorker::kForget:
      for (const std::string& id : message.forget().task_ids()) {
        ended_.erase(id);
        if (TaskPtr task = Find(id)) task->Drop();
      }
      return;
    case ToWorker::kLogAck:
      return ground_.logs->Acked(message.log_ack());
    case ToWorker::kStartBuild:
      return StartBuild(message.start_build());
    case ToWorker::kCancelBuild:
      return ground_.builder->Cancel(message.cancel_build());
    case ToWorker::kEnsureAsset:
      return Ensure(message.ensure_asset());
    case ToWorker::kDropImages:
    case ToWorker::kTakeInventory:
      return KeepStore(std::move(message));
    case ToWorker::kWelcome:
    case ToWorker::KIND_NOT_SET:
      break;
  }
  LOG_WARN("control sent a message that this worker doesn't know",
           {{"kind", static_cast<int>(message.kind_case())}});
}

void Node::Take(const Leases& leases) {
  Acked(leases.acks());
  std::set<std::string> unknown;
  for (const Lease& lease : leases.leases()) {
    if (unknown.contains(lease.task_id())) continue;
    TaskPtr task = FindOrAnswer(lease.task_id());
    task ? task->AddLease(lease) : (void)unknown.insert(lease.task_id());
  }
}

// Control would wait for ever for a task that isn't here: it hears how it ended, which also settles what was
// leased to it.
Node::TaskPtr Node::FindOrAnswer(const std::string& task_id) {
  if (TaskPtr task = Find(task_id); task && !task->leaving()) return task;
  FromWorker message;
  TaskUpdate* update = message.mutable_task();
  if (auto ended = ended_.find(task_id); ended != ended_.end()) {
    *update = ended->second;
  } else {
    update->set_task_id(task_id);
    update->set_state(TaskUpdate::EXITED);
    *update->mutable_exit() = LostExit("its worker does not know it");
  }
  link_->Send(std::move(message));
  return nullptr;
}

void Node::KeepStore(ToWorker message) {
  // Among the copying of layers: nobody waits for it, and it may read much.
  ground_.commits->Post([this, alive = std::weak_ptr(alive_), message = std::move(message)] {
    StoreKeeper keeper(ground_.layers, ground_.objects, ground_.builder, ground_.launcher_layer);
    auto send = [&](FromWorker answer) {
      strand_->Post([this, alive, answer = std::move(answer)]() mutable {
        if (!alive.expired() && link_ != nullptr) link_->Send(std::move(answer));
      });
    };
    if (message.kind_case() == ToWorker::kTakeInventory) {
      return keeper.Inventory(message.take_inventory(), [&](StoreInventory part) {
        FromWorker answer;
        *answer.mutable_inventory() = std::move(part);
        send(std::move(answer));
      });
    }
    FromWorker answer;
    *answer.mutable_dropped() = keeper.Drop(message.drop_images());
    if (!answer.dropped().request_id().empty()) send(std::move(answer));
  });
}

void Node::StartTask(TaskSpec spec) {
  if (tasks_.contains(spec.task_id())) return;  // sent again after a broken connection
  // It becomes a folder's name.
  if (spec.task_id().empty() || spec.task_id().find('/') != std::string::npos || spec.task_id()[0] == '.') {
    LOG_ERROR("control sent a task with an impossible id");
    return;
  }
  CheckDisk();
  LOG_INFO("task is being started", {{"task_id", spec.task_id()}, {"function", spec.function_name()}});
  auto task = std::make_shared<ContainerTask>(&ground_, std::move(spec));
  tasks_[task->spec().task_id()] = task;
  by_container_[task->container_id()] = task;
  task->Begin();
}

void Node::StartBuild(const BuildSpec& spec) {
  CheckDisk();
  if (const std::string why = RefuseReason(); !why.empty()) {
    BuildUpdate update;
    update.set_build_id(spec.build_id());
    update.mutable_result()->set_error(why);
    update.mutable_result()->set_retryable(true);
    return OnBuildUpdate(std::move(update));
  }
  if (!builds_.insert(spec.build_id()).second) return;
  ground_.builder->Start(spec, [this, alive = alive_](BuildUpdate update) {
    strand_->Post([this, alive, update = std::move(update)]() mutable {
      if (*alive) OnBuildUpdate(std::move(update));
    });
  });
}

void Node::OnBuildUpdate(BuildUpdate update) {
  if (update.has_result()) builds_.erase(update.build_id());
  if (link_->up()) {
    FromWorker message;
    *message.mutable_build() = std::move(update);
    return link_->Send(std::move(message));
  }
  // Logs beyond the limit are lost, results never.
  if (!update.has_result() && build_update_bytes_ > kMostBuildBytes) return;
  build_update_bytes_ += update.ByteSizeLong();
  build_updates_.push_back(std::move(update));
}

void Node::Ensure(const EnsureAsset& asset) {
  if (asset.kind() != EnsureAsset::CLIENT) {
    return SendAsset(
        asset.request_id(),
        Unimplemented("this worker can't make " + EnsureAsset::Kind_Name(asset.kind()) + " " + asset.name()));
  }
  ground_.builder->EnsureClient(
      asset.name(), [this, alive = alive_, id = asset.request_id()](const lydian::Status& status) {
        if (*alive) SendAsset(id, status);
      });
}

void Node::SendAsset(const std::string& request_id, const lydian::Status& status) {
  FromWorker message;
  AssetUpdate* update = message.mutable_asset();
  update->set_request_id(request_id);
  update->set_ok(status.ok());
  update->set_error(status.message());
  update->set_error_code(static_cast<int>(status.code()));
  link_->Send(std::move(message));
}

// ---- The machine.

WorkerCapacity Node::Capacity() {
  WorkerCapacity capacity;
  const uint64_t memory =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t reserve = options_.memory_reserve_bytes;
  capacity.set_memory_bytes(memory > reserve ? memory - reserve : 0);
  capacity.set_milli_cpu(static_cast<uint32_t>(std::max<long>(1, sysconf(_SC_NPROCESSORS_ONLN)) * 1000));
  capacity.set_disk_path(options_.state_dir);
  struct statvfs info {};
  if (statvfs(options_.state_dir.c_str(), &info) == 0)
    capacity.set_disk_free_bytes(info.f_bavail * info.f_frsize);
  capacity.set_disk_low(capacity.disk_free_bytes() < options_.disk_reserve_bytes);
  return capacity;
}

std::string Node::RefuseReason() {
  struct statvfs info {};
  if (statvfs(options_.state_dir.c_str(), &info) != 0) return {};
  const uint64_t free = info.f_bavail * info.f_frsize;
  if (free >= options_.disk_reserve_bytes) return {};
  return "no space left on the worker's disk (" + options_.state_dir + "): " + BytesText(free) + " free, " +
         BytesText(options_.disk_reserve_bytes) + " are kept as a reserve";
}

// Free space has no event: it is looked at when something starts or ends, and while it is low.
void Node::CheckDisk() {
  const WorkerCapacity capacity = Capacity();
  if (capacity.disk_low() != disk_low_) {
    disk_low_ = capacity.disk_low();
    LOG_WARN(disk_low_ ? "the disk is low: nothing is started" : "the disk has room again",
             {{"free", BytesText(capacity.disk_free_bytes())}});
    FromWorker message;
    *message.mutable_capacity() = capacity;
    link_->Send(std::move(message));
  }
  if (!disk_low_ || disk_timer_) return;
  disk_timer_ = strand_->PostAfter(kDiskPause, [this, alive = alive_] {
    if (!*alive) return;
    disk_timer_.reset();
    CheckDisk();
  });
}

void Node::Status(StatusResponse* response, std::function<void()> done) {
  strand_->Post([this, response, done = std::move(done)] {
    ProcessInfo* process = response->add_processes();
    process->set_role("worker");
    process->set_pid(getpid());
    if (auto client = spawner()) {
      ProcessInfo* other = response->add_processes();
      other->set_role("spawner");
      other->set_pid(client->pid());
    }
    for (const auto& [id, task] : tasks_) {
      if (!task->alive()) continue;
      TaskInfo* info = response->add_tasks();
      info->set_task_id(id);
      info->set_app_id(task->spec().app_id());
      info->set_function_name(task->spec().function_name());
      info->set_container_id(task->container_id());
      info->set_pid(task->pid());
      info->set_state(task->StateName());
      info->set_started_at(task->started_at());
      info->set_worker_id(options_.worker_id);
      info->set_ip(task->ip());
    }
    WorkerInfo* worker = response->add_workers();
    worker->set_worker_id(options_.worker_id);
    worker->set_connected(link_->up());
    const WorkerCapacity capacity = Capacity();
    worker->set_memory_bytes(capacity.memory_bytes());
    worker->set_milli_cpu(capacity.milli_cpu());
    response->set_disk_low(capacity.disk_low());
    response->set_version(options_.version);
    done();
  });
}

}  // namespace lydian::worker
