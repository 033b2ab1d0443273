#include "control/worker_stores.h"

#include <utility>
#include <vector>

#include "base/ids.h"

namespace lydian::control {

void WorkerStores::Ask(const std::string& id, Question question, const ToWorker& message) {
  if (!send_(question.worker_id, message))
    return question.Fail(Unavailable("worker " + question.worker_id + " is not connected"));
  questions_.emplace(id, std::move(question));
}

void WorkerStores::Inventory(const std::string& worker_id, bool verify,
                             std::function<void(Result<StoreInventory>)> reply) {
  const std::string id = RandomHex(8);
  ToWorker message;
  message.mutable_take_inventory()->set_request_id(id);
  message.mutable_take_inventory()->set_verify(verify);
  Ask(id, {.worker_id = worker_id, .on_inventory = std::move(reply)}, message);
}

void WorkerStores::Drop(const std::string& worker_id, DropImages what,
                        std::function<void(Result<StoreDropped>)> reply) {
  const std::string id = RandomHex(8);
  ToWorker message;
  *message.mutable_drop_images() = std::move(what);
  message.mutable_drop_images()->set_request_id(id);
  Ask(id, {.worker_id = worker_id, .on_dropped = std::move(reply)}, message);
}

void WorkerStores::OnInventory(const StoreInventory& part) {
  auto found = questions_.find(part.request_id());
  if (found == questions_.end() || !found->second.on_inventory) return;
  found->second.inventory.MergeFrom(part);
  if (!part.last()) return;
  Question question = std::move(found->second);
  questions_.erase(found);
  question.on_inventory(std::move(question.inventory));
}

void WorkerStores::OnDropped(const StoreDropped& dropped) {
  auto found = questions_.find(dropped.request_id());
  if (found == questions_.end() || !found->second.on_dropped) return;
  Question question = std::move(found->second);
  questions_.erase(found);
  question.on_dropped(dropped);
}

void WorkerStores::Lost(const std::string& worker_id) {
  std::vector<Question> gone;
  for (auto it = questions_.begin(); it != questions_.end();) {
    if (it->second.worker_id != worker_id) {
      ++it;
      continue;
    }
    gone.push_back(std::move(it->second));
    it = questions_.erase(it);
  }
  for (const Question& question : gone) question.Fail(Unavailable("worker " + worker_id + " has gone"));
}

}  // namespace lydian::control
