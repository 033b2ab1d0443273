#include "control/worker_registry.h"

#include <algorithm>

#include "base/log.h"

namespace lydian::control {
namespace {
constexpr uint32_t kProtocol = 2;
constexpr size_t kMostEarly = 1024;
}  // namespace

WorkerRegistry::WorkerRegistry(Strand& strand, Millis grace) : strand_(strand), grace_(grace) {}

uint64_t WorkerRegistry::Open(SendFn send, CloseFn close, Backlog backlog) {
  uint64_t id = next_session_.fetch_add(1);
  auto session = std::make_shared<Session>();
  session->send = std::move(send);
  session->close = std::move(close);
  session->backlog = std::move(backlog);
  strand_.Post([this, id, session] { sessions_[id] = std::move(*session); });
  return id;
}

void WorkerRegistry::Deliver(uint64_t session, FromWorker message) {
  auto shared = std::make_shared<FromWorker>(std::move(message));
  strand_.Run([this, session, shared] {
    auto it = sessions_.find(session);
    if (it == sessions_.end()) return;  // replaced by a newer stream
    Session& from = it->second;
    if (shared->has_hello()) return Hello(session, shared->hello());
    if (from.worker_id.empty()) return Refuse(session, FailedPrecondition("a worker says hello first"));
    if (shared->has_holdings()) return TakePage(session, *shared->mutable_holdings());
    if (from.settled) return Handle(std::string(from.worker_id), std::move(*shared));
    if (from.early.size() >= kMostEarly)
      return Refuse(session, FailedPrecondition("a worker says what it holds before anything else"));
    from.early.push_back(std::move(*shared));
  });
}

void WorkerRegistry::Handle(const std::string& worker_id, FromWorker in) {
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
}

void WorkerRegistry::Closed(uint64_t session) {
  strand_.Post([this, session] { StreamEnded(session); });
}

void WorkerRegistry::Refuse(uint64_t session, Status why) {
  LOG_WARN("a worker's stream is ended", {{"worker_id", sessions_[session].worker_id}, {"why", why}});
  sessions_[session].close(std::move(why));
  StreamEnded(session);
}

void WorkerRegistry::Hello(uint64_t session, const WorkerHello& hello) {
  Session& from = sessions_[session];
  if (hello.protocol() != kProtocol || hello.worker_id().empty()) {
    return Refuse(session,
                  FailedPrecondition("this control speaks worker protocol " + std::to_string(kProtocol) +
                                     ", the worker " + std::to_string(hello.protocol())));
  }
  if (!from.worker_id.empty()) return Refuse(session, FailedPrecondition("a second hello on one stream"));
  from.worker_id = hello.worker_id();
  from.hello = hello;
  ToWorker message;
  Welcome* welcome = message.mutable_welcome();
  welcome->set_keep_epoch(hello.epoch());
  welcome->set_blob_base_url("http://169.254.77.1");
  from.send(message);
}

void WorkerRegistry::TakePage(uint64_t session, Holdings& page) {
  Session& from = sessions_[session];
  if (from.settled) return Refuse(session, FailedPrecondition("a worker says once what it holds"));
  for (RunningTask& task : *page.mutable_tasks()) {
    const int known = from.held.tasks_size();
    if (known > 0 && from.held.tasks(known - 1).task_id() == task.task_id()) {
      from.held.mutable_tasks(known - 1)->mutable_held()->MergeFrom(task.held());
    } else {
      *from.held.add_tasks() = std::move(task);
    }
  }
  from.held.mutable_builds()->MergeFrom(page.builds());
  if (page.last()) Settle(session);
}

void WorkerRegistry::Settle(uint64_t session) {
  Session& mine = sessions_[session];
  mine.settled = true;
  const std::string worker_id = mine.worker_id;
  const WorkerHello hello = std::move(mine.hello);
  const Holdings held = std::move(mine.held);
  std::vector<FromWorker> early = std::move(mine.early);
  Entry& entry = workers_[worker_id];
  if (auto old = sessions_.find(entry.session); old != sessions_.end() && entry.session != session) {
    old->second.close(Aborted("the worker has a newer connection"));
    sessions_.erase(old);
    stores_.Lost(worker_id);
  }
  entry.session = session;
  entry.lost_timer = 0;
  entry.worker = {worker_id, hello.epoch(), hello.version(), hello.capacity(), true};
  LOG_INFO("worker connected",
           {{"worker_id", worker_id}, {"epoch", hello.epoch()}, {"tasks", held.tasks_size()}});
  ToWorker message;
  events_->OnWorkerHello(worker_id, held, message.mutable_forget());
  if (message.forget().task_ids_size() > 0) Send(worker_id, message);
  TakeBack(worker_id, held);
  events_->OnWorkerReady(worker_id);
  for (FromWorker& in : early) Handle(worker_id, std::move(in));
}

// Builds and assets that were given to this worker and that it doesn't know (any more), and those that wait
// for a worker.
void WorkerRegistry::TakeBack(const std::string& worker_id, const Holdings& held) {
  std::vector<std::string> gone;
  for (auto& [id, build] : builds_) {
    if (build.worker_id.empty()) {
      PlaceBuild(build);
    } else if (build.worker_id == worker_id &&
               std::find(held.builds().begin(), held.builds().end(), id) == held.builds().end()) {
      gone.push_back(id);
    }
  }
  for (const std::string& id : gone) EndBuild(id, "the worker that ran the build was restarted");
  for (auto& [id, asset] : assets_) {
    if (asset.worker_id.empty() || asset.worker_id == worker_id) PlaceAsset(asset);
  }
  // A build that this control doesn't know: whoever asked for it is gone.
  for (const std::string& id : held.builds()) {
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

size_t WorkerRegistry::Unsent(const std::string& worker_id) const {
  auto entry = workers_.find(worker_id);
  auto session = entry == workers_.end() ? sessions_.end() : sessions_.find(entry->second.session);
  return session == sessions_.end() || !session->second.backlog.bytes ? 0 : session->second.backlog.bytes();
}

void WorkerRegistry::OnDrained(const std::string& worker_id, size_t limit, Task fn) {
  auto entry = workers_.find(worker_id);
  auto session = entry == workers_.end() ? sessions_.end() : sessions_.find(entry->second.session);
  if (session == sessions_.end() || !session->second.backlog.on_drained) return strand_.Post(std::move(fn));
  session->second.backlog.on_drained(limit,
                                     [this, fn = std::move(fn)]() mutable { strand_.Post(std::move(fn)); });
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
