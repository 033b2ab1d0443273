#include "api/task_specs.h"

#include <modal_proto/api.pb.h>

#include <future>
#include <memory>
#include <set>

#include "api/definitions.h"
#include "base/ids.h"

namespace lydian::api {

namespace pb = modal::client;

namespace {

// Those of the app's workspace: FunctionCreate has checked them, of an older version it may not have.
Status AddDependencies(control::Objects& objects, const control::App& app, const pb::Function& definition,
                       pb::AppLayout* layout) {
  const control::Scope scope{app.workspace_id, "", ""};
  std::set<std::string> known;
  for (const auto& object : layout->objects()) known.insert(object.object_id());
  for (const auto& dependency : definition.object_dependencies()) {
    if (!known.insert(dependency.object_id()).second) continue;
    pb::Object& object = *layout->add_objects();
    object.set_object_id(dependency.object_id());
    std::string_view prefix = IdPrefix(dependency.object_id());
    if (prefix == "mo") {
      ASSIGN_OR_RETURN(auto mount, objects.mounts().Get(scope, dependency.object_id()));
      object.mutable_mount_handle_metadata()->set_content_checksum_sha256_hex(mount.checksum);
    } else if (prefix == "fu") {  // of another app
      ASSIGN_OR_RETURN(auto function, objects.functions().Get(scope, dependency.object_id()));
      if (!object.mutable_function_handle_metadata()->ParseFromString(function.handle)) {
        return DataLoss("the handle of " + function.id + " is damaged");
      }
    } else if (prefix == "cs") {
      object.mutable_class_handle_metadata();
    }
  }
  return OkStatus();
}

}  // namespace

Result<pb::AppLayout> LayoutOf(control::Objects& objects, const control::App& app,
                               const pb::Function* definition) {
  pb::AppLayout layout;
  ASSIGN_OR_RETURN(auto members, objects.functions().Members(app.id, app.published));
  for (const auto& member : members) {
    pb::Object& object = *layout.add_objects();
    object.set_object_id(member.id);
    if (IdPrefix(member.id) == "cs") {
      object.mutable_class_handle_metadata();
      (*layout.mutable_class_ids())[member.tag] = member.id;
      continue;
    }
    ASSIGN_OR_RETURN(auto function, objects.functions().ById(member.id));
    auto defined = objects.functions().OutlineOf(function);
    const std::string& handle = defined.ok() ? defined->handle : function.handle;
    if (!object.mutable_function_handle_metadata()->ParseFromString(handle)) {
      return DataLoss("the handle of " + member.id + " is damaged");
    }
    (*layout.mutable_function_ids())[member.tag] = member.id;
  }
  if (definition != nullptr) RETURN_IF_ERROR(AddDependencies(objects, app, *definition, &layout));
  return layout;
}

Result<TaskSpec> TaskSpecs::MakeTaskSpec(const std::string& function_id) {
  if (objects_->strand().OnStrand()) return Make(function_id);
  // Shared, since a strand that stops drops what waits; the promise's destruction then wakes us.
  auto promise = std::make_shared<std::promise<Result<TaskSpec>>>();
  auto answer = promise->get_future();
  objects_->strand().Post([this, function_id, promise] { promise->set_value(Make(function_id)); });
  promise.reset();
  try {
    return answer.get();
  } catch (const std::future_error&) {
    return Unavailable("the server is stopping");
  }
}

Result<TaskSpec> TaskSpecs::Make(const std::string& function_id) {
  ASSIGN_OR_RETURN(auto function, objects_->functions().ById(function_id));
  ASSIGN_OR_RETURN(auto app, objects_->apps().ById(function.app_id));
  ASSIGN_OR_RETURN(auto stored, objects_->functions().DefinitionOf(function));
  ASSIGN_OR_RETURN(pb::Function definition, Effective(function, stored));
  if (definition.is_builder_function()) {  // one input, then it ends by itself and its layer is taken
    definition.set_single_use_containers(true);
    definition.set_max_inputs(1);
  }
  ASSIGN_OR_RETURN(pb::AppLayout layout, LayoutOf(*objects_, app, &definition));
  ASSIGN_OR_RETURN(auto image, objects_->images().ById(definition.image_id()));
  if (image.state == control::ImageState::kLost) RETURN_IF_ERROR(objects_->images().Rebuild(image.id));
  if (image.state == control::ImageState::kLost || image.state == control::ImageState::kBuilding)
    return Unavailable("the image " + image.id + " is being built again: layers of it were gone");
  if (image.state != control::ImageState::kReady)
    return FailedPrecondition("the image " + image.id + " isn't built");
  control::FunctionInfo info = InfoOf(function, definition, app.environment);

  TaskSpec spec;
  spec.set_function_id(function_id);
  spec.set_app_id(app.id);
  spec.set_function_name(function.tag);
  spec.set_app_name(app.title());
  spec.set_environment_name(app.environment);
  spec.set_workspace_id(app.workspace_id);
  spec.set_function_def(definition.SerializeAsString());
  spec.set_app_layout(layout.SerializeAsString());
  spec.set_serialized_params(function.params);
  *spec.mutable_image() = image.spec;
  spec.mutable_image()->set_builder_version(image.builder_version);
  for (const auto& mount_id : definition.mount_ids()) {
    ASSIGN_OR_RETURN(auto mount, objects_->mounts().ById(mount_id));
    if (mount.client_version.empty()) {
      spec.add_mount_ids(mount_id);
    } else {
      spec.set_client_version(mount.client_version);
    }
  }
  std::vector<std::string> secrets(definition.secret_ids().begin(), definition.secret_ids().end());
  ASSIGN_OR_RETURN(auto env, objects_->secrets().Values(secrets));
  for (const auto& [key, value] : env) (*spec.mutable_env())[key] = value;
  *spec.mutable_limits() = info.limits;
  spec.set_slots(info.slots);
  spec.set_batch_max_size(info.batch_max_size);
  spec.set_batch_linger_ms(info.batch_linger_ms);
  spec.set_startup_timeout_secs(info.startup_timeout_secs);
  spec.set_timeout_secs(info.timeout_secs);
  spec.set_restrict_modal_access(definition.untrusted());
  spec.set_commit_layer(definition.is_builder_function());
  spec.set_single_use(info.single_use);
  return spec;
}

}  // namespace lydian::api
