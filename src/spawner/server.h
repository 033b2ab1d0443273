// The spawner process: parent of everything that runs in a container. It keeps containers, their descriptors
// and their exits while workers come and go, and hands them out over a unix socket. One thread, one epoll
// loop; between requests it fills the runtime's pools, one unit at a time, so that a request never waits for
// more than that.
//
// Not thread-safe; the process that runs it has no other thread. It takes every child's exit status
// (waitpid(-1)) while Run() waits for events, never during a call of the runtime. Ownership: the server owns
// the runtime and all containers. Errors: a bad frame ends its connection; Run() fails only when the loop
// itself can't go on.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "runtime/runtime.h"

namespace lydian::spawner {

struct ServerOptions {
  UniqueFd listener;  // a unix stream socket that listens
  std::string instance;
  uint32_t peer_uid = 0;  // whoever connects must have it
};

class Server {
 public:
  // Blocks SIGCHLD, SIGTERM and SIGINT: they are read from a descriptor from here on. Makes this process a
  // child subreaper.
  static Result<std::unique_ptr<Server>> Create(ServerOptions options,
                                                std::unique_ptr<runtime::Runtime> runtime);
  virtual ~Server() = default;
  // Until SIGTERM or SIGINT; then ends and removes all containers (bounded) and returns.
  virtual Status Run() = 0;
};

}  // namespace lydian::spawner
