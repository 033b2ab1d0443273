// A gRPC server over connections that we accept ourselves, from listening sockets that may belong to somebody
// else (`up` keeps them over restarts). On each connection the first bytes decide: the HTTP/2 preface means
// gRPC, anything else goes to the HTTP/1.1 handler.
//
// Thread-safety: all methods. Ownership: the server owns accepted connections; listening sockets stay open
// after Stop.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"
#include "rpc/budget.h"
#include "rpc/router.h"

namespace lydian::http {
class Handler;
}

namespace lydian::rpc {

struct ServerOptions {
  std::shared_ptr<Router> router;
  std::shared_ptr<Authenticator> authenticator;  // one per server: it knows what kind of listener this is
  std::shared_ptr<http::Handler> http;           // null: HTTP/1.1 connections are closed
  size_t max_connections = 10'000;
  // Of a TCP listener: a connection of which no call was authenticated is closed after a while, and one
  // address may have so many of them; the oldest make room for new ones.
  Millis authenticate_within = Millis(30'000);
  size_t max_strangers_of_address = 512;
  uint32_t max_streams = 1'000;  // calls at once on a connection
  // While a connection has left so much of its answers unread, further calls on it wait; one that takes next
  // to nothing for so long is closed.
  size_t max_unread_bytes = size_t{64} << 20;
  Millis unread_for = Millis(60'000);
  // In which calls' bytes are counted; null: the process's own.
  std::shared_ptr<MemoryBudget> memory;
  uint32_t require_peer_uid = UINT32_MAX;  // unix sockets: only this uid
};

class Server {
 public:
  // Starts to accept from `listener` (TCP or unix), which is duplicated.
  static Result<std::unique_ptr<Server>> Start(ServerOptions options, int listener);
  virtual ~Server() = default;
  // Stops accepting, cancels what runs (OnCancel), closes connections. Returns when all handlers' replies are
  // dropped or `grace_ms` is over. Not from a handler.
  virtual void Stop(int grace_ms = 2000) = 0;
};

// "127.0.0.1:7070", "[::1]:7070", "unix:/path".
Result<UniqueFd> Listen(const std::string& address, int mode = 0600);

}  // namespace lydian::rpc
