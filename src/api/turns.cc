#include "api/turns.h"

#include <utility>

namespace lydian::api {

void Turns::Take(const std::string& workspace, Begin begin) {
  queues_[workspace].waiting.push_back(std::move(begin));
  Next();
}

void Turns::Next() {
  // Round and round, beginning behind whose turn it was.
  for (size_t passed = 0; running_ < at_once_ && passed < queues_.size();) {
    auto it = queues_.upper_bound(last_);
    if (it == queues_.end()) it = queues_.begin();
    last_ = it->first;
    Queue& queue = it->second;
    if (queue.waiting.empty() || queue.running >= at_once_of_one_) {
      ++passed;
      continue;
    }
    passed = 0;
    Begin begin = std::move(queue.waiting.front());
    queue.waiting.pop_front();
    ++queue.running;
    ++running_;
    begin({nullptr, [weak = weak_from_this(), strand = strand_, workspace = last_](void*) {
             strand->Post([weak, workspace] {
               if (const auto self = weak.lock()) self->Ended(workspace);
             });
           }});
  }
}

void Turns::Ended(const std::string& workspace) {
  auto it = queues_.find(workspace);
  --it->second.running;
  --running_;
  if (it->second.running == 0 && it->second.waiting.empty()) queues_.erase(it);
  Next();
}

}  // namespace lydian::api
