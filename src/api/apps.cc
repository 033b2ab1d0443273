// Apps: made by a client, kept alive by its heartbeat, published, stopped.
#include <modal_proto/api.pb.h>

#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "api/handlers.h"
#include "api/log_pump.h"
#include "api/publish.h"
#include "api/task_specs.h"
#include "api/unbuilt.h"
#include "api/urls.h"
#include "base/ids.h"
#include "base/log.h"

namespace lydian::api {

namespace pb = modal::client;
using control::App;
using control::AppState;
using google::protobuf::Empty;

namespace {

constexpr size_t kMostTagBytes = 64 << 10;
constexpr size_t kMostMembers = 10'000;

template <typename Map>
Result<std::string> TagsJson(const Map& tags) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [key, value] : tags) json[key] = value;
  std::string text = json.dump();
  if (text.size() > kMostTagBytes) return InvalidArgument("the tags of an app may have 64 KiB in all");
  return text;
}

pb::AppLifecycle Lifecycle(const App& app) {
  pb::AppLifecycle lifecycle;
  lifecycle.set_app_state(static_cast<pb::AppState>(app.state));
  lifecycle.set_created_at(app.created_at);
  lifecycle.set_created_by(app.created_by);
  lifecycle.set_deployed_at(app.deployed_at);
  lifecycle.set_version(static_cast<int32_t>(app.version));
  lifecycle.set_stopped_at(app.stopped_at);
  return lifecycle;
}

Result<pb::AppHandleMetadata> Handle(const App& app, Call& call) {
  pb::AppHandleMetadata handle;
  handle.set_description(app.description);
  handle.set_app_id(app.id);
  handle.set_environment_name(app.environment);
  *handle.mutable_lifecycle() = Lifecycle(app);
  ASSIGN_OR_RETURN(auto members, call.objects().functions().Members(app.id, app.published));
  for (const auto& member : members) {
    if (IdPrefix(member.id) == "fu") (*handle.mutable_functions())[member.tag] = member.id;
  }
  return handle;
}

Result<pb::AppCreateResponse> Create(const pb::AppCreateRequest& request, Call& call) {
  AppState state = AppState::kEphemeral;
  switch (request.app_state()) {
    case pb::APP_STATE_UNSPECIFIED:
    case pb::APP_STATE_EPHEMERAL:
      break;
    case pb::APP_STATE_DETACHED:
      state = AppState::kDetached;
      break;
    case pb::APP_STATE_INITIALIZING:
      state = AppState::kInitializing;
      break;
    default:
      return InvalidArgument("an app begins as ephemeral, detached or initializing");
  }
  if (request.description().size() > 1024)
    return InvalidArgument("an app's description may have 1024 bytes at most");
  ASSIGN_OR_RETURN(auto environment,
                   call.objects().environments().Resolve(call.scope, request.environment_name()));
  ASSIGN_OR_RETURN(std::string tags, TagsJson(request.tags()));
  ASSIGN_OR_RETURN(
      App app, call.objects().apps().Create(call.scope, environment.id, request.description(), state, tags));
  if (Status noted = call.objects().tokens().Flush(); !noted.ok())
    LOG_WARN("could not note when tokens were used", {{"error", noted}});
  pb::AppCreateResponse response;
  response.set_app_id(app.id);
  response.set_app_page_url(PageUrl(call.services, *call.ctx, app.id));
  response.set_app_logs_url(response.app_page_url());
  return response;
}

// Everything that a publication names must be the app's own, and be defined.
Status CheckMembers(const App& app, const pb::AppPublishRequest& request, Call& call,
                    control::Apps::Publication* publication, std::vector<std::string>* changed) {
  auto& functions = call.objects().functions();
  for (const auto& [tag, id] : request.function_ids()) {
    ASSIGN_OR_RETURN(auto function, functions.Get(call.scope, id));
    if (function.app_id != app.id || !function.base_id.empty())
      return NotFound("the function " + id + " isn't of the app " + app.id);
    std::string definition = function.newest_definition;
    auto wanted = request.definition_ids().find(id);
    if (wanted != request.definition_ids().end() && !wanted->second.empty()) {
      control::Function pinned = function;
      pinned.active_definition = wanted->second;
      ASSIGN_OR_RETURN(auto found, functions.OutlineOf(pinned));
      if (found.function_id != id)
        return NotFound("the definition " + wanted->second.substr(0, 80) + " isn't one of " + id);
      definition = wanted->second;
    }
    if (definition.empty()) return FailedPrecondition("the function '" + tag + "' was never defined");
    if (!function.active_definition.empty() && function.active_definition != definition)
      changed->push_back(id);
    publication->members.emplace_back(tag, id);
    publication->definitions.emplace_back(id, definition);
  }
  for (const auto& [tag, id] : request.class_ids()) {
    ASSIGN_OR_RETURN(auto found, functions.GetClass(call.scope, id));
    if (found.app_id != app.id) return NotFound("the class " + id + " isn't of the app " + app.id);
    publication->members.emplace_back(tag, id);
  }
  return OkStatus();
}

Status CheckDeployName(const std::string& name) {
  bool good = !name.empty() && name.size() <= 64;
  for (char c : name)
    good = good && (isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.');
  if (good && !(name.size() == 25 && name.rfind("ap-", 0) == 0)) return OkStatus();
  return InvalidArgument("'" + name.substr(0, 80) +
                         "' can't name an app: 1 to 64 letters, digits, '-', '_' and '.'");
}

Result<pb::AppPublishResponse> Publish(const pb::AppPublishRequest& request, Call& call) {
  ASSIGN_OR_RETURN(App app, call.objects().apps().GetAlive(call.scope, request.app_id()));
  if (request.staged()) return NotBuilt(Feature::kAppHistory);
  if (!request.deployment_tag().empty()) return NotBuilt(Feature::kDeploymentTags);
  control::Apps::Publication publication;
  switch (request.app_state()) {
    case pb::APP_STATE_UNSPECIFIED:
    case pb::APP_STATE_EPHEMERAL:
    case pb::APP_STATE_DETACHED:
      break;  // as it was made
    case pb::APP_STATE_DEPLOYED:
      publication.state = AppState::kDeployed;
      publication.name = request.name().empty() ? app.name : request.name();
      RETURN_IF_ERROR(CheckDeployName(publication.name));
      break;
    default:
      return InvalidArgument("an app is published as ephemeral, detached or deployed");
  }
  publication.client_version = request.client_version();
  ASSIGN_OR_RETURN(publication.tags, TagsJson(request.tags()));
  if (request.function_ids().size() + request.class_ids().size() > kMostMembers) {
    return InvalidArgument("an app may have 10000 functions and classes");
  }
  std::vector<std::string> changed;
  RETURN_IF_ERROR(CheckMembers(app, request, call, &publication, &changed));
  ASSIGN_OR_RETURN(app, call.objects().apps().Publish(app, publication));
  RETURN_IF_ERROR(PutApp(call.services, app, changed));
  pb::AppPublishResponse response;
  ASSIGN_OR_RETURN(std::string unused, UnusedSettings(call.services, app));
  if (!unused.empty()) {
    auto& warning = *response.add_server_warnings();
    warning.set_type(pb::Warning::WARNING_TYPE_FUNCTION_CONFIGURATION);
    warning.set_message(unused);
  }
  response.set_url(PageUrl(call.services, *call.ctx, app.id));
  response.set_deployed_at(call.objects().clock().UnixSeconds());
  return response;
}

const char* ReasonText(pb::AppDisconnectReason reason) {
  switch (reason) {
    case pb::APP_DISCONNECT_REASON_KEYBOARD_INTERRUPT:
      return "its client was interrupted";
    case pb::APP_DISCONNECT_REASON_ENTRYPOINT_COMPLETED:
      return "its entrypoint has completed";
    case pb::APP_DISCONNECT_REASON_DEPLOYMENT_EXCEPTION:
      return "its deployment failed";
    case pb::APP_DISCONNECT_REASON_REMOTE_EXCEPTION:
      return "a function raised an exception";
    case pb::APP_DISCONNECT_REASON_LOCAL_EXCEPTION:
      return "its client raised an exception";
    default:
      return "its client has disconnected";
  }
}

// Asks the engine for each function's work; `reply(busy)` on the objects strand.
void WhetherBusy(ServicesPtr services, const std::string& app_id, std::function<void(bool)> reply) {
  std::vector<std::string> ids;
  auto members = services->objects->functions().Members(app_id, true);
  if (members.ok()) {
    for (const auto& member : *members) {
      if (IdPrefix(member.id) != "fu") continue;
      ids.push_back(member.id);
      auto bound = services->objects->functions().BoundTo(member.id);
      if (bound.ok()) {
        for (const auto& variant : *bound) ids.push_back(variant.id);
      }
    }
  }
  if (ids.empty()) return reply(false);
  struct Count {
    std::mutex mutex;  // guards both
    size_t left;
    bool busy = false;
  };
  auto count = std::make_shared<Count>();
  count->left = ids.size();
  for (const auto& id : ids) {
    services->engine->Stats(id, [services, count, reply](control::FunctionStats stats) {
      bool last, busy;
      {
        std::lock_guard lock(count->mutex);
        count->busy = count->busy || stats.queued > 0 || stats.running > 0;
        last = --count->left == 0;
        busy = count->busy;
      }
      if (last) services->objects->strand().Post([reply, busy] { reply(busy); });
    });
  }
}

// A detached app outlives an interrupted client, and one whose calls still run; an idle one ends with its
// entrypoint.
void LeaveDetached(ServicesPtr services, const App& app, pb::AppDisconnectReason reason) {
  auto keep = [services, app] {
    services->objects->apps().ForgetHeartbeat(app.id);
    if (Status set = services->objects->apps().SetState(app.id, AppState::kDetachedDisconnected); !set.ok()) {
      LOG_WARN("could not note that a client has gone", {{"app_id", app.id}, {"error", set}});
    }
    services->log_streams->End(app.id);
  };
  if (reason == pb::APP_DISCONNECT_REASON_KEYBOARD_INTERRUPT && app.published) return keep();
  WhetherBusy(services, app.id, [services, app, reason, keep](bool busy) {
    if (busy) return keep();
    if (Status stopped = services->objects->apps().Stop(app, ReasonText(reason)); !stopped.ok()) {
      LOG_WARN("could not stop an app", {{"app_id", app.id}, {"error", stopped}});
    }
  });
}

Result<Empty> Disconnect(const pb::AppClientDisconnectRequest& request, Call& call,
                         const ServicesPtr& services) {
  ASSIGN_OR_RETURN(App app, call.objects().apps().Get(call.scope, request.app_id()));
  switch (app.state) {
    case AppState::kEphemeral:
    case AppState::kInitializing:
      RETURN_IF_ERROR(call.objects().apps().Stop(app, ReasonText(request.reason())));
      break;
    case AppState::kDetached:
      LeaveDetached(services, app, request.reason());
      break;
    default:
      break;  // deployed apps stay, stopped ones are stopped
  }
  return Empty();
}

Result<Empty> StopApp(const pb::AppStopRequest& request, Call& call) {
  ASSIGN_OR_RETURN(App app, call.objects().apps().Get(call.scope, request.app_id()));
  RETURN_IF_ERROR(call.objects().apps().Stop(app, "it was stopped by " + call.scope.who));
  return Empty();
}

void List(const pb::AppListRequest& request, Call& call, const rpc::Reply<pb::AppListResponse>& reply) {
  auto environment = call.objects().environments().Resolve(call.scope, request.environment_name());
  if (!environment.ok()) return reply(environment.status());
  auto apps = call.objects().apps().List(environment->id);
  if (!apps.ok()) return reply(apps.status());
  pb::AppListResponse response;
  for (const App& app : *apps) {
    auto& item = *response.add_apps();
    item.set_app_id(app.id);
    item.set_description(app.title());
    item.set_name(app.name);
    item.set_state(static_cast<pb::AppState>(app.state));
    item.set_created_at(app.created_at);
    if (app.state == AppState::kStopped) item.set_stopped_at(app.stopped_at);
    auto handle = Handle(app, call);
    if (handle.ok()) *item.mutable_metadata() = *handle;
  }
  call.services.engine->Tasks(
      [response = std::move(response), reply](std::vector<control::TaskView> tasks) mutable {
        std::map<std::string, int> running;
        for (const auto& task : tasks) ++running[task.app_id];
        for (auto& item : *response.mutable_apps()) item.set_n_running_tasks(running[item.app_id()]);
        reply(response);
      });
}

Result<pb::AppGetByDeploymentNameResponse> GetByName(const pb::AppGetByDeploymentNameRequest& request,
                                                     Call& call) {
  ASSIGN_OR_RETURN(auto environment,
                   call.objects().environments().Resolve(call.scope, request.environment_name()));
  pb::AppGetByDeploymentNameResponse response;
  response.set_environment_name(environment.name);
  auto app = call.objects().apps().ByName(environment.id, request.name());
  if (app.ok()) {
    response.set_app_id(app->id);
  } else {
    app = call.objects().apps().ByName(environment.id, request.name(), /*stopped=*/true);
    if (app.ok()) response.set_previous_app_id(app->id);
  }
  if (app.ok()) *response.mutable_lifecycle() = Lifecycle(*app);
  return response;
}

Result<pb::AppGetOrCreateResponse> GetOrCreate(const pb::AppGetOrCreateRequest& request, Call& call) {
  auto& apps = call.objects().apps();
  const std::string& name = request.app_name();
  Result<App> app = NotFound("");
  if (name.size() == 25 && name.rfind("ap-", 0) == 0) {
    app = apps.Get(call.scope, name);
  } else {
    ASSIGN_OR_RETURN(auto environment,
                     call.objects().environments().Resolve(call.scope, request.environment_name()));
    app = apps.ByName(environment.id, name);
    if (!app.ok() && app.status().code() == Code::kNotFound) {
      if (request.object_creation_type() != pb::OBJECT_CREATION_TYPE_CREATE_IF_MISSING) {
        return NotFound("no app '" + name.substr(0, 80) + "' is deployed in the environment '" +
                        environment.name + "'");
      }
      RETURN_IF_ERROR(CheckDeployName(name));
      ASSIGN_OR_RETURN(App made,
                       apps.Create(call.scope, environment.id, name, AppState::kInitializing, "{}"));
      app = apps.Publish(made, {.state = AppState::kDeployed, .name = name, .tags = "{}"});
    }
  }
  if (!app.ok()) return app.status();
  pb::AppGetOrCreateResponse response;
  response.set_app_id(app->id);
  ASSIGN_OR_RETURN(*response.mutable_handle_metadata(), Handle(*app, call));
  return response;
}

Result<pb::AppGetInfoResponse> GetInfo(const pb::AppGetInfoRequest& request, Call& call) {
  ASSIGN_OR_RETURN(App app, call.objects().apps().Get(call.scope, request.app_id()));
  pb::AppGetInfoResponse response;
  ASSIGN_OR_RETURN(*response.mutable_info(), Handle(app, call));
  for (const auto& [tag, id] : response.info().functions()) {
    ASSIGN_OR_RETURN(auto function, call.objects().functions().ById(id));
    ASSIGN_OR_RETURN(auto definition, call.objects().functions().OutlineOf(function));
    pb::FunctionData data;
    if (!data.ParseFromString(definition.data)) return DataLoss("the definition of " + id + " is damaged");
    auto& summary = (*response.mutable_function_info_summaries())[id];
    if (data.has_schedule()) *summary.mutable_schedule() = data.schedule();
    if (data.ranked_functions_size() == 0) continue;
    const auto& resources = data.ranked_functions(0).function().resources();
    if (resources.has_gpu_config()) *summary.add_gpu_config() = resources.gpu_config();
  }
  return response;
}

}  // namespace

void RegisterApps(rpc::Router& router, ServicesPtr services) {
  const rpc::MethodOptions creates = {.idempotent = true};
  OnObjects<pb::AppCreateRequest, pb::AppCreateResponse>(router, services, "AppCreate", Who::kAnyone, Create,
                                                         creates);
  OnObjects<pb::AppHeartbeatRequest, Empty>(
      router, services, "AppHeartbeat", Who::kAnyone,
      [](const pb::AppHeartbeatRequest& request, Call& call) -> Result<Empty> {
        RETURN_IF_ERROR(call.objects().apps().Heartbeat(call.scope, request.app_id()));
        return Empty();
      });
  OnObjects<pb::AppPublishRequest, pb::AppPublishResponse>(router, services, "AppPublish", Who::kAnyone,
                                                           Publish, creates);
  OnObjects<pb::AppClientDisconnectRequest, Empty>(
      router, services, "AppClientDisconnect", Who::kAnyone,
      [services](const pb::AppClientDisconnectRequest& request, Call& call) {
        return Disconnect(request, call, services);
      });
  OnObjects<pb::AppStopRequest, Empty>(router, services, "AppStop", Who::kAnyone, StopApp);
  OnObjectsAsync<pb::AppListRequest, pb::AppListResponse>(router, services, "AppList", Who::kAnyone, List);
  OnObjects<pb::AppGetByDeploymentNameRequest, pb::AppGetByDeploymentNameResponse>(
      router, services, "AppGetByDeploymentName", Who::kAnyone, GetByName);
  OnObjects<pb::AppGetLayoutRequest, pb::AppGetLayoutResponse>(
      router, services, "AppGetLayout", Who::kAnyone,
      [](const pb::AppGetLayoutRequest& request, Call& call) -> Result<pb::AppGetLayoutResponse> {
        ASSIGN_OR_RETURN(App app, call.objects().apps().Get(call.scope, request.app_id()));
        pb::AppGetLayoutResponse response;
        ASSIGN_OR_RETURN(*response.mutable_app_layout(), LayoutOf(call.objects(), app, nullptr));
        return response;
      });
  OnObjects<pb::AppGetLifecycleRequest, pb::AppGetLifecycleResponse>(
      router, services, "AppGetLifecycle", Who::kAnyone,
      [](const pb::AppGetLifecycleRequest& request, Call& call) -> Result<pb::AppGetLifecycleResponse> {
        ASSIGN_OR_RETURN(App app, call.objects().apps().Get(call.scope, request.app_id()));
        pb::AppGetLifecycleResponse response;
        *response.mutable_lifecycle() = Lifecycle(app);
        return response;
      });
  OnObjects<pb::AppGetOrCreateRequest, pb::AppGetOrCreateResponse>(router, services, "AppGetOrCreate",
                                                                   Who::kAnyone, GetOrCreate, creates);
  OnObjects<pb::AppGetInfoRequest, pb::AppGetInfoResponse>(router, services, "AppGetInfo", Who::kAnyone,
                                                           GetInfo);
}

}  // namespace lydian::api
