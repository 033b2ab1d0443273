// Functions and classes: precreated, defined, looked up, bound to parameters and options.
#include <modal_proto/api.pb.h>

#include "api/definitions.h"
#include "api/handlers.h"
#include "api/publish.h"
#include "api/unbuilt.h"
#include "base/ids.h"

namespace lydian::api {

namespace pb = modal::client;

namespace {

constexpr size_t kMostPickled = 32 << 20;

// The objects that a definition names must be there for this caller, before anything stands on them.
Status CheckReferences(const pb::Function& function, Call& call) {
  ASSIGN_OR_RETURN(auto image, call.objects().images().Get(call.scope, function.image_id()));
  if (image.state != control::ImageState::kReady)
    return FailedPrecondition("the image " + image.id + " isn't built");
  for (const auto& id : function.mount_ids())
    RETURN_IF_ERROR(call.objects().mounts().Get(call.scope, id).status());
  for (const auto& id : function.secret_ids())
    RETURN_IF_ERROR(call.objects().secrets().Get(call.scope, id).status());
  for (const auto& dependency : function.object_dependencies()) {
    const std::string& id = dependency.object_id();
    std::string_view prefix = IdPrefix(id);
    if (prefix == "mo") RETURN_IF_ERROR(call.objects().mounts().Get(call.scope, id).status());
    if (prefix == "fu") RETURN_IF_ERROR(call.objects().functions().Get(call.scope, id).status());
    if (prefix == "cs") RETURN_IF_ERROR(call.objects().functions().GetClass(call.scope, id).status());
  }
  return OkStatus();
}

Status CheckTag(const std::string& tag) {
  if (!tag.empty() && tag.size() <= 512) return OkStatus();
  return InvalidArgument("a function needs a name of at most 512 characters");
}

Result<pb::FunctionPrecreateResponse> Precreate(const pb::FunctionPrecreateRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto app, call.objects().apps().GetAlive(call.scope, request.app_id()));
  RETURN_IF_ERROR(CheckTag(request.function_name()));
  pb::Function probe;
  probe.set_function_name(request.function_name());
  *probe.mutable_webhook_config() = request.webhook_config();
  *probe.mutable_method_definitions() = request.method_definitions();
  RETURN_IF_ERROR(CheckSupported(probe));
  pb::FunctionHandleMetadata handle = HandleOf(request);
  ASSIGN_OR_RETURN(auto function, call.objects().functions().Precreate(app.id, request.function_name(),
                                                                       request.existing_function_id(),
                                                                       handle.SerializeAsString()));
  pb::FunctionPrecreateResponse response;
  response.set_function_id(function.id);
  *response.mutable_handle_metadata() = std::move(handle);
  return response;
}

Result<pb::FunctionCreateResponse> Create(const pb::FunctionCreateRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto app, call.objects().apps().GetAlive(call.scope, request.app_id()));
  pb::Function definition = request.function();
  if (!request.has_function()) {
    if (request.function_data().ranked_functions().empty())
      return InvalidArgument("the request defines no function");
    definition = request.function_data().ranked_functions(0).function();
  }
  RETURN_IF_ERROR(CheckSupported(definition));
  RETURN_IF_ERROR(CheckReferences(definition, call));
  if (definition.function_serialized().size() + definition.class_serialized().size() > kMostPickled) {
    return InvalidArgument(
        "the pickled code of a function may have 32 MiB; load large data inside the function instead");
  }
  bool deploys = app.state == control::AppState::kDeployed || app.state == control::AppState::kInitializing;
  bool scheduled = definition.schedule().schedule_oneof_case() != pb::Schedule::SCHEDULE_ONEOF_NOT_SET;
  if (scheduled && deploys)
    return NotBuilt(Feature::kSchedules).With("function '" + definition.function_name().substr(0, 200) + "'");

  auto& functions = call.objects().functions();
  RETURN_IF_ERROR(CheckTag(definition.function_name()));
  ASSIGN_OR_RETURN(auto function, functions.Precreate(app.id, definition.function_name(),
                                                      request.existing_function_id(), ""));
  control::Definition added;
  added.id = NewId("de");
  pb::FunctionHandleMetadata handle = HandleOf(definition, function.tag, app.id, added.id);
  pb::FunctionData data = DataOf(definition);
  added.function = definition.SerializeAsString();
  added.data = data.SerializeAsString();
  added.handle = handle.SerializeAsString();
  added.references = ReferencesOf(definition);
  bool builder = definition.is_builder_function();
  RETURN_IF_ERROR(functions.Define(function.id, std::move(added), builder, /*activate=*/builder).status());
  if (builder) RETURN_IF_ERROR(PutFunction(call.services, function.id, app.environment, false));

  pb::FunctionCreateResponse response;
  response.set_function_id(function.id);
  *response.mutable_function() = data.ranked_functions(0).function();
  *response.mutable_function_data() = std::move(data);
  *response.mutable_handle_metadata() = std::move(handle);
  if (scheduled) {
    auto& warning = *response.add_server_warnings();
    warning.set_type(pb::Warning::WARNING_TYPE_FUNCTION_CONFIGURATION);
    warning.set_message("The schedule of " + function.tag +
                        " doesn't fire: schedules aren't built yet in this version of Lydian.");
  }
  return response;
}

struct Found {
  control::Function function;
  pb::FunctionHandleMetadata handle;
  pb::FunctionData data;
};

Result<Found> Describe(const control::Function& function, Call& call) {
  Found found;
  found.function = function;
  ASSIGN_OR_RETURN(auto definition, call.objects().functions().DefinitionOf(function));
  if (!found.handle.ParseFromString(definition.handle) || !found.data.ParseFromString(definition.data)) {
    return DataLoss("the definition of " + function.id + " is damaged");
  }
  found.handle.set_base_function_id(function.base_id.empty() ? function.id : function.base_id);
  if (!function.base_id.empty()) {
    ASSIGN_OR_RETURN(pb::Function effective, Effective(function, definition));
    found.data = DataOf(effective);
  }
  return found;
}

// The app that is deployed under a name, with an error for people.
Result<control::App> Deployed(const std::string& name, const std::string& environment_name, int version,
                              Call& call) {
  ASSIGN_OR_RETURN(auto environment, call.objects().environments().Resolve(call.scope, environment_name));
  auto app = call.objects().apps().ByName(environment.id, name);
  if (!app.ok()) {
    return NotFound("no app '" + name.substr(0, 80) + "' is deployed in the environment '" +
                    environment.name + "'");
  }
  if (version != 0 && static_cast<uint32_t>(version) != app->version) {
    return Unimplemented("older versions of an app can't be called yet; '" + app->name + "' is at version " +
                         std::to_string(app->version));
  }
  return app;
}

Result<std::string> MemberOf(const control::App& app, const std::string& tag, Call& call) {
  auto id = call.objects().functions().MemberId(app.id, tag);
  if (!id.ok()) {
    return NotFound("the app '" + app.name + "' in the environment '" + app.environment + "' has no '" +
                    tag.substr(0, 80) + "'");
  }
  return id;
}

Result<pb::FunctionGetResponse> Get(const pb::FunctionGetRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto app,
                   Deployed(request.app_name(), request.environment_name(), request.app_version(), call));
  ASSIGN_OR_RETURN(std::string id, MemberOf(app, request.object_tag(), call));
  if (IdPrefix(id) != "fu")
    return NotFound("'" + request.object_tag().substr(0, 80) + "' is a class; look it up with Cls.from_name");
  ASSIGN_OR_RETURN(auto function, call.objects().functions().Get(call.scope, id));
  ASSIGN_OR_RETURN(Found found, Describe(function, call));
  pb::FunctionGetResponse response;
  response.set_function_id(id);
  *response.mutable_handle_metadata() = std::move(found.handle);
  *response.mutable_function() = std::move(found.data);
  return response;
}

Result<pb::FunctionGetByIdResponse> GetById(const pb::FunctionGetByIdRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto function, call.objects().functions().Get(call.scope, request.function_id()));
  ASSIGN_OR_RETURN(Found found, Describe(function, call));
  pb::FunctionGetByIdResponse response;
  *response.mutable_handle_metadata() = std::move(found.handle);
  *response.mutable_function() = std::move(found.data);
  return response;
}

Result<pb::FunctionBindParamsResponse> Bind(const pb::FunctionBindParamsRequest& request, Call& call) {
  auto& functions = call.objects().functions();
  ASSIGN_OR_RETURN(auto base, functions.Get(call.scope, request.function_id()));
  const auto& options = request.function_options();
  RETURN_IF_ERROR(CheckSupported(options));
  for (const auto& id : options.mount_ids())
    RETURN_IF_ERROR(call.objects().mounts().Get(call.scope, id).status());
  for (const auto& id : options.secret_ids())
    RETURN_IF_ERROR(call.objects().secrets().Get(call.scope, id).status());
  if (request.serialized_params().size() > (size_t{16} << 20))
    return InvalidArgument("parameters of a class may be 16 MiB at most");
  ASSIGN_OR_RETURN(auto app, call.objects().apps().GetAlive(call.scope, base.app_id));
  // Fields come in the order of their numbers and there is no map among them, so equal options have equal
  // bytes.
  ASSIGN_OR_RETURN(auto bound, functions.Bind(base, request.serialized_params(), options.SerializeAsString(),
                                              ReferencesOf(options)));
  ASSIGN_OR_RETURN(Found found, Describe(bound, call));
  RETURN_IF_ERROR(PutFunction(call.services, bound.id, app.environment, false));
  pb::FunctionBindParamsResponse response;
  response.set_bound_function_id(bound.id);
  *response.mutable_handle_metadata() = std::move(found.handle);
  return response;
}

Result<pb::ClassCreateResponse> CreateClass(const pb::ClassCreateRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto app, call.objects().apps().GetAlive(call.scope, request.app_id()));
  if (!request.only_class_function() && request.methods_size() > 0) {
    return Unimplemented(
        "classes with a function for each method came from clients before 1.6; use modal 1.6");
  }
  ASSIGN_OR_RETURN(auto made, call.objects().functions().CreateClass(app.id, request.existing_class_id()));
  pb::ClassCreateResponse response;
  response.set_class_id(made.id);
  response.mutable_handle_metadata();
  return response;
}

Result<pb::ClassGetResponse> GetClass(const pb::ClassGetRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto app,
                   Deployed(request.app_name(), request.environment_name(), request.app_version(), call));
  ASSIGN_OR_RETURN(std::string id, MemberOf(app, request.object_tag(), call));
  if (IdPrefix(id) != "cs")
    return NotFound("'" + request.object_tag().substr(0, 80) + "' is a function, not a class");
  pb::ClassGetResponse response;
  response.set_class_id(id);
  response.mutable_handle_metadata();
  return response;
}

}  // namespace

void RegisterFunctions(rpc::Router& router, ServicesPtr services) {
  const rpc::MethodOptions creates = {.idempotent = true};
  OnObjects<pb::FunctionPrecreateRequest, pb::FunctionPrecreateResponse>(
      router, services, "FunctionPrecreate", Who::kAnyone, Precreate, creates);
  OnObjects<pb::FunctionCreateRequest, pb::FunctionCreateResponse>(router, services, "FunctionCreate",
                                                                   Who::kAnyone, Create, creates);
  OnObjects<pb::FunctionGetRequest, pb::FunctionGetResponse>(router, services, "FunctionGet", Who::kAnyone,
                                                             Get);
  OnObjects<pb::FunctionGetByIdRequest, pb::FunctionGetByIdResponse>(router, services, "FunctionGetById",
                                                                     Who::kAnyone, GetById);
  OnObjects<pb::FunctionBindParamsRequest, pb::FunctionBindParamsResponse>(
      router, services, "FunctionBindParams", Who::kAnyone, Bind);
  OnObjects<pb::ClassCreateRequest, pb::ClassCreateResponse>(router, services, "ClassCreate", Who::kAnyone,
                                                             CreateClass, creates);
  OnObjects<pb::ClassGetRequest, pb::ClassGetResponse>(router, services, "ClassGet", Who::kAnyone, GetClass);
}

}  // namespace lydian::api
