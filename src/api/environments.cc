// Environments, workspace, tokens: who am I, where do my objects live.
#include "control/environments.h"

#include <modal_proto/api.pb.h>

#include <memory>

#include "api/handlers.h"
#include "api/unbuilt.h"
#include "base/ids.h"

namespace lydian::api {

namespace pb = modal::client;
using google::protobuf::Empty;

namespace {

constexpr int64_t kAuthTokenSeconds = 3600;

pb::EnvironmentListItem Item(const control::Environment& environment) {
  pb::EnvironmentListItem item;
  item.set_name(environment.name);
  item.set_environment_id(environment.id);
  item.set_webhook_suffix(environment.webhook_suffix);
  item.set_created_at(environment.created_at);
  item.set_default_(environment.is_default);
  item.set_image_builder_version(environment.builder_version);
  item.set_environment_type(pb::ENVIRONMENT_TYPE_PUBLIC);
  return item;
}

Result<pb::EnvironmentGetOrCreateResponse> GetOrCreate(const pb::EnvironmentGetOrCreateRequest& request,
                                                       Call& call) {
  const std::string& name = request.deployment_name();
  auto& environments = call.objects().environments();
  Result<control::Environment> found = environments.Resolve(call.scope, name);
  if (request.object_creation_type() == pb::OBJECT_CREATION_TYPE_CREATE_IF_MISSING &&
      found.status().code() == Code::kNotFound) {
    if (call.from_task()) return PermissionDenied("a container can't make environments");
    found = environments.Create(call.scope.workspace_id, name, name, "");
  }
  if (!found.ok()) return found.status();
  pb::EnvironmentGetOrCreateResponse response;
  response.set_environment_id(found->id);
  auto& metadata = *response.mutable_metadata();
  metadata.set_name(found->name);
  metadata.set_environment_type(pb::ENVIRONMENT_TYPE_PUBLIC);
  metadata.mutable_settings()->set_image_builder_version(found->builder_version);
  metadata.mutable_settings()->set_webhook_suffix(found->webhook_suffix);
  return response;
}

Result<pb::EnvironmentListItem> Update(const pb::EnvironmentUpdateRequest& request, Call& call) {
  if (request.has_max_concurrent_tasks() || request.has_max_concurrent_gpus()) {
    return NotBuilt(Feature::kEnvironmentLimits);
  }
  if (request.has_block_unauthenticated_resources()) return NotBuilt(Feature::kRestrictedEnvironments);
  control::Environments::Change change;
  if (request.has_name()) change.name = request.name().value();
  if (request.has_web_suffix()) change.webhook_suffix = request.web_suffix().value();
  if (request.has_image_builder_version()) change.builder_version = request.image_builder_version();
  ASSIGN_OR_RETURN(auto changed, call.objects().environments().Update(call.scope.workspace_id,
                                                                      request.current_name(), change));
  return Item(changed);
}

Result<pb::TokenInfoGetResponse> TokenInfo(const pb::TokenInfoGetRequest&, Call& call) {
  ASSIGN_OR_RETURN(auto token, call.objects().tokens().Get(call.caller().token_id));
  pb::TokenInfoGetResponse response;
  response.set_token_id(token.token_id);
  response.set_token_name(token.name);
  response.set_workspace_id(token.workspace_id);
  response.set_workspace_name(token.workspace);
  response.mutable_user_identity()->set_user_id(token.workspace_id);
  response.mutable_user_identity()->set_username(token.workspace);
  response.mutable_created_at()->set_seconds(static_cast<int64_t>(token.created_at));
  return response;
}

// Three parts with an `exp`, as the client reads it; signed with the installation's key so that a later use
// can check it.
Result<pb::AuthTokenGetResponse> AuthToken(const pb::AuthTokenGetRequest&, Call& call) {
  int64_t expires = call.objects().clock().UnixNanos() / 1'000'000'000 + kAuthTokenSeconds;
  std::string subject = call.from_task() ? call.caller().task_id : call.caller().token_id;
  std::string text = Base64UrlEncode(R"({"alg":"HS256","typ":"JWT"})") + "." +
                     Base64UrlEncode("{\"exp\":" + std::to_string(expires) + ",\"sub\":\"" + subject + "\"}");
  pb::AuthTokenGetResponse response;
  response.set_token(text + "." + Base64UrlEncode(call.objects().key().Mac("auth token", text)));
  return response;
}

// Ends the apps that live there first; what is deployed there meanwhile keeps it from being deleted.
void Delete(const pb::EnvironmentDeleteRequest& request, Call& call, const rpc::Reply<Empty>& reply) {
  const std::string key = AnswerKey(call);
  Empty earlier;
  if (!key.empty() && FindAnswer(call, key, &earlier)) return reply(earlier);
  auto kept = std::make_shared<Call>(call);
  auto finish = [kept, name = request.name(), key, reply] {
    Status gone = kept->objects().environments().Delete(kept->scope.workspace_id, name);
    if (!gone.ok()) return reply(gone);
    if (!key.empty()) KeepAnswer(*kept, key, Empty());
    reply(Empty());
  };
  auto environment = call.objects().environments().ByName(call.scope.workspace_id, request.name());
  if (!environment.ok() || environment->is_default) return finish();  // it says why not
  auto apps = call.objects().apps().List(environment->id);
  if (!apps.ok()) return reply(apps.status());
  auto left = std::make_shared<size_t>(1);  // on the strand, as everything here
  auto stopped = [left, finish] {
    if (--*left == 0) finish();
  };
  for (const auto& app : *apps) {
    ++*left;
    Status stopping =
        call.objects().apps().Stop(app, "its environment was deleted by " + call.scope.who, stopped);
    if (!stopping.ok()) return reply(stopping);
  }
  stopped();
}

}  // namespace

void RegisterEnvironments(rpc::Router& router, ServicesPtr services) {
  OnObjects<pb::EnvironmentGetOrCreateRequest, pb::EnvironmentGetOrCreateResponse>(
      router, services, "EnvironmentGetOrCreate", Who::kAnyone, GetOrCreate);
  OnObjects<Empty, pb::EnvironmentListResponse>(
      router, services, "EnvironmentList", Who::kUser,
      [](const Empty&, Call& call) -> Result<pb::EnvironmentListResponse> {
        ASSIGN_OR_RETURN(auto all, call.objects().environments().List(call.scope.workspace_id));
        pb::EnvironmentListResponse response;
        for (const auto& environment : all) *response.add_items() = Item(environment);
        return response;
      });
  OnObjects<pb::EnvironmentCreateRequest, Empty>(
      router, services, "EnvironmentCreate", Who::kUser,
      [](const pb::EnvironmentCreateRequest& request, Call& call) -> Result<Empty> {
        if (request.is_managed()) return NotBuilt(Feature::kRestrictedEnvironments);
        const auto& settings = request.settings();
        std::string suffix = settings.webhook_suffix().empty() ? request.name() : settings.webhook_suffix();
        auto made = call.objects().environments().Create(call.scope.workspace_id, request.name(), suffix,
                                                         settings.image_builder_version());
        if (!made.ok()) return made.status();
        return Empty();
      },
      {.idempotent = true});
  OnObjects<pb::EnvironmentUpdateRequest, pb::EnvironmentListItem>(router, services, "EnvironmentUpdate",
                                                                   Who::kUser, Update);
  OnObjectsAsync<pb::EnvironmentDeleteRequest, Empty>(router, services, "EnvironmentDelete", Who::kUser,
                                                      Delete, {.idempotent = true});
  OnObjects<Empty, pb::ClientHelloResponse>(
      router, services, "ClientHello", Who::kAnyone,
      [](const Empty&, Call& call) -> Result<pb::ClientHelloResponse> {
        ASSIGN_OR_RETURN(auto environment, call.objects().environments().Resolve(call.scope, ""));
        pb::ClientHelloResponse response;
        response.set_image_builder_version(environment.builder_version);
        return response;
      });
  OnObjects<pb::AuthTokenGetRequest, pb::AuthTokenGetResponse>(router, services, "AuthTokenGet", Who::kAnyone,
                                                               AuthToken);
  OnObjects<pb::TokenInfoGetRequest, pb::TokenInfoGetResponse>(router, services, "TokenInfoGet", Who::kUser,
                                                               TokenInfo);
  OnObjects<Empty, pb::WorkspaceNameLookupResponse>(
      router, services, "WorkspaceNameLookup", Who::kAnyone,
      [](const Empty&, Call& call) -> Result<pb::WorkspaceNameLookupResponse> {
        ASSIGN_OR_RETURN(std::string name, call.objects().tokens().WorkspaceName(call.scope.workspace_id));
        pb::WorkspaceNameLookupResponse response;
        response.set_username(name);
        return response;
      });
}

}  // namespace lydian::api
