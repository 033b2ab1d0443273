// The one thread of the process that serves gRPC's connections: it waits for them, and what reads a message
// also runs its handler and writes the answer. A hand-over to another thread costs more than most handlers
// do.
//
// Thread-safety: all functions, but FlushLater. Private to the module.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/executor.h"
#include "base/fd.h"
#include "rpc/mailbox.h"

namespace lydian::rpc {

class Loop {
 public:
  // A socket that is watched. Called on the loop's thread, and not after Remove on that thread.
  class Watched {
   public:
    virtual ~Watched() = default;
    virtual void Ready(uint32_t events) = 0;  // as epoll has them, level-triggered
    virtual void Flush() = 0;                 // once for any number of FlushLater
  };

  // The process's one, started at first use; never destroyed.
  static Loop& Get();
  // On the loop's thread nothing may wait for an answer that comes by a connection.
  bool OnThread() const;
  void Post(Task task) { mailbox_.Post(std::move(task)); }

  // `write` as well as reading: EPOLLOUT.
  uint64_t Add(int fd, std::shared_ptr<Watched> watched, bool write);
  void WantWrite(int fd, uint64_t id, bool write);
  void Remove(int fd, uint64_t id);

  // On the loop's thread: flushes `watched` when all that has come in by now is dealt with, so that what
  // answers it goes out together.
  void FlushLater(std::shared_ptr<Watched> watched) { dirty_.push_back(std::move(watched)); }

 private:
  Loop();
  void Run();
  void Handle(uint64_t id, uint32_t events);
  void FlushDirty();

  UniqueFd epoll_;
  Mailbox mailbox_;
  std::mutex mutex_;  // guards the two below
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<Watched>> watched_;
  std::vector<std::shared_ptr<Watched>> dirty_;  // of the thread
};

}  // namespace lydian::rpc
