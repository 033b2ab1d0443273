// The gRPC side of the router: makes a reactor for each call. Private to call.cc and server.cc, which alone
// see grpc:: types.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

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

grpc::ServerGenericBidiReactor* StartCall(const std::shared_ptr<CallHost>& host,
                                          grpc::GenericCallbackServerContext* context);

}  // namespace lydian::rpc
