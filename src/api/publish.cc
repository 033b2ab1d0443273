#include "api/publish.h"

#include <modal_proto/api.pb.h>

#include <algorithm>
#include <future>
#include <map>
#include <set>

#include "api/definitions.h"
#include "base/ids.h"
#include "base/log.h"

namespace lydian::api {

namespace pb = modal::client;

namespace {

constexpr size_t kMostNames = 200;  // bytes of functions' names beside one setting

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

Result<std::string> UnusedSettings(Services& services, const control::App& app) {
  std::map<std::string, std::string> unused;  // setting -> functions
  ASSIGN_OR_RETURN(auto members, services.objects->functions().Members(app.id, true));
  for (const auto& member : members) {
    if (IdPrefix(member.id) != "fu") continue;
    ASSIGN_OR_RETURN(auto function, services.objects->functions().ById(member.id));
    ASSIGN_OR_RETURN(auto definition, services.objects->functions().OutlineOf(function));
    pb::FunctionData data;  // without the pickled code
    if (!data.ParseFromString(definition.data))
      return DataLoss("the definition of " + member.id + " is damaged");
    if (data.ranked_functions_size() == 0) continue;
    const pb::Function& asked = data.ranked_functions(0).function();
    const auto& placement = asked.scheduler_placement();
    const auto& scaler = asked.autoscaler_settings();
    const std::pair<const char*, bool> settings[] = {
        {"region=", placement.regions_size() > 0},
        {"nonpreemptible=", placement.nonpreemptible()},
        {"cloud=", !asked.cloud_provider_str().empty()},
        {"scaleup_window=", scaler.scaleup_window() > 0},
        {"scaledown_rate_limit", scaler.scaledown_rate_limit() > 0},
        {"enable_memory_snapshot=", asked.checkpointing_enabled() || asked.is_checkpointing_function()},
        {"experimental_options=", asked.experimental_options_size() > 0}};
    for (const auto& [name, set] : settings) {
      if (!set) continue;
      std::string& names = unused[name];
      if (names.size() < kMostNames) names += (names.empty() ? "" : ", ") + member.tag;
    }
  }
  if (unused.empty()) return std::string();
  std::string text = "Without effect in this version of Lydian:";
  for (const auto& [name, names] : unused) {
    text += (text.back() == ':' ? " " : "; ") + name + " of " + names;
  }
  return text + ".";
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
