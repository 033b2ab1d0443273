#include "api/publish.h"

#include <modal_proto/api.pb.h>

#include <algorithm>
#include <future>
#include <set>

#include "api/definitions.h"
#include "base/ids.h"
#include "base/log.h"

namespace lydian::api {

namespace pb = modal::client;

namespace {

Result<control::FunctionInfo> Info(Services& services, const control::Function& function,
                                   const std::string& environment) {
  ASSIGN_OR_RETURN(auto definition, services.objects->functions().DefinitionOf(function));
  ASSIGN_OR_RETURN(pb::Function effective, Effective(function, definition));
  return InfoOf(function, effective, environment);
}

Status RestoreApp(Services& services, const control::App& app) {
  ASSIGN_OR_RETURN(auto functions, services.objects->functions().OfApp(app.id));
  for (const auto& function : functions) {
    if (function.builder) RETURN_IF_ERROR(PutFunction(services, function.id, app.environment, false));
  }
  return app.published ? PutApp(services, app, {}) : OkStatus();
}

// Of definitions that were stored before references were.
Status NoteOldReferences(Services& services) {
  auto read = [](auto message) {
    return [message](const std::string& bytes) mutable {
      return message.ParseFromString(bytes) ? ReferencesOf(message) : std::vector<control::Reference>();
    };
  };
  return services.objects->functions().NoteOldReferences(read(pb::Function()), read(pb::FunctionOptions()));
}

Status Restore(Services& services) {
  RETURN_IF_ERROR(NoteOldReferences(services));
  ASSIGN_OR_RETURN(auto apps, services.objects->apps().Alive());
  for (const auto& app : apps) {
    // One damaged app must not keep the others down.
    if (Status restored = RestoreApp(services, app); !restored.ok()) {
      LOG_ERROR("an app could not be taken up again", {{"app_id", app.id}, {"error", restored}});
    }
  }
  RETURN_IF_ERROR(services.objects->apps().Resume());
  return services.objects->images().Resume();
}

}  // namespace

Status PutFunction(Services& services, const std::string& function_id, const std::string& environment,
                   bool replace_tasks) {
  ASSIGN_OR_RETURN(auto function, services.objects->functions().ById(function_id));
  ASSIGN_OR_RETURN(auto info, Info(services, function, environment));
  services.engine->PutFunction(info, replace_tasks);
  return OkStatus();
}

Status PutApp(Services& services, const control::App& app, const std::vector<std::string>& replace) {
  auto& functions = services.objects->functions();
  ASSIGN_OR_RETURN(auto members, functions.Members(app.id, true));
  std::set<std::string> published;
  for (const auto& member : members) {
    if (IdPrefix(member.id) != "fu") continue;
    published.insert(member.id);
    bool changed = std::find(replace.begin(), replace.end(), member.id) != replace.end();
    RETURN_IF_ERROR(PutFunction(services, member.id, app.environment, changed));
    ASSIGN_OR_RETURN(auto bound, functions.BoundTo(member.id));
    for (const auto& variant : bound)
      RETURN_IF_ERROR(PutFunction(services, variant.id, app.environment, changed));
  }
  ASSIGN_OR_RETURN(auto all, functions.OfApp(app.id));
  for (const auto& function : all) {
    if (function.builder || function.active_definition.empty() || published.count(function.id) > 0) continue;
    ASSIGN_OR_RETURN(auto info, Info(services, function, app.environment));
    info.min_containers = info.buffer_containers = 0;
    services.engine->PutFunction(info, true);
  }
  services.engine->ActivateApp(app.id);
  return OkStatus();
}

Status Start(const ServicesPtr& services) {
  auto promise = std::make_shared<std::promise<Status>>();
  auto answer = promise->get_future();
  services->objects->strand().Post([services, promise] { promise->set_value(Restore(*services)); });
  promise.reset();
  try {
    return answer.get();
  } catch (const std::future_error&) {
    return Unavailable("the server is stopping");
  }
}

}  // namespace lydian::api
