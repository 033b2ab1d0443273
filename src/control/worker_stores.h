// Questions to workers about what they keep (layers, files), and their answers, which come in parts.
// Thread-safety: the engine's strand only.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "control/engine.h"

namespace lydian::control {

class WorkerStores {
 public:
  using Send = std::function<bool(const std::string& worker_id, const ToWorker& message)>;
  explicit WorkerStores(Send send) : send_(std::move(send)) {}

  void Inventory(const std::string& worker_id, bool verify,
                 std::function<void(Result<StoreInventory>)> reply);
  void Drop(const std::string& worker_id, DropImages what, std::function<void(Result<StoreDropped>)> reply);
  // An answer, or a part of one.
  void OnInventory(const StoreInventory& part);
  void OnDropped(const StoreDropped& dropped);
  // Its connection has ended: whoever waits for its answer is told.
  void Lost(const std::string& worker_id);

 private:
  struct Question {
    std::string worker_id;
    StoreInventory inventory;
    std::function<void(Result<StoreInventory>)> on_inventory;  // one of the two
    std::function<void(Result<StoreDropped>)> on_dropped;
    void Fail(const Status& why) const { on_inventory ? on_inventory(why) : on_dropped(why); }
  };
  void Ask(const std::string& id, Question question, const ToWorker& message);

  Send send_;
  std::map<std::string, Question> questions_;  // by request id
};

}  // namespace lydian::control
