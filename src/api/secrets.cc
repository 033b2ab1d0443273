// Secrets: made, found by name, listed, changed. Values come in here and go out only to containers and
// builds.
#include <modal_proto/api.pb.h>

#include "api/handlers.h"

namespace lydian::api {

namespace pb = modal::client;
using google::protobuf::Empty;

namespace {

pb::SecretMetadata Metadata(const control::Secret& secret) {
  pb::SecretMetadata metadata;
  metadata.set_name(secret.name);
  metadata.set_environment_name(secret.environment);
  metadata.mutable_creation_info()->set_created_at(secret.created_at);
  metadata.mutable_creation_info()->set_created_by(secret.created_by);
  metadata.set_last_used_at(secret.last_used_at);
  for (const auto& key : secret.keys) metadata.add_keys(key);
  return metadata;
}

Result<control::Secret> FindOrCreate(const pb::SecretGetOrCreateRequest& request, Call& call) {
  auto& secrets = call.objects().secrets();
  control::EnvMap values(request.env_dict().begin(), request.env_dict().end());
  using Mode = control::Secrets::Mode;
  switch (request.object_creation_type()) {
    case pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP:
    case pb::OBJECT_CREATION_TYPE_EPHEMERAL: {
      std::string environment_id;
      if (!request.app_id().empty()) {
        ASSIGN_OR_RETURN(auto app, call.objects().apps().GetAlive(call.scope, request.app_id()));
        environment_id = app.environment_id;
      } else {
        ASSIGN_OR_RETURN(auto environment,
                         call.objects().environments().Resolve(call.scope, request.environment_name()));
        environment_id = environment.id;
      }
      return secrets.CreateAnonymous(call.scope, environment_id, request.app_id(), values);
    }
    default:
      break;
  }
  ASSIGN_OR_RETURN(auto environment,
                   call.objects().environments().Resolve(call.scope, request.environment_name()));
  const std::string& name = request.deployment_name();
  switch (request.object_creation_type()) {
    case pb::OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
      return secrets.CreateNamed(call.scope, environment.id, name, values, Mode::kFailIfExists);
    case pb::OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
      return secrets.CreateNamed(call.scope, environment.id, name, values, Mode::kOverwrite);
    case pb::OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
      return secrets.CreateNamed(call.scope, environment.id, name, values, Mode::kIfMissing);
    case pb::OBJECT_CREATION_TYPE_UNSPECIFIED:
      return secrets.Find(call.scope, environment.id, environment.name, name,
                          {request.required_keys().begin(), request.required_keys().end()});
    default:
      return InvalidArgument("unknown object_creation_type");
  }
}

Result<pb::SecretGetOrCreateResponse> GetOrCreate(const pb::SecretGetOrCreateRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto secret, FindOrCreate(request, call));
  pb::SecretGetOrCreateResponse response;
  response.set_secret_id(secret.id);
  *response.mutable_metadata() = Metadata(secret);
  return response;
}

Result<pb::SecretListResponse> List(const pb::SecretListRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto environment,
                   call.objects().environments().Resolve(call.scope, request.environment_name()));
  ASSIGN_OR_RETURN(auto secrets,
                   call.objects().secrets().List(environment.id, request.pagination().created_before(),
                                                 request.pagination().max_objects()));
  pb::SecretListResponse response;
  response.set_environment_name(environment.name);
  for (const auto& secret : secrets) {
    auto& item = *response.add_items();
    item.set_label(secret.name);
    item.set_secret_id(secret.id);
    item.set_created_at(secret.created_at);
    item.set_last_used_at(secret.last_used_at);
    item.set_environment_name(secret.environment);
    *item.mutable_metadata() = Metadata(secret);
  }
  return response;
}

Result<Empty> Update(const pb::SecretUpdateRequest& request, Call& call) {
  std::vector<std::pair<std::string, std::optional<std::string>>> changes;
  for (const auto& update : request.updates()) {
    changes.emplace_back(update.key(),
                         update.has_value() ? std::optional<std::string>(update.value()) : std::nullopt);
  }
  RETURN_IF_ERROR(call.objects().secrets().Update(call.scope, request.secret_id(), changes));
  return Empty();
}

}  // namespace

void RegisterSecrets(rpc::Router& router, ServicesPtr services) {
  OnObjects<pb::SecretGetOrCreateRequest, pb::SecretGetOrCreateResponse>(
      router, services, "SecretGetOrCreate", Who::kAnyone, GetOrCreate, {.idempotent = true});
  OnObjects<pb::SecretListRequest, pb::SecretListResponse>(router, services, "SecretList", Who::kAnyone,
                                                           List);
  OnObjects<pb::SecretDeleteRequest, Empty>(
      router, services, "SecretDelete", Who::kAnyone,
      [](const pb::SecretDeleteRequest& request, Call& call) -> Result<Empty> {
        RETURN_IF_ERROR(call.objects().secrets().Delete(call.scope, request.secret_id()));
        return Empty();
      },
      {.idempotent = true});
  OnObjects<pb::SecretUpdateRequest, Empty>(router, services, "SecretUpdate", Who::kAnyone, Update);
  OnObjects<pb::SecretGetInfoRequest, pb::SecretGetInfoResponse>(
      router, services, "SecretGetInfo", Who::kAnyone,
      [](const pb::SecretGetInfoRequest& request, Call& call) -> Result<pb::SecretGetInfoResponse> {
        ASSIGN_OR_RETURN(auto secret, call.objects().secrets().Get(call.scope, request.secret_id()));
        pb::SecretGetInfoResponse response;
        *response.mutable_metadata() = Metadata(secret);
        return response;
      });
}

}  // namespace lydian::api
