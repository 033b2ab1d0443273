#include "api/auth.h"

#include <algorithm>
#include <array>

namespace lydian::api {

namespace {

// What a container with restrict_modal_access may ask for besides what its worker answers: payloads of its
// own inputs.
constexpr std::array<std::string_view, 6> kOwnTask = {"BlobCreate",
                                                      "BlobGet",
                                                      "FunctionCallGetDataIn",
                                                      "FunctionCallPutDataOut",
                                                      "FunctionGetDynamicConcurrency",
                                                      "TaskResult"};

}  // namespace

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
  if (caller->restricted && std::find(kOwnTask.begin(), kOwnTask.end(), method) == kOwnTask.end()) {
    return PermissionDenied(std::string(method) +
                            " is not open to this container: it was made with restrict_modal_access=True");
  }
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
