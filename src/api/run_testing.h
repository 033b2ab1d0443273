// A workspace's client, an app with a function, and the worker behind them: what the tests of the API's
// objects begin with. The client's messages are included before it, by the test: they are not for headers.
#pragma once

#include "api/auth.h"
#include "api/testing.h"

namespace lydian::api {

namespace pb = modal::client;

using google::protobuf::Empty;

class RunTest : public ApiTest {
 protected:
  std::string NewApp(pb::AppState state = pb::APP_STATE_EPHEMERAL, const std::string& environment = "") {
    pb::AppCreateRequest request;
    request.set_description("hello.py");
    request.set_app_state(state);
    request.set_environment_name(environment);
    auto response = Ask<pb::AppCreateResponse>("AppCreate", request);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? response->app_id() : "";
  }

  pb::ImageGetOrCreateRequest ImageRequest(const std::string& app_id,
                                           const std::string& line = "FROM python:3.11.12-slim-bookworm") {
    pb::ImageGetOrCreateRequest request;
    request.set_app_id(app_id);
    request.set_builder_version("2025.06");
    request.mutable_image()->add_dockerfile_commands(line);
    return request;
  }

  static BuildUpdate Ready(const std::string& layer) {
    BuildUpdate update;
    update.mutable_result()->set_ok(true);
    auto& image = *update.mutable_result()->mutable_image();
    image.add_layer_ids(layer);
    image.set_python_version("3.11.2");
    image.mutable_config()->set_workdir("/root");
    return update;
  }

  std::string BuiltImage(const std::string& app_id) {
    auto request = ImageRequest(app_id);
    auto response = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
    EXPECT_TRUE(response.ok()) << response.status();
    if (response->result().status() == pb::GenericResult::GENERIC_STATUS_SUCCESS) return response->image_id();
    workers_.Build(workers_.count() - 1).second(Ready("ly-1"));
    OnStrand([] { return 0; });
    response = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
    EXPECT_EQ(response->result().status(), pb::GenericResult::GENERIC_STATUS_SUCCESS);
    return response->image_id();
  }

  std::string ClientMount() {
    pb::MountGetOrCreateRequest request;
    request.set_deployment_name("modal-client-mount-1.6.4");
    request.set_namespace_(pb::DEPLOYMENT_NAMESPACE_GLOBAL);
    auto response = Ask<pb::MountGetOrCreateResponse>("MountGetOrCreate", request);
    EXPECT_TRUE(response.ok()) << response.status();
    return response->mount_id();
  }

  Result<std::string> SourceMount(const std::string& app_id, const std::string& data) {
    pb::MountPutFileRequest put;
    put.set_sha256_hex(Sha256Hex(data));
    put.set_data(data);
    auto stored = Ask<pb::MountPutFileResponse>("MountPutFile", put);
    if (!stored.ok()) return stored.status();
    EXPECT_TRUE(stored->exists());
    pb::MountGetOrCreateRequest request;
    request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP);
    request.set_app_id(app_id);
    auto& file = *request.add_files();
    file.set_filename("/root/hello.py");
    file.set_sha256_hex(Sha256Hex(data));
    auto response = Ask<pb::MountGetOrCreateResponse>("MountGetOrCreate", request);
    if (!response.ok()) return response.status();
    return response->mount_id();
  }

  pb::Function Definition(const std::string& app_id) {
    pb::Function function;
    function.set_module_name("hello");
    function.set_function_name("f");
    function.set_image_id(BuiltImage(app_id));
    function.add_mount_ids(ClientMount());
    function.set_function_type(pb::Function::FUNCTION_TYPE_FUNCTION);
    function.set_timeout_secs(120);
    function.mutable_resources()->set_memory_mb(256);
    function.mutable_resources()->set_memory_mb_max(512);
    return function;
  }

  Result<pb::FunctionCreateResponse> Create(const std::string& app_id, const pb::Function& definition,
                                            const std::string& existing = "") {
    std::string id = existing;
    if (id.empty()) {
      pb::FunctionPrecreateRequest pre;
      pre.set_app_id(app_id);
      pre.set_function_name(definition.function_name());
      auto made = Ask<pb::FunctionPrecreateResponse>("FunctionPrecreate", pre);
      if (!made.ok()) return made.status();
      EXPECT_EQ(made->handle_metadata().function_name(), definition.function_name());
      id = made->function_id();
    }
    pb::FunctionCreateRequest request;
    request.set_app_id(app_id);
    request.set_existing_function_id(id);
    *request.mutable_function() = definition;
    return Ask<pb::FunctionCreateResponse>("FunctionCreate", request);
  }

  Result<pb::AppPublishResponse> Publish(const std::string& app_id,
                                         const pb::FunctionCreateResponse& function,
                                         pb::AppState state = pb::APP_STATE_EPHEMERAL,
                                         const std::string& name = "") {
    pb::AppPublishRequest request;
    request.set_app_id(app_id);
    request.set_app_state(state);
    request.set_name(name);
    (*request.mutable_function_ids())["f"] = function.function_id();
    (*request.mutable_definition_ids())[function.function_id()] = function.handle_metadata().definition_id();
    return Ask<pb::AppPublishResponse>("AppPublish", request);
  }
};

}  // namespace lydian::api
