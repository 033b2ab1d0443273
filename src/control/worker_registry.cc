#include "control/worker_registry.h"

#include <algorithm>

#include "base/log.h"

namespace lydian::control {
namespace {
constexpr uint32_t kProtocol = 1;
}

WorkerRegistry::WorkerRegistry(Strand& strand, Millis grace) : strand_(strand), grace_(grace) {}

uint64_t WorkerRegistry::Open(SendFn send, CloseFn close) {
  uint64_t id = next_session_.fetch_add(1);
  strand_.Post([this, id, send = std::move(send), close = std::move(close)]() mutable {
    sessions_[id] = {std::move(send), std::move(close), ""};
  });
  return id;
}

void WorkerRegistry::Deliver(uint64_t session, FromWorker message) {
  auto shared = std::make_shared<FromWorker>(std::move(message));
  strand_.Run([this, session, shared] {
    auto it = sessions_.find(session);
    if (it == sessions_.end()) return;  // replaced by a newer stream
    FromWorker& in = *shared;
    if (in.kind_case() == FromWorker::kHello) return Hello(session, in.hello());
    const std::string worker_id = it->second.worker_id;
    if (worker_id.empty()) return it->second.close(FailedPrecondition("a worker says hello first"));
    switch (in.kind_case()) {
      case FromWorker::kBuild: {
        auto build = builds_.find(in.build().build_id());
        if (build == builds_.end() || build->second.worker_id != worker_id) return;
        auto on_update = build->second.on_update;
        if (in.build().kind_case() == BuildUpdate::kResult) builds_.erase(build);
        return on_update(in.build());
      }
      case FromWorker::kAsset: {
        auto asset = assets_.find(in.asset().request_id());
        if (asset == assets_.end()) return;
        auto done = std::move(asset->second.done);
        assets_.erase(asset);
        Status status;
        if (!in.asset().ok()) {
          Code code = static_cast<Code>(in.asset().error_code());
          status = Status(code == Code::kOk ? Code::kInternal : code, in.asset().error());
        }
        for (auto& callback : done) callback(status);
        return;
      }
      case FromWorker::kCapacity:
        workers_[worker_id].worker.capacity = in.capacity();
        return events_->OnWorkerCapacity(worker_id);
      case FromWorker::kInventory:
        return stores_.OnInventory(in.inventory());
      case FromWorker::kDropped:
        return stores_.OnDropped(in.dropped());
      case FromWorker::KIND_NOT_SET:
        return;  // of a newer worker
      default:
        return events_->OnWorkerMessage(worker_id, std::move(in));
    }
  });
}

void WorkerRegistry::Closed(uint64_t session) {
  strand_.Post([this, session] { StreamEnded(session); });
}

void WorkerRegistry::Hello(uint64_t session, const WorkerHello& hello) {
  Session& mine = sessions_[session];
  if (hello.protocol() != kProtocol || hello.worker_id().empty()) {
    mine.close(FailedPrecondition("this control speaks worker protocol " + std::to_string(kProtocol) +
                                  ", the worker " + std::to_string(hello.protocol())));
    sessions_.erase(session);
    return;
  }
  if (!mine.worker_id.empty()) return mine.close(FailedPrecondition("a second hello on one stream"));
  Entry& entry = workers_[hello.worker_id()];
  if (entry.session != 0 && entry.session != session) {
    auto old = sessions_.find(entry.session);
    if (old != sessions_.end()) {
      old->second.close(Aborted("the worker has a newer connection"));
      sessions_.erase(old);
      stores_.Lost(hello.worker_id());
    }
  }
  mine.worker_id = hello.worker_id();
  entry.session = session;
  entry.lost_timer = 0;
  entry.worker = {hello.worker_id(), hello.epoch(), hello.version(), hello.capacity(), true};
  LOG_INFO("worker connected",
           {{"worker_id", hello.worker_id()}, {"epoch", hello.epoch()}, {"tasks", hello.tasks_size()}});
  ToWorker message;
  Welcome* welcome = message.mutable_welcome();
  welcome->set_keep_epoch(hello.epoch());
  welcome->set_blob_base_url("http://169.254.77.1");
  events_->OnWorkerHello(hello.worker_id(), hello, welcome);
  mine.send(message);
  TakeBack(hello.worker_id(), hello);
  events_->OnWorkerReady(hello.worker_id());
}

// Builds and assets that were given to this worker and that it doesn't know (any more), and those that wait
// for a worker.
void WorkerRegistry::TakeBack(const std::string& worker_id, const WorkerHello& hello) {
  std::vector<std::string> gone;
  for (auto& [id, build] : builds_) {
    if (build.worker_id.empty()) {
      PlaceBuild(build);
    } else if (build.worker_id == worker_id &&
               std::find(hello.builds().begin(), hello.builds().end(), id) == hello.builds().end()) {
      gone.push_back(id);
    }
  }
  for (const std::string& id : gone) EndBuild(id, "the worker that ran the build was restarted");
  for (auto& [id, asset] : assets_) {
    if (asset.worker_id.empty() || asset.worker_id == worker_id) PlaceAsset(asset);
  }
  // A build that this control doesn't know: whoever asked for it is gone.
  for (const std::string& id : hello.builds()) {
    if (builds_.contains(id)) continue;
    ToWorker message;
    message.set_cancel_build(id);
    Send(worker_id, message);
  }
}

void WorkerRegistry::StreamEnded(uint64_t session) {
  auto it = sessions_.find(session);
  if (it == sessions_.end()) return;
  std::string worker_id = it->second.worker_id;
  sessions_.erase(it);
  auto entry = workers_.find(worker_id);
  if (entry == workers_.end() || entry->second.session != session) return;
  entry->second.session = 0;
  entry->second.worker.connected = false;
  stores_.Lost(worker_id);
  uint64_t timer = entry->second.lost_timer = next_timer_++;
  LOG_WARN("a worker's connection ended", {{"worker_id", worker_id}, {"grace_ms", grace_.count()}});
  strand_.PostAfter(grace_, [this, worker_id, timer] {
    auto late = workers_.find(worker_id);
    if (late != workers_.end() && late->second.lost_timer == timer) Lose(worker_id);
  });
}

void WorkerRegistry::Lose(const std::string& worker_id) {
  LOG_WARN("worker lost", {{"worker_id", worker_id}});
  workers_.erase(worker_id);
  events_->OnWorkerLost(worker_id);
  std::vector<std::string> gone;
  for (auto& [id, build] : builds_) {
    if (build.worker_id == worker_id) gone.push_back(id);
  }
  for (const std::string& id : gone) EndBuild(id, "the worker that ran the build was lost");
  for (auto& [id, asset] : assets_) {
    if (asset.worker_id == worker_id) PlaceAsset(asset);
  }
}

void WorkerRegistry::EndBuild(const std::string& build_id, const std::string& why) {
  auto build = builds_.find(build_id);
  auto on_update = build->second.on_update;
  builds_.erase(build);
  BuildUpdate update;
  update.set_build_id(build_id);
  update.mutable_result()->set_error(why);
  update.mutable_result()->set_retryable(true);
  on_update(update);
}

bool WorkerRegistry::Send(const std::string& worker_id, const ToWorker& message) {
  auto entry = workers_.find(worker_id);
  if (entry == workers_.end() || entry->second.session == 0) return false;
  sessions_[entry->second.session].send(message);
  return true;
}

const WorkerRegistry::Worker* WorkerRegistry::Find(const std::string& worker_id) const {
  auto entry = workers_.find(worker_id);
  return entry == workers_.end() ? nullptr : &entry->second.worker;
}

std::vector<const WorkerRegistry::Worker*> WorkerRegistry::all() const {
  std::vector<const Worker*> out;
  for (const auto& [id, entry] : workers_) out.push_back(&entry.worker);
  return out;
}

std::string WorkerRegistry::AnyWorker() const {
  std::string best;
  for (const auto& [id, entry] : workers_) {
    if (entry.session == 0) continue;
    if (best.empty() || workers_.at(best).worker.capacity.disk_low()) best = id;
  }
  return best;
}

void WorkerRegistry::PlaceBuild(Build& build) {
  build.worker_id = AnyWorker();
  if (build.worker_id.empty()) return;
  ToWorker message;
  *message.mutable_start_build() = build.spec;
  Send(build.worker_id, message);
}

void WorkerRegistry::PlaceAsset(Asset& asset) {
  asset.worker_id = AnyWorker();
  if (asset.worker_id.empty()) return;
  ToWorker message;
  *message.mutable_ensure_asset() = asset.request;
  Send(asset.worker_id, message);
}

void WorkerRegistry::StartBuild(const BuildSpec& spec, std::function<void(const BuildUpdate&)> on_update) {
  strand_.Post([this, spec, on_update = std::move(on_update)]() mutable {
    Build& build = builds_[spec.build_id()];
    build.spec = spec;
    build.on_update = std::move(on_update);
    PlaceBuild(build);
  });
}

void WorkerRegistry::CancelBuild(const std::string& build_id) {
  strand_.Post([this, build_id] {
    auto build = builds_.find(build_id);
    if (build == builds_.end()) return;
    if (!build->second.worker_id.empty()) {  // its result, cancelled, comes from the worker
      ToWorker message;
      message.set_cancel_build(build_id);
      Send(build->second.worker_id, message);
      return;
    }
    auto on_update = build->second.on_update;
    builds_.erase(build);
    BuildUpdate update;
    update.set_build_id(build_id);
    update.mutable_result()->set_cancelled(true);
    update.mutable_result()->set_error("the build was cancelled before it began");
    on_update(update);
  });
}

void WorkerRegistry::Ensure(EnsureAsset::Kind kind, const std::string& name,
                            std::function<void(Status)> done) {
  strand_.Post([this, kind, name, done = std::move(done)]() mutable {
    std::string id = std::to_string(static_cast<int>(kind)) + ":" + name;
    auto [it, fresh] = assets_.try_emplace(id);
    it->second.done.push_back(std::move(done));
    if (!fresh) return;
    it->second.request.set_request_id(id);
    it->second.request.set_kind(kind);
    it->second.request.set_name(name);
    PlaceAsset(it->second);
  });
}

void WorkerRegistry::TakeInventory(bool verify, std::function<void(Inventories)> reply) {
  strand_.Post([this, verify, reply = std::move(reply)] {
    struct Gathering {
      Inventories all;
      size_t missing = 1;  // ours, until all are asked
    };
    auto gathering = std::make_shared<Gathering>();
    auto one_less = [gathering, reply] {
      if (--gathering->missing == 0) reply(std::move(gathering->all));
    };
    for (const auto& [id, entry] : workers_) {
      if (!entry.worker.connected) continue;
      ++gathering->missing;
      stores_.Inventory(id, verify, [gathering, one_less, id](Result<StoreInventory> answer) {
        gathering->all.emplace(id, std::move(answer));
        one_less();
      });
    }
    one_less();
  });
}

void WorkerRegistry::Drop(const std::string& worker_id, const DropImages& what,
                          std::function<void(Result<StoreDropped>)> reply) {
  strand_.Post([this, worker_id, what, reply = std::move(reply)]() mutable {
    stores_.Drop(worker_id, what, std::move(reply));
  });
}

}  // namespace lydian::control
