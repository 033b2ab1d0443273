// A few at once of what is costly; beyond that each workspace waits in a queue of its own, and they take
// turns, so that one which asks for much waits for itself.
//
// Thread-safety: Take on the strand alone; a turn may be given back from any thread. Ownership: shared; what
// waits is dropped with it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/executor.h"

namespace lydian::api {

class Turns : public std::enable_shared_from_this<Turns> {
 public:
  using Begin = std::function<void(std::shared_ptr<void> turn)>;  // lasts as long as `turn` is held

  Turns(Strand* strand, size_t at_once, size_t at_once_of_one)
      : strand_(strand), at_once_(at_once), at_once_of_one_(at_once_of_one) {}

  // Calls `begin` when it is its turn, perhaps at once; on the strand.
  void Take(const std::string& workspace, Begin begin);

 private:
  struct Queue {
    size_t running = 0;
    std::deque<Begin> waiting;
  };

  void Next();
  void Ended(const std::string& workspace);

  Strand* const strand_;
  const size_t at_once_, at_once_of_one_;
  size_t running_ = 0;
  std::map<std::string, Queue> queues_;  // of workspaces with something in them
  std::string last_;                     // whose turn it was
};

}  // namespace lydian::api
