#include "api/auth.h"

#include "rpc/restricted.h"

namespace lydian::api {

Result<rpc::Caller> ApiAuthenticator::Authenticate(const Headers& headers, std::string_view method,
                                                   const rpc::MethodOptions& options) {
  std::string_view id = headers("x-modal-token-id"), secret = headers("x-modal-token-secret");
  if (options.anonymous && (id.empty() || secret.empty())) return rpc::Caller{};
  if (options.task_only) return PermissionDenied(std::string(method) + " is a container's own call");
  auto token = tokens_->Authenticate(id, secret);
  if (!token.ok()) return token.status();
  rpc::Caller caller;
  caller.kind = rpc::Caller::Kind::kUser;
  caller.workspace_id = token->workspace_id;
  caller.token_id = token->token_id;
  return caller;
}

Result<rpc::Caller> LinkAuthenticator::Authenticate(const Headers& headers, std::string_view method,
                                                    const rpc::MethodOptions&) {
  std::string task_id(headers("x-lydian-task"));
  if (task_id.empty()) {
    rpc::Caller worker;
    worker.kind = rpc::Caller::Kind::kWorker;
    worker.unix_socket = true;
    return worker;
  }
  auto caller = lookup_(task_id);
  if (!caller.ok()) return caller.status();
  caller->kind = rpc::Caller::Kind::kTask;
  caller->task_id = task_id;
  caller->unix_socket = true;
  if (caller->restricted) RETURN_IF_ERROR(rpc::CheckRestricted(method));
  return caller;
}

Result<rpc::Caller> AdminAuthenticator::Authenticate(const Headers&, std::string_view,
                                                     const rpc::MethodOptions&) {
  rpc::Caller root;
  root.kind = rpc::Caller::Kind::kRoot;
  root.unix_socket = true;
  return root;
}

}  // namespace lydian::api
