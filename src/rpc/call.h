// The gRPC side of the router: runs one call. Private to call.cc and server.cc.
#pragma once

#include <grpc/grpc.h>

#include <memory>

#include "rpc/router_impl.h"

namespace lydian::rpc {

// What the calls of one server share. Outlives the calls.
struct CallHost {
  std::shared_ptr<Router> router;
  std::shared_ptr<Authenticator> authenticator;
  std::shared_ptr<Outstanding> outstanding;
  bool unix_socket = false;
};

// Takes over `call`. On the poller's thread. Copies what it needs of the other two.
void StartCall(const std::shared_ptr<CallHost>& host, grpc_call* call, const grpc_call_details& details,
               const grpc_metadata_array& metadata);

}  // namespace lydian::rpc
