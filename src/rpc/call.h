// The gRPC side of the router: runs one call. Private to call.cc and server.cc.
#pragma once

#include <memory>

#include "rpc/connection.h"
#include "rpc/router_impl.h"

namespace lydian::rpc {

// What the calls of one server share. Outlives the calls.
struct CallHost {
  std::shared_ptr<Router> router;
  std::shared_ptr<Authenticator> authenticator;
  std::shared_ptr<Outstanding> outstanding;
  bool unix_socket = false;
};

// Runs the call that `stream` brings. On the loop's thread.
std::shared_ptr<StreamListener> StartCall(const std::shared_ptr<CallHost>& host,
                                          std::shared_ptr<H2Stream> stream, Headers request);

}  // namespace lydian::rpc
