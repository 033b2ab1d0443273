// Who calls, by the listener that it came by: users on TCP, containers and workers on the worker's link, root
// on the admin socket. Thread-safety: every method from any thread; none blocks.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "control/tokens.h"
#include "rpc/router.h"

namespace lydian::api {

// TCP: x-modal-token-id and x-modal-token-secret.
class ApiAuthenticator : public rpc::Authenticator {
 public:
  explicit ApiAuthenticator(control::Tokens* tokens) : tokens_(tokens) {}
  Result<rpc::Caller> Authenticate(const Headers& headers, std::string_view method,
                                   const rpc::MethodOptions& options) override;

 private:
  control::Tokens* tokens_;
};

// The worker's connection. With x-lydian-task it speaks for that container, which `lookup` (thread-safe, not
// blocking) turns into {workspace_id, environment, restricted}; NOT_FOUND for a task that isn't alive.
class LinkAuthenticator : public rpc::Authenticator {
 public:
  using Lookup = std::function<Result<rpc::Caller>(const std::string& task_id)>;
  explicit LinkAuthenticator(Lookup lookup) : lookup_(std::move(lookup)) {}
  Result<rpc::Caller> Authenticate(const Headers& headers, std::string_view method,
                                   const rpc::MethodOptions& options) override;

 private:
  Lookup lookup_;
};

// A unix socket that only uid 0 can use.
class AdminAuthenticator : public rpc::Authenticator {
 public:
  Result<rpc::Caller> Authenticate(const Headers& headers, std::string_view method,
                                   const rpc::MethodOptions& options) override;
};

}  // namespace lydian::api
