// The workers' connections: who is there, what they have, and the builds and assets that were asked of them.
// What concerns calls and tasks goes on to the engine (WorkerEvents).
//
// A stream begins with the worker's hello, our welcome, and what the worker holds at that moment: only then
// is anything sent to it, and what it says is taken. So both sides begin from the same state.
//
// A worker whose stream broke has a grace period to come back; its tasks go on meanwhile. A new stream of the
// same worker replaces the old one.
//
// Thread-safety: Open, Deliver, Closed and the Workers interface from any thread; the rest on the engine's
// strand.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "control/engine.h"
#include "control/worker_stores.h"
#include "sched/placement.h"

namespace lydian::control {

// On the strand.
class WorkerEvents {
 public:
  virtual ~WorkerEvents() = default;
  // `forget` is filled in. Afterwards OnWorkerReady, when messages can be sent.
  virtual void OnWorkerHello(const std::string& worker_id, const Holdings& held, ForgetTasks* forget) = 0;
  virtual void OnWorkerReady(const std::string& worker_id) = 0;
  virtual void OnWorkerMessage(const std::string& worker_id, FromWorker message) = 0;
  virtual void OnWorkerCapacity(const std::string& worker_id) = 0;
  // Not back within the grace period.
  virtual void OnWorkerLost(const std::string& worker_id) = 0;
};

class WorkerRegistry : public Workers {
 public:
  using SendFn = std::function<void(const ToWorker&)>;
  using CloseFn = std::function<void(Status)>;
  // Of what was sent and has not left yet. Without one, everything leaves at once.
  struct Backlog {
    std::function<size_t()> bytes;
    std::function<void(size_t limit, Task fn)> on_drained;  // below `limit`, or over; on any thread
  };

  struct Worker {
    std::string id;
    uint64_t epoch = 0;
    std::string version;
    WorkerCapacity capacity;
    bool connected = false;
  };

  WorkerRegistry(Strand& strand, Millis grace);
  void SetEvents(WorkerEvents* events) { events_ = events; }  // before the first Open

  // The link. A session is one stream; `send` and `close` are called on the strand and must not block.
  uint64_t Open(SendFn send, CloseFn close, Backlog backlog = {});
  void Deliver(uint64_t session, FromWorker message);
  void Closed(uint64_t session);

  // On the strand.
  bool Send(const std::string& worker_id, const ToWorker& message);  // false when it is not connected
  size_t Unsent(const std::string& worker_id) const;                 // bytes
  // Runs `fn` once on the strand when less than `limit` bytes are unsent, or the worker's stream is over.
  void OnDrained(const std::string& worker_id, size_t limit, Task fn);
  const Worker* Find(const std::string& worker_id) const;
  std::vector<const Worker*> all() const;

  // Workers.
  void StartBuild(const BuildSpec& spec, std::function<void(const BuildUpdate&)> on_update) override;
  void CancelBuild(const std::string& build_id) override;
  void Ensure(EnsureAsset::Kind kind, const std::string& name, std::function<void(Status)> done) override;
  void TakeInventory(bool verify, std::function<void(Inventories)> reply) override;
  void Drop(const std::string& worker_id, const DropImages& what,
            std::function<void(Result<StoreDropped>)> reply) override;

 private:
  struct Session {
    SendFn send;
    CloseFn close;
    Backlog backlog;
    WorkerHello hello;
    std::string worker_id;          // after hello
    Holdings held;                  // the pages that came
    bool settled = false;           // all came
    std::vector<FromWorker> early;  // what came before that
  };
  struct Entry {
    Worker worker;
    uint64_t session = 0;
    uint64_t lost_timer = 0;  // its generation; 0 = none runs
  };
  struct Build {
    BuildSpec spec;
    std::string worker_id;  // empty: waits for a worker
    std::function<void(const BuildUpdate&)> on_update;
  };
  struct Asset {
    EnsureAsset request;
    std::string worker_id;
    std::vector<std::function<void(Status)>> done;
  };

  void Hello(uint64_t session, const WorkerHello& hello);
  void Refuse(uint64_t session, Status why);
  void TakePage(uint64_t session, Holdings& page);
  void Settle(uint64_t session);
  void Handle(const std::string& worker_id, FromWorker message);
  void StreamEnded(uint64_t session);
  void Lose(const std::string& worker_id);
  void EndBuild(const std::string& build_id, const std::string& why);
  void PlaceBuild(Build& build);
  void PlaceAsset(Asset& asset);
  void TakeBack(const std::string& worker_id, const Holdings& held);
  std::string AnyWorker() const;

  Strand& strand_;
  const Millis grace_;
  WorkerEvents* events_ = nullptr;
  std::atomic<uint64_t> next_session_{1};
  // On the strand.
  std::unordered_map<uint64_t, Session> sessions_;
  std::map<std::string, Entry> workers_;
  std::map<std::string, Build> builds_;
  std::map<std::string, Asset> assets_;  // by request id: kind and name, so that two who ask for one share it
  uint64_t next_timer_ = 1;
  WorkerStores stores_{
      [this](const std::string& worker_id, const ToWorker& message) { return Send(worker_id, message); }};
};

}  // namespace lydian::control
