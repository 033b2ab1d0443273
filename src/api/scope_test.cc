// An id of another workspace and one that doesn't exist get the same answer, word for word: ids tell nothing.
// And what one workspace announces to upload.
#include <modal_proto/api.pb.h>

#include "api/run_testing.h"

namespace lydian::api {
namespace {

class ScopeTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    auto token = objects_->tokens().Create("other", "");
    ASSERT_TRUE(token.ok());
    stranger_ = user_;
    stranger_.token_id = token->token_id;
    stranger_.workspace_id = objects_->tokens().Get(token->token_id)->workspace_id;
    strangers_app_ = StrangersApp();
  }
  std::string StrangersApp() {
    pb::AppCreateRequest request;
    request.set_description("theirs");
    request.set_app_state(pb::APP_STATE_EPHEMERAL);
    auto app = CallAs<pb::AppCreateResponse>(stranger_, "AppCreate", request);
    EXPECT_TRUE(app.ok()) << app.status();
    return app.ok() ? app->app_id() : "";
  }

  static std::string Unknown(const std::string& id) {
    std::string prefix(IdPrefix(id));
    return prefix == "ta" ? NewTaskId() : NewId(prefix);
  }
  // Code and text, with the id that was asked for masked.
  static std::string Masked(const Status& status, const std::string& id) {
    std::string text = std::string(CodeName(status.code())) + ": " + status.message();
    for (size_t at; (at = text.find(id)) != text.npos;) text.replace(at, id.size(), "<id>");
    return text;
  }
  static void ExpectSame(const std::string& what, const std::string& foreign, const Status& of_foreign,
                         const std::string& unknown, const Status& of_unknown) {
    EXPECT_FALSE(of_foreign.ok()) << what << " does something to " << foreign;
    EXPECT_EQ(Masked(of_foreign, foreign), Masked(of_unknown, unknown)) << what;
  }

  // `set(request, id)` names the object.
  template <typename Request, typename Response, typename Set>
  void Same(const std::string& method, const std::string& foreign, Set set) {
    const std::string unknown = Unknown(foreign);
    Request with_foreign, with_unknown;
    set(with_foreign, foreign);
    set(with_unknown, unknown);
    ExpectSame(method, foreign, CallAs<Response>(stranger_, method, with_foreign).status(), unknown,
               CallAs<Response>(stranger_, method, with_unknown).status());
  }
  template <typename Request, typename Set>
  void SameStream(const std::string& method, const std::string& foreign, Set set) {
    const std::string unknown = Unknown(foreign);
    auto ask = [&](const std::string& id) {
      Request request;
      set(request, id);
      auto stream = std::make_shared<FakeStream>();
      CapturedHandlers().streams.at(method)(request.SerializeAsString(),
                                            std::make_shared<FakeContext>(method, stranger_), stream);
      Status status;
      EXPECT_TRUE(stream->WaitEnd(&status).empty()) << method;
      return status;
    };
    ExpectSame(method, foreign, ask(foreign), unknown, ask(unknown));
  }

  rpc::Caller stranger_;
  std::string strangers_app_;
};

TEST_F(ScopeTest, AForeignAppIsAsAnUnknownOne) {
  const std::string app = NewApp();
  auto app_id = [](auto& request, const std::string& id) { request.set_app_id(id); };
  Same<pb::AppHeartbeatRequest, Empty>("AppHeartbeat", app, app_id);
  Same<pb::AppStopRequest, Empty>("AppStop", app, app_id);
  Same<pb::AppClientDisconnectRequest, Empty>("AppClientDisconnect", app, app_id);
  Same<pb::AppGetLayoutRequest, pb::AppGetLayoutResponse>("AppGetLayout", app, app_id);
  Same<pb::AppGetLifecycleRequest, pb::AppGetLifecycleResponse>("AppGetLifecycle", app, app_id);
  Same<pb::AppFetchLogsRequest, pb::AppFetchLogsResponse>("AppFetchLogs", app, app_id);
  Same<pb::AppCountLogsRequest, pb::AppCountLogsResponse>("AppCountLogs", app, app_id);
  Same<pb::AppPublishRequest, pb::AppPublishResponse>("AppPublish", app, app_id);
  Same<pb::ClassCreateRequest, pb::ClassCreateResponse>("ClassCreate", app, app_id);
  Same<pb::FunctionCreateRequest, pb::FunctionCreateResponse>("FunctionCreate", app, app_id);
  Same<pb::FunctionPrecreateRequest, pb::FunctionPrecreateResponse>(
      "FunctionPrecreate", app, [&](auto& request, const std::string& id) {
        request.set_app_id(id);
        request.set_function_name("f");
      });
  Same<pb::ImageGetOrCreateRequest, pb::ImageGetOrCreateResponse>(
      "ImageGetOrCreate", app, [&](auto& request, const std::string& id) { request = ImageRequest(id); });
  Same<pb::MountGetOrCreateRequest, pb::MountGetOrCreateResponse>(
      "MountGetOrCreate", app, [](auto& request, const std::string& id) {
        request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP);
        request.set_app_id(id);
      });
  Same<pb::SecretGetOrCreateRequest, pb::SecretGetOrCreateResponse>(
      "SecretGetOrCreate", app, [](auto& request, const std::string& id) {
        request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP);
        request.set_app_id(id);
      });
  SameStream<pb::AppGetLogsRequest>("AppGetLogs", app, app_id);
}

TEST_F(ScopeTest, AForeignContainerIsAsAnUnknownOne) {
  control::TaskView task;
  task.task_id = NewTaskId();
  task.app_id = NewApp();
  engine_.tasks = {task};
  auto task_id = [](auto& request, const std::string& id) { request.set_task_id(id); };
  Same<pb::ContainerStopRequest, pb::ContainerStopResponse>("ContainerStop", task.task_id, task_id);
  Same<pb::TaskGetInfoRequest, pb::TaskGetInfoResponse>("TaskGetInfo", task.task_id, task_id);
  SameStream<pb::AppGetLogsRequest>("AppGetLogs", task.task_id, task_id);
}

TEST_F(ScopeTest, ForeignObjectsAreAsUnknownOnes) {
  const std::string app = NewApp();
  pb::Function definition = Definition(app);
  auto function = Create(app, definition);
  ASSERT_TRUE(function.ok()) << function.status();
  auto mount = SourceMount(app, "print()");
  ASSERT_TRUE(mount.ok()) << mount.status();
  pb::SecretGetOrCreateRequest wanted;
  wanted.set_object_creation_type(pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP);
  wanted.set_app_id(app);
  (*wanted.mutable_env_dict())["A"] = "x";
  const std::string secret = Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", wanted)->secret_id();
  pb::ClassCreateRequest new_class;
  new_class.set_app_id(app);
  new_class.set_only_class_function(true);
  auto made_class = Ask<pb::ClassCreateResponse>("ClassCreate", new_class);
  ASSERT_TRUE(made_class.ok()) << made_class.status();

  auto function_id = [](auto& request, const std::string& id) { request.set_function_id(id); };
  Same<pb::FunctionGetByIdRequest, pb::FunctionGetByIdResponse>("FunctionGetById", function->function_id(),
                                                                function_id);
  Same<pb::FunctionBindParamsRequest, pb::FunctionBindParamsResponse>("FunctionBindParams",
                                                                      function->function_id(), function_id);
  Same<pb::FunctionPrecreateRequest, pb::FunctionPrecreateResponse>(
      "FunctionPrecreate", function->function_id(), [&](auto& request, const std::string& id) {
        request.set_app_id(strangers_app_);
        request.set_function_name("f");
        request.set_existing_function_id(id);
      });
  Same<pb::ClassCreateRequest, pb::ClassCreateResponse>("ClassCreate", made_class->class_id(),
                                                        [&](auto& request, const std::string& id) {
                                                          request = new_class;
                                                          request.set_app_id(strangers_app_);
                                                          request.set_existing_class_id(id);
                                                        });
  auto secret_id = [](auto& request, const std::string& id) { request.set_secret_id(id); };
  Same<pb::SecretDeleteRequest, Empty>("SecretDelete", secret, secret_id);
  Same<pb::SecretUpdateRequest, Empty>("SecretUpdate", secret, secret_id);
  auto image_id = [](auto& request, const std::string& id) { request.set_image_id(id); };
  Same<pb::ImageFromIdRequest, pb::ImageFromIdResponse>("ImageFromId", definition.image_id(), image_id);
  SameStream<pb::ImageJoinStreamingRequest>("ImageJoinStreaming", definition.image_id(), image_id);
  auto image_with = [&](auto set) {
    return [this, set](pb::ImageGetOrCreateRequest& request, const std::string& id) {
      request = ImageRequest(strangers_app_);
      set(*request.mutable_image(), id);
    };
  };
  const std::string get_image = "ImageGetOrCreate";
  using GetImage = pb::ImageGetOrCreateRequest;
  using GotImage = pb::ImageGetOrCreateResponse;
  Same<GetImage, GotImage>(
      get_image, definition.image_id(),
      image_with([](pb::Image& image, const std::string& id) { image.add_base_images()->set_image_id(id); }));
  Same<GetImage, GotImage>(get_image, secret, image_with([](pb::Image& image, const std::string& id) {
                             image.add_secret_ids(id);
                           }));
  Same<GetImage, GotImage>(get_image, *mount, image_with([](pb::Image& image, const std::string& id) {
                             image.set_context_mount_id(id);
                           }));
  pb::BlobCreateRequest blob;
  blob.set_content_length(10);
  const std::string blob_id = Ask<pb::BlobCreateResponse>("BlobCreate", blob)->blob_id();
  Same<pb::BlobGetRequest, pb::BlobGetResponse>(
      "BlobGet", blob_id, [](auto& request, const std::string& id) { request.set_blob_id(id); });
}

TEST_F(ScopeTest, WhatAFunctionNamesIsItsCallers) {
  const std::string app = NewApp();
  pb::Function definition = Definition(app);
  auto mine = Create(app, definition);
  auto mount = SourceMount(app, "print()");
  ASSERT_TRUE(mine.ok() && mount.ok());
  pb::ClassCreateRequest new_class;
  new_class.set_app_id(app);
  new_class.set_only_class_function(true);
  const std::string my_class = Ask<pb::ClassCreateResponse>("ClassCreate", new_class)->class_id();
  // The stranger's own image, so that nothing else is wrong with its function.
  auto request = ImageRequest(strangers_app_);
  ASSERT_TRUE(CallAs<pb::ImageGetOrCreateResponse>(stranger_, "ImageGetOrCreate", request).ok());
  workers_.Build(workers_.count() - 1).second(Ready("ly-2"));
  OnStrand([] { return 0; });
  auto image = CallAs<pb::ImageGetOrCreateResponse>(stranger_, "ImageGetOrCreate", request);
  ASSERT_TRUE(image.ok()) << image.status();
  for (const std::string& id : {mine->function_id(), *mount, my_class}) {
    Same<pb::FunctionCreateRequest, pb::FunctionCreateResponse>(
        "FunctionCreate", id, [&](auto& create, const std::string& named) {
          create.set_app_id(strangers_app_);
          pb::Function& function = *create.mutable_function();
          function = definition;
          function.clear_mount_ids();
          function.set_image_id(image->image_id());
          function.add_object_dependencies()->set_object_id(named);
        });
  }
}

TEST_F(ScopeTest, OneWorkspaceAnnouncesSoMuchAndNoMore) {
  upload_limits_ = {.count = 3, .bytes = 1000, .look_every = Millis(0)};
  Boot();
  auto announce = [&](const rpc::Caller& caller, int64_t size) {
    pb::BlobCreateRequest request;
    request.set_content_length(size);
    return CallAs<pb::BlobCreateResponse>(caller, "BlobCreate", request);
  };
  auto first = announce(user_, 600);
  ASSERT_TRUE(first.ok()) << first.status();
  Status full = announce(user_, 401).status();
  EXPECT_EQ(full.code(), Code::kResourceExhausted);
  EXPECT_NE(full.message().find("1 uploads open"), std::string::npos) << full;
  auto others = announce(stranger_, 600);
  EXPECT_TRUE(others.ok()) << "another workspace has its own: " << others.status();
  ASSERT_TRUE(announce(user_, 1).ok());
  ASSERT_TRUE(announce(user_, 1).ok());
  EXPECT_EQ(announce(user_, 1).status().code(), Code::kResourceExhausted) << "three at once";
  ASSERT_TRUE(blobs_->PutBlob(first->blob_id(), std::string(600, 'x')).ok());
  EXPECT_TRUE(announce(user_, 400).ok()) << "what has come makes room";
}

}  // namespace
}  // namespace lydian::api
