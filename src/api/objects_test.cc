// The conversation of `modal run`, and what must be refused, over fakes.
#include <modal_proto/api.pb.h>

#include "api/run_testing.h"

namespace lydian::api {
namespace {

TEST_F(RunTest, GoesThroughAWholeRun) {
  pb::EnvironmentGetOrCreateRequest environment;
  auto where = Ask<pb::EnvironmentGetOrCreateResponse>("EnvironmentGetOrCreate", environment);
  ASSERT_TRUE(where.ok()) << where.status();
  EXPECT_EQ(where->metadata().name(), "main");
  EXPECT_EQ(where->metadata().settings().image_builder_version(), "2025.06");

  std::string app_id = NewApp();
  EXPECT_EQ(app_id.size(), 25u);
  pb::AppGetLogsRequest logs;
  logs.set_app_id(app_id);
  logs.set_timeout(55);
  auto stream = Open("AppGetLogs", logs);

  auto mount = SourceMount(app_id, "print(1)\n");
  ASSERT_TRUE(mount.ok()) << mount.status();
  pb::Function definition = Definition(app_id);
  definition.add_mount_ids(*mount);
  definition.add_object_dependencies()->set_object_id(*mount);
  definition.mutable_retry_policy()->set_retries(3);
  auto function = Create(app_id, definition);
  ASSERT_TRUE(function.ok()) << function.status();
  ASSERT_EQ(function->function_data().ranked_functions_size(), 1);
  EXPECT_EQ(function->handle_metadata().app_id(), app_id);
  ASSERT_TRUE(Publish(app_id, *function).ok());
  const auto& info = engine_.functions.at(function->function_id());
  EXPECT_EQ(info.retry.retries, 3u);
  EXPECT_EQ(info.timeout_secs, 120u);
  EXPECT_EQ(info.limits.memory_limit_bytes(), 512u << 20);
  EXPECT_EQ(engine_.activated, std::vector<std::string>{app_id});

  TaskSpecs specs(objects_.get());
  auto spec = specs.MakeTaskSpec(function->function_id());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->client_version(), "1.6.4");
  ASSERT_EQ(spec->mount_ids_size(), 1);
  EXPECT_EQ(spec->mount_ids(0), *mount);
  EXPECT_EQ(spec->image().layer_ids(0), "ly-1");
  EXPECT_EQ(spec->image().builder_version(), "2025.06");
  pb::AppLayout layout;
  ASSERT_TRUE(layout.ParseFromString(spec->app_layout()));
  EXPECT_EQ(layout.function_ids().at("f"), function->function_id());
  EXPECT_EQ(layout.objects_size(), 2);

  control::LogRecord record;
  record.task_id = "ta-1";
  record.data = "hi\n";
  logs_.Append(app_id, {record}, nullptr);
  pb::TaskLogsBatch batch;
  ASSERT_TRUE(batch.ParseFromString(stream->WaitMessage(0)));
  EXPECT_EQ(batch.items(0).data(), "hi\n");
  EXPECT_EQ(batch.entry_id(), "1-0");

  pb::AppClientDisconnectRequest bye;
  bye.set_app_id(app_id);
  bye.set_reason(pb::APP_DISCONNECT_REASON_ENTRYPOINT_COMPLETED);
  ASSERT_TRUE(Ask<Empty>("AppClientDisconnect", bye).ok());
  auto messages = stream->WaitEnd();
  ASSERT_EQ(messages.size(), 2u);
  ASSERT_TRUE(batch.ParseFromString(messages[1]));
  EXPECT_TRUE(batch.app_done());
  logs.set_last_entry_id("1-0");  // again after the end: said again
  messages = Open("AppGetLogs", logs)->WaitEnd();
  ASSERT_EQ(messages.size(), 1u);
  ASSERT_TRUE(batch.ParseFromString(messages[0]));
  EXPECT_TRUE(batch.app_done());
}

TEST_F(RunTest, AMountNeedsItsContents) {
  std::string app_id = NewApp();
  pb::MountGetOrCreateRequest request;
  request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP);
  request.set_app_id(app_id);
  request.add_files()->set_filename("/root/x.py");
  request.mutable_files(0)->set_sha256_hex(Sha256Hex("never sent"));
  EXPECT_EQ(Ask<pb::MountGetOrCreateResponse>("MountGetOrCreate", request).status().code(),
            Code::kFailedPrecondition);
  auto mount = SourceMount(app_id, "a");
  ASSERT_TRUE(mount.ok());
  EXPECT_EQ(*mount, *SourceMount(app_id, "a"));
  for (const char* bad : {"root/x.py", "/root/../x", "/root//x", "/root/", "/"}) {
    request.mutable_files(0)->set_filename(bad);
    request.mutable_files(0)->set_sha256_hex(Sha256Hex("a"));
    EXPECT_EQ(Ask<pb::MountGetOrCreateResponse>("MountGetOrCreate", request).status().code(),
              Code::kInvalidArgument)
        << bad;
  }
  pb::MountPutFileRequest put;
  put.set_sha256_hex(Sha256Hex("one"));
  put.set_data("another");
  EXPECT_EQ(Ask<pb::MountPutFileResponse>("MountPutFile", put).status().code(), Code::kInvalidArgument);
}

TEST_F(RunTest, ObjectsOfOthersAreNotFound) {
  std::string app_id = NewApp();
  auto function = Create(app_id, Definition(app_id));
  ASSERT_TRUE(function.ok());
  auto other = objects_->tokens().Create("other", "");
  ASSERT_TRUE(other.ok());
  auto info = objects_->tokens().Get(other->token_id);
  rpc::Caller stranger = user_;
  stranger.workspace_id = info->workspace_id;
  stranger.token_id = info->token_id;
  pb::AppGetLifecycleRequest lifecycle;
  lifecycle.set_app_id(app_id);
  EXPECT_EQ((CallAs<pb::AppGetLifecycleResponse>(stranger, "AppGetLifecycle", lifecycle)).status().code(),
            Code::kNotFound);
  pb::FunctionGetByIdRequest by_id;
  by_id.set_function_id(function->function_id());
  EXPECT_EQ((CallAs<pb::FunctionGetByIdResponse>(stranger, "FunctionGetById", by_id)).status().code(),
            Code::kNotFound);
  by_id.set_function_id(app_id);  // another kind
  EXPECT_EQ(Ask<pb::FunctionGetByIdResponse>("FunctionGetById", by_id).status().code(), Code::kNotFound);

  pb::EnvironmentCreateRequest create;
  create.set_name("dev");
  ASSERT_TRUE(Ask<Empty>("EnvironmentCreate", create).ok());
  std::string dev_app = NewApp(pb::APP_STATE_EPHEMERAL, "dev");
  lifecycle.set_app_id(dev_app);
  EXPECT_TRUE(Ask<pb::AppGetLifecycleResponse>("AppGetLifecycle", lifecycle).ok());
  EXPECT_EQ((CallAs<pb::AppGetLifecycleResponse>(task_, "AppGetLifecycle", lifecycle)).status().code(),
            Code::kNotFound);
  lifecycle.set_app_id(app_id);
  EXPECT_TRUE((CallAs<pb::AppGetLifecycleResponse>(task_, "AppGetLifecycle", lifecycle)).ok());
  EXPECT_EQ((CallAs<Empty>(task_, "EnvironmentCreate", create)).status().code(), Code::kPermissionDenied);
  pb::EnvironmentGetOrCreateRequest elsewhere;
  elsewhere.set_deployment_name("dev");
  EXPECT_EQ((CallAs<pb::EnvironmentGetOrCreateResponse>(task_, "EnvironmentGetOrCreate", elsewhere))
                .status()
                .code(),
            Code::kPermissionDenied);
}

TEST_F(RunTest, SecretsSayWhatIsWrong) {
  pb::SecretGetOrCreateRequest request;
  request.set_deployment_name("db");
  request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS);
  (*request.mutable_env_dict())["USER"] = "me";
  auto made = Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", request);
  ASSERT_TRUE(made.ok()) << made.status();
  Status twice = Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", request).status();
  EXPECT_EQ(twice.code(), Code::kAlreadyExists);
  EXPECT_NE(twice.message().find("--force"), std::string::npos);
  request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_UNSPECIFIED);
  request.add_required_keys("PASSWORD");
  Status missing = Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", request).status();
  EXPECT_EQ(missing.code(), Code::kFailedPrecondition);
  EXPECT_EQ(missing.message().rfind("Secret is missing key(s): PASSWORD", 0), 0u) << missing.message();
  request.set_deployment_name("nothing");
  missing = Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", request).status();
  EXPECT_EQ(missing.message().rfind("Secret 'nothing' not found in environment 'main'", 0), 0u)
      << missing.message();

  request.set_deployment_name("db");
  request.clear_required_keys();
  request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS);
  (*request.mutable_env_dict())["PASSWORD"] = "hunter2-in-the-clear";
  auto over = Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", request);
  ASSERT_TRUE(over.ok());
  EXPECT_EQ(over->secret_id(), made->secret_id());
  EXPECT_EQ(over->metadata().keys_size(), 2);
  for (const char* file : {"/state.db", "/state.db-wal"}) {
    auto bytes = ReadFile(dir_ + file);
    if (!bytes.ok()) continue;
    EXPECT_EQ(bytes->find("hunter2-in-the-clear"), std::string::npos) << file;
  }
  auto values = OnStrand([&] { return objects_->secrets().Values({made->secret_id()}); });
  ASSERT_TRUE(values.ok());
  EXPECT_EQ(values->at("PASSWORD"), "hunter2-in-the-clear");
  pb::SecretListRequest list;
  EXPECT_EQ(Ask<pb::SecretListResponse>("SecretList", list)->items_size(), 1);
  pb::SecretDeleteRequest drop;
  drop.set_secret_id(made->secret_id());
  EXPECT_TRUE(Ask<Empty>("SecretDelete", drop).ok());
  EXPECT_EQ(Ask<Empty>("SecretDelete", drop).status().code(), Code::kNotFound);
}

TEST_F(RunTest, DeployKeepsIdsAndReplacesWhatChanged) {
  std::string app_id = NewApp(pb::APP_STATE_INITIALIZING);
  pb::Function definition = Definition(app_id);
  auto first = Create(app_id, definition);
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(Publish(app_id, *first, pb::APP_STATE_DEPLOYED, "shop").ok());
  pb::AppGetByDeploymentNameRequest by_name;
  by_name.set_name("shop");
  EXPECT_EQ(Ask<pb::AppGetByDeploymentNameResponse>("AppGetByDeploymentName", by_name)->app_id(), app_id);
  pb::AppGetLayoutRequest layout;
  layout.set_app_id(app_id);
  std::string id = Ask<pb::AppGetLayoutResponse>("AppGetLayout", layout)->app_layout().function_ids().at("f");
  EXPECT_EQ(id, first->function_id());

  pb::FunctionBindParamsRequest bind;
  bind.set_function_id(id);
  bind.mutable_function_options()->set_timeout_secs(7);
  auto bound = Ask<pb::FunctionBindParamsResponse>("FunctionBindParams", bind);
  ASSERT_TRUE(bound.ok()) << bound.status();
  EXPECT_EQ(bound->bound_function_id(),
            Ask<pb::FunctionBindParamsResponse>("FunctionBindParams", bind)->bound_function_id());
  EXPECT_EQ(engine_.functions.at(bound->bound_function_id()).timeout_secs, 7u);

  definition.set_module_name("newer");
  auto second = Create(app_id, definition, id);
  ASSERT_TRUE(second.ok());
  TaskSpecs specs(objects_.get());
  pb::Function running;
  ASSERT_TRUE(running.ParseFromString(specs.MakeTaskSpec(id)->function_def()));
  EXPECT_EQ(running.module_name(), "hello") << "a definition counts once it is published";
  ASSERT_TRUE(Publish(app_id, *second, pb::APP_STATE_DEPLOYED, "shop").ok());
  ASSERT_TRUE(running.ParseFromString(specs.MakeTaskSpec(bound->bound_function_id())->function_def()));
  EXPECT_EQ(running.module_name(), "newer");
  EXPECT_EQ(running.timeout_secs(), 7u);
  EXPECT_EQ(engine_.replaced.size(), 2u);
  pb::FunctionGetRequest lookup;
  lookup.set_app_name("shop");
  lookup.set_object_tag("f");
  auto found = Ask<pb::FunctionGetResponse>("FunctionGet", lookup);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->function().ranked_functions_size(), 1);

  engine_.functions.clear();
  Boot();  // everything goes to the new engine
  EXPECT_EQ(engine_.functions.size(), 2u);
  pb::AppStopRequest stop;
  stop.set_app_id(app_id);
  ASSERT_TRUE(Ask<Empty>("AppStop", stop).ok());
  auto gone = Ask<pb::AppGetByDeploymentNameResponse>("AppGetByDeploymentName", by_name);
  EXPECT_EQ(gone->app_id(), "");
  EXPECT_EQ(gone->previous_app_id(), app_id);
}

TEST_F(RunTest, ADetachedAppOutlivesItsClientWhileItWorks) {
  std::string app_id = NewApp(pb::APP_STATE_DETACHED);
  auto function = Create(app_id, Definition(app_id));
  ASSERT_TRUE(Publish(app_id, *function, pb::APP_STATE_DETACHED).ok());
  pb::AppGetLogsRequest logs;
  logs.set_app_id(app_id);
  logs.set_timeout(55);
  auto stream = Open("AppGetLogs", logs);
  engine_.stats[function->function_id()].running = 1;
  pb::AppClientDisconnectRequest bye;
  bye.set_app_id(app_id);
  bye.set_reason(pb::APP_DISCONNECT_REASON_ENTRYPOINT_COMPLETED);
  ASSERT_TRUE(Ask<Empty>("AppClientDisconnect", bye).ok());
  pb::TaskLogsBatch batch;
  ASSERT_TRUE(batch.ParseFromString(stream->WaitEnd().back()));
  EXPECT_TRUE(batch.app_done());
  EXPECT_FALSE(engine_.Stopped(app_id));
  auto app = OnStrand([&] { return objects_->apps().ById(app_id); });
  EXPECT_EQ(app->state, control::AppState::kDetachedDisconnected);

  app_id = NewApp(pb::APP_STATE_DETACHED);
  function = Create(app_id, Definition(app_id));
  ASSERT_TRUE(Publish(app_id, *function, pb::APP_STATE_DETACHED).ok());
  bye.set_app_id(app_id);
  ASSERT_TRUE(Ask<Empty>("AppClientDisconnect", bye).ok());
  OnStrand([] { return 0; });
  EXPECT_TRUE(engine_.Stopped(app_id));
}

TEST_F(RunTest, ACreatingCallIsAnsweredTheSameAfterARestart) {
  pb::SecretGetOrCreateRequest request;
  request.set_deployment_name("db");
  request.set_object_creation_type(pb::OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS);
  (*request.mutable_env_dict())["A"] = "1";
  auto first = CallAs<pb::SecretGetOrCreateResponse>(user_, "SecretGetOrCreate", request,
                                                     {{"x-idempotency-key", "k1"}});
  ASSERT_TRUE(first.ok());
  Boot();
  auto again = CallAs<pb::SecretGetOrCreateResponse>(user_, "SecretGetOrCreate", request,
                                                     {{"x-idempotency-key", "k1"}});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->secret_id(), first->secret_id());
  auto other = CallAs<pb::SecretGetOrCreateResponse>(user_, "SecretGetOrCreate", request,
                                                     {{"x-idempotency-key", "k2"}});
  EXPECT_EQ(other.status().code(), Code::kAlreadyExists);
}

// Whatever a field holds: an answer, and not that we are broken.
TEST_F(RunTest, StrangeRequestsGetAClearAnswer) {
  std::vector<std::string> requests = {"", "\xff\xff\xff", std::string(70'000, 'x')};
  std::string all;
  for (int field = 1; field <= 30; ++field) {
    for (const std::string& value :
         {std::string("ap-nothing"), std::string("x"), std::string("\n\x01x\x12\x01y"), std::string("\0", 1),
          std::string(300, 'a')}) {
      std::string bytes;
      int tag = field << 3 | 2;
      while (tag > 127) bytes.push_back(static_cast<char>((tag & 127) | 128)), tag >>= 7;
      bytes.push_back(static_cast<char>(tag));
      size_t size = value.size();
      while (size > 127) bytes.push_back(static_cast<char>((size & 127) | 128)), size >>= 7;
      bytes.push_back(static_cast<char>(size));
      bytes += value;
      requests.push_back(bytes);
      all += bytes;
    }
    std::string number;
    int tag = field << 3;
    while (tag > 127) number.push_back(static_cast<char>((tag & 127) | 128)), tag >>= 7;
    number.push_back(static_cast<char>(tag));
    number += "\xff\xff\xff\xff\x07";
    requests.push_back(number);
  }
  requests.push_back(all);
  for (const auto& [method, handler] : CapturedHandlers().unary) {
    for (const auto& bytes : requests) {
      std::promise<Status> promise;
      handler(bytes, std::make_shared<FakeContext>(method, user_),
              [&](Result<std::string> result) { promise.set_value(result.status()); });
      auto answer = promise.get_future();
      ASSERT_EQ(answer.wait_for(std::chrono::seconds(10)), std::future_status::ready) << method;
      Status status = answer.get();
      EXPECT_NE(status.code(), Code::kInternal) << method << ": " << status;
      EXPECT_NE(status.code(), Code::kUnknown) << method << ": " << status;
      EXPECT_LT(status.message().size(), 2048u) << method;
    }
  }
  for (const auto& [method, handler] : CapturedHandlers().streams) {
    for (const auto& bytes : requests) {
      auto context = std::make_shared<FakeContext>(method, user_);
      auto stream = std::make_shared<FakeStream>();
      handler(bytes, context, stream);
      Status status;
      stream->WaitEnd(&status);
      EXPECT_NE(status.code(), Code::kInternal) << method << ": " << status;
    }
  }
}

class VanishTest : public RunTest {
 protected:
  void SetUp() override {
    heartbeat_timeout_ = Millis(300);
    RunTest::SetUp();
  }
  bool StopsWithin(const std::string& app_id, Millis most) {
    const auto until = std::chrono::steady_clock::now() + most;
    while (std::chrono::steady_clock::now() < until) {
      if (OnStrand([&] { return engine_.Stopped(app_id); })) return true;
      std::this_thread::sleep_for(Millis(10));
    }
    return false;
  }
};

TEST_F(VanishTest, AClientThatIsSilentLosesItsApp) {
  std::string silent = NewApp(), detached = NewApp(pb::APP_STATE_DETACHED);
  EXPECT_TRUE(StopsWithin(silent, Millis(10'000)));
  EXPECT_FALSE(engine_.Stopped(detached));
}

// A client that moves a gigabyte doesn't get to beat; its connection is open all the same.
TEST_F(VanishTest, AnOpenConnectionStandsForABeat) {
  std::string busy = NewApp();
  pb::AppGetLogsRequest logs;
  logs.set_app_id(busy);
  logs.set_timeout(55);
  std::shared_ptr<FakeContext> context;
  auto stream = Open("AppGetLogs", logs, &context);
  EXPECT_FALSE(StopsWithin(busy, Millis(1000)));
  context->Cancel();
  EXPECT_TRUE(StopsWithin(busy, Millis(10'000)));
}

TEST_F(VanishTest, ARestartGivesAWholeTimeoutAndGoesOnStopping) {
  engine_.hold_stops = true;
  std::string app_id = NewApp(), beating = NewApp();
  pb::AppStopRequest stop;
  stop.set_app_id(app_id);
  ASSERT_TRUE(Ask<Empty>("AppStop", stop).ok());
  Boot();
  engine_.hold_stops = false;
  EXPECT_EQ(OnStrand([&] { return objects_->apps().ById(app_id); })->state, control::AppState::kStopping);
  EXPECT_EQ(engine_.held.size(), 2u) << "asked again";
  engine_.held.back()();
  OnStrand([] { return 0; });
  EXPECT_EQ(OnStrand([&] { return objects_->apps().ById(app_id); })->state, control::AppState::kStopped);
  EXPECT_EQ(OnStrand([&] { return objects_->apps().ById(beating); })->state, control::AppState::kEphemeral);
  engine_.held.clear();
}

TEST_F(RunTest, ListsAndStopsContainers) {
  std::string app_id = NewApp();
  control::TaskView task;
  task.task_id = "ta-01234567890123456789012345";
  task.app_id = app_id;
  task.enqueued_at = 5;
  engine_.tasks = {task};
  auto listed = Ask<pb::TaskListResponse>("TaskList", pb::TaskListRequest());
  ASSERT_TRUE(listed.ok());
  ASSERT_EQ(listed->tasks_size(), 1);
  EXPECT_EQ(listed->tasks(0).app_description(), "hello.py");
  EXPECT_EQ(Ask<pb::AppListResponse>("AppList", pb::AppListRequest())->apps(0).n_running_tasks(), 1);
  pb::ContainerStopRequest stop;
  stop.set_task_id("ta-x");
  EXPECT_EQ(Ask<pb::ContainerStopResponse>("ContainerStop", stop).status().code(), Code::kNotFound);
  stop.set_task_id(task.task_id);
  EXPECT_TRUE(Ask<pb::ContainerStopResponse>("ContainerStop", stop).ok());
  EXPECT_TRUE(engine_.Stopped(task.task_id));
  stop.set_graceful(true);
  EXPECT_TRUE(Ask<pb::ContainerStopResponse>("ContainerStop", stop).ok());
  std::lock_guard lock(engine_.mutex);
  EXPECT_EQ(engine_.stopped[task.task_id], "graceful");
}

TEST_F(RunTest, WhatWouldBeForgottenIsRefused) {
  pb::EnvironmentCreateRequest environment;
  environment.set_name("closed");
  environment.set_is_managed(true);
  EXPECT_EQ(Ask<Empty>("EnvironmentCreate", environment).status().code(), Code::kUnimplemented);
  EXPECT_EQ(Ask<pb::EnvironmentListResponse>("EnvironmentList", Empty())->items_size(), 1);
  pb::AppPublishRequest publish;
  publish.set_app_id(NewApp());
  publish.set_deployment_tag("v1");
  const Status tagged = Ask<pb::AppPublishResponse>("AppPublish", publish).status();
  EXPECT_EQ(tagged.code(), Code::kUnimplemented);
  EXPECT_NE(tagged.message().find("--tag"), std::string::npos) << tagged.message();
}

TEST_F(RunTest, BlobUrlsFollowTheCaller) {
  pb::BlobCreateRequest create;
  create.set_content_length(10);
  create.set_content_md5("1B2M2Y8AsgTpgAmY7PhCfg==");
  auto mine = CallAs<pb::BlobCreateResponse>(user_, "BlobCreate", create, {{"x-modal-host", "localhost"}});
  ASSERT_TRUE(mine.ok()) << mine.status();
  ASSERT_EQ(mine->blob_ids_size(), 1);
  EXPECT_EQ(mine->upload_urls().items(0).rfind("http://localhost:7070/", 0), 0u)
      << mine->upload_urls().items(0);
  auto in_container = CallAs<pb::BlobCreateResponse>(task_, "BlobCreate", create);
  EXPECT_EQ(in_container->upload_urls().items(0).rfind("http://169.254.77.1/", 0), 0u);
  for (const char* wrong : {"not base64", "1B2M2Y8AsgTpgAmY7PhCf", "1B2M2Y8AsgTpgAmY7PhCf???"}) {
    create.set_content_md5(wrong);
    EXPECT_EQ(Ask<pb::BlobCreateResponse>("BlobCreate", create).status().code(), Code::kInvalidArgument)
        << wrong;
  }
  pb::BlobGetRequest get;
  get.set_blob_id("bl-nothing");
  EXPECT_EQ(Ask<pb::BlobGetResponse>("BlobGet", get).status().code(), Code::kNotFound);
}

TEST_F(RunTest, TokensOpenAndClose) {
  ApiAuthenticator authenticator(&objects_->tokens());
  auto token = objects_->tokens().Create("main", "test");
  ASSERT_TRUE(token.ok());
  std::map<std::string, std::string> headers = {{"x-modal-token-id", token->token_id},
                                                {"x-modal-token-secret", token->token_secret}};
  auto get = [&](std::string_view name) { return std::string_view(headers[std::string(name)]); };
  EXPECT_TRUE(authenticator.Authenticate(get, "AppCreate", {}).ok());
  headers["x-modal-token-secret"] = "as-wrong";
  Status wrong = authenticator.Authenticate(get, "AppCreate", {}).status();
  EXPECT_EQ(wrong.code(), Code::kUnauthenticated);
  EXPECT_NE(wrong.message().find("lydian login"), std::string::npos);
  headers["x-modal-token-secret"] = token->token_secret;
  Boot();
  ApiAuthenticator after(&objects_->tokens());
  EXPECT_TRUE(after.Authenticate(get, "AppCreate", {}).ok());
  ASSERT_TRUE(objects_->tokens().Revoke(token->token_id).ok());
  EXPECT_EQ(after.Authenticate(get, "AppCreate", {}).status().code(), Code::kUnauthenticated);

  LinkAuthenticator link([](const std::string& id) -> Result<rpc::Caller> {
    if (id != "ta-1") return NotFound("no container " + id);
    rpc::Caller caller;
    caller.environment = "main";
    caller.restricted = true;
    return caller;
  });
  headers = {{"x-lydian-task", "ta-1"}};
  EXPECT_EQ(link.Authenticate(get, "BlobGet", {})->kind, rpc::Caller::Kind::kTask);
  for (const char* closed : {"AppCreate", "FunctionMap", "FunctionCallGetDataOut", "SecretList"})
    EXPECT_EQ(link.Authenticate(get, closed, {}).status().code(), Code::kPermissionDenied) << closed;
  headers = {{"x-lydian-task", "ta-2"}};
  EXPECT_EQ(link.Authenticate(get, "BlobGet", {}).status().code(), Code::kNotFound);
  headers.clear();
  EXPECT_EQ(link.Authenticate(get, "Attach", {})->kind, rpc::Caller::Kind::kWorker);
}

}  // namespace
}  // namespace lydian::api
