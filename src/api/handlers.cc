#include "api/handlers.h"

#include "api/log_pump.h"
#include "api/turns.h"
#include "api/unbuilt.h"
#include "base/log.h"

namespace lydian::api {
namespace {

// A page is 1 MiB; what a scan finds may be 16, and exists three times while it is made an answer.
constexpr struct {
  size_t at_once, of_workspace;
} kLogPages{16, 8}, kLogScans{4, 2}, kClientMounts{2, 1};

}  // namespace

Result<control::Scope> ScopeOf(Services& services, const rpc::Context& ctx, Who who) {
  const rpc::Caller& caller = ctx.caller();
  control::Scope scope;
  scope.workspace_id = caller.workspace_id;
  switch (caller.kind) {
    case rpc::Caller::Kind::kUser: {
      auto token = services.objects->tokens().Get(caller.token_id);
      scope.who = token.ok() && !token->name.empty() ? token->name : caller.token_id;
      return scope;
    }
    case rpc::Caller::Kind::kTask: {
      if (who == Who::kUser) return PermissionDenied(std::string(ctx.method()) + " is not for containers");
      ASSIGN_OR_RETURN(control::Environment own,
                       services.objects->environments().ByName(caller.workspace_id, caller.environment));
      scope.environment_id = own.id;
      scope.who = caller.task_id;
      return scope;
    }
    default:
      return PermissionDenied(std::string(ctx.method()) + " needs a user's token");
  }
}

std::string AnswerKey(Call& call) {
  std::string_view key = call.ctx->header("x-idempotency-key");
  if (key.empty()) return "";
  const rpc::Caller& caller = call.caller();
  return control::Answers::KeyOf(caller.workspace_id, call.from_task() ? caller.task_id : caller.token_id,
                                 call.ctx->method(), key);
}

bool FindAnswer(Call& call, const std::string& key, google::protobuf::MessageLite* answer) {
  auto found = call.objects().answers().Find(key);
  if (!found.ok()) LOG_WARN("could not look for an earlier answer", {{"error", found.status()}});
  return found.ok() && found->has_value() && answer->ParseFromString(**found);
}

void KeepAnswer(Call& call, const std::string& key, const google::protobuf::MessageLite& answer) {
  Status kept = call.objects().answers().Keep(key, answer.SerializeAsString());
  if (!kept.ok()) LOG_WARN("could not keep an answer", {{"method", call.ctx->method()}, {"error", kept}});
}

void RegisterObjects(rpc::Router& router, ServicesPtr services) {
  services->log_streams = std::make_shared<LogStreams>();
  if (services->objects != nullptr) {  // null where only the table of methods is wanted
    services->objects->apps().SetPresence(
        [streams = services->log_streams](const std::string& app_id) { return streams->Followed(app_id); });
    Strand* strand = &services->objects->strand();
    services->log_pages = std::make_shared<Turns>(strand, kLogPages.at_once, kLogPages.of_workspace);
    services->client_mounts =
        std::make_shared<Turns>(strand, kClientMounts.at_once, kClientMounts.of_workspace);
    services->log_scans = std::make_shared<Turns>(strand, kLogScans.at_once, kLogScans.of_workspace);
  }
  services->files = std::make_shared<Pool>("files", 2);
  router.SetUnknownText(UnbuiltText);
  RegisterEnvironments(router, services);
  RegisterApps(router, services);
  RegisterAppLogs(router, services);
  RegisterFunctions(router, services);
  RegisterMounts(router, services);
  RegisterImages(router, services);
  RegisterSecrets(router, services);
  RegisterBlobs(router, services);
  RegisterTasks(router, services);
}

}  // namespace lydian::api
