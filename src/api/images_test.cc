// Images: asked for, built once for all who ask, asked for again after a restart.
#include <modal_proto/api.pb.h>

#include "api/run_testing.h"

namespace lydian::api {
namespace {

class ImagesTest : public RunTest {
 protected:
  static pb::ImageJoinStreamingRequest JoinOf(const std::string& image_id) {
    pb::ImageJoinStreamingRequest join;
    join.set_image_id(image_id);
    join.set_timeout(55);
    return join;
  }
  static BuildUpdate Cancelled() {
    BuildUpdate update;
    update.mutable_result()->set_cancelled(true);
    return update;
  }
  Result<pb::ImageGetOrCreateResponse> Ordered(const pb::ImageGetOrCreateRequest& request) {
    return Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
  }
};

TEST_F(ImagesTest, AsksAWorkerOnceForAClientVersion) {
  EXPECT_EQ(ClientMount(), ClientMount());
  EXPECT_EQ(workers_.ensured, std::vector<std::string>{"1.6.4"});
  pb::MountGetOrCreateRequest request;
  request.set_namespace_(pb::DEPLOYMENT_NAMESPACE_GLOBAL);
  request.set_deployment_name("something else");
  EXPECT_EQ(Ask<pb::MountGetOrCreateResponse>("MountGetOrCreate", request).status().code(), Code::kNotFound);
}

TEST_F(ImagesTest, AWorkspaceHasOneUnknownClientVersionLookedForAtATime) {
  workers_.hold_ensured = true;
  rpc::Caller other = user_;
  other.workspace_id = "ac-other";
  std::atomic<int> answered{0};
  auto ask = [&](const rpc::Caller& caller, const std::string& version) {
    pb::MountGetOrCreateRequest request;
    request.set_namespace_(pb::DEPLOYMENT_NAMESPACE_GLOBAL);
    request.set_deployment_name("modal-client-mount-" + version);
    CapturedHandlers().unary.at("MountGetOrCreate")(request.SerializeAsString(),
                                                    std::make_shared<FakeContext>("MountGetOrCreate", caller),
                                                    [&](const Result<std::string>&) { ++answered; });
  };
  auto ensured = [&] {
    OnStrand([] { return 0; });
    std::lock_guard lock(workers_.mutex);
    return workers_.ensured;
  };
  for (const char* version : {"0.0.1", "0.0.2", "0.0.3"}) ask(user_, version);
  EXPECT_EQ(ensured(), (std::vector<std::string>{"0.0.1"}));
  ask(other, "0.0.4");
  EXPECT_EQ(ensured(), (std::vector<std::string>{"0.0.1", "0.0.4"})) << "who asks for much waits alone";
  auto end = [&](size_t index) {
    std::unique_lock lock(workers_.mutex);
    auto done = workers_.held.at(index);
    workers_.held.at(index) = nullptr;
    lock.unlock();
    done(NotFound("no such version"));
    done = nullptr;
    OnStrand([] { return 0; });
  };
  end(0);
  EXPECT_EQ(ensured(), (std::vector<std::string>{"0.0.1", "0.0.4", "0.0.2"}));
  end(2);
  EXPECT_EQ(ensured().back(), "0.0.3");
  end(1);
  end(3);
  EXPECT_EQ(answered, 4);
}

TEST_F(ImagesTest, TwoWhoAskShareABuildAndFailuresAreNotKept) {
  std::string app_id = NewApp();
  auto request = ImageRequest(app_id);
  auto first = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
  auto second = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->image_id(), second->image_id());
  EXPECT_FALSE(first->has_result());
  EXPECT_EQ(workers_.count(), 1u);
  pb::ImageJoinStreamingRequest join;
  join.set_image_id(first->image_id());
  join.set_timeout(55);
  auto stream = Open("ImageJoinStreaming", join);
  BuildUpdate update;
  update.mutable_log()->set_data("Step 1\n");
  auto build = workers_.Build(0);
  EXPECT_EQ(build.first.image_id(), first->image_id());
  build.second(update);
  pb::ImageJoinStreamingResponse part;
  ASSERT_TRUE(part.ParseFromString(stream->WaitMessage(0)));
  EXPECT_EQ(part.task_logs(0).data(), "Step 1\n");
  update.Clear();
  update.mutable_result()->set_error("RUN false: exit code 1");
  build.second(update);
  auto messages = stream->WaitEnd();
  ASSERT_TRUE(part.ParseFromString(messages.back()));
  EXPECT_EQ(part.result().status(), pb::GenericResult::GENERIC_STATUS_FAILURE);
  EXPECT_EQ(part.result().exception(), "RUN false: exit code 1");

  auto third = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(third->image_id(), first->image_id());
  EXPECT_EQ(workers_.count(), 2u);
  workers_.Build(1).second(Ready("ly-1"));
  messages = Open("ImageJoinStreaming", join)->WaitEnd();
  ASSERT_TRUE(part.ParseFromString(messages.back()));
  EXPECT_EQ(part.result().status(), pb::GenericResult::GENERIC_STATUS_SUCCESS);
  EXPECT_EQ(part.metadata().image_builder_version(), "2025.06");
  EXPECT_EQ(part.metadata().python_version_info(), "Python 3.11.2");
}

TEST_F(ImagesTest, ALostBuildStartsAgainAndARestartAsksForItAgain) {
  std::string app_id = NewApp();
  auto request = ImageRequest(app_id);
  auto first = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
  ASSERT_TRUE(first.ok());
  BuildUpdate lost;
  lost.mutable_result()->set_retryable(true);
  lost.mutable_result()->set_error("the worker has gone");
  workers_.Build(0).second(lost);
  workers_.Build(1);
  Boot();
  auto again = workers_.Build(2);
  EXPECT_EQ(again.first.image_id(), first->image_id());
  again.second(Ready("ly-1"));
  OnStrand([] { return 0; });
  auto done = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
  EXPECT_EQ(done->result().status(), pb::GenericResult::GENERIC_STATUS_SUCCESS);
}

TEST_F(ImagesTest, AnImageDependsOnEveryInput) {
  image_options_.builds_at_once = 10;
  Boot();
  std::string app_id = NewApp();
  auto id = [&](const pb::ImageGetOrCreateRequest& request) {
    auto response = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
    EXPECT_TRUE(response.ok()) << response.status();
    return response->image_id();
  };
  std::set<std::string> ids;
  auto request = ImageRequest(app_id);
  ids.insert(id(request));
  request.mutable_image()->add_dockerfile_commands("RUN true");
  ids.insert(id(request));
  (*request.mutable_image()->mutable_build_args())["A"] = "1";
  ids.insert(id(request));
  auto& file = *request.mutable_image()->add_context_files();
  file.set_filename("/.requirements.txt");
  file.set_data("numpy\n");
  ids.insert(id(request));
  file.set_data("pandas\n");
  ids.insert(id(request));
  pb::SecretGetOrCreateRequest secret;
  secret.set_object_creation_type(pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP);
  secret.set_app_id(app_id);
  (*secret.mutable_env_dict())["TOKEN"] = "x";
  request.mutable_image()->add_secret_ids(
      Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", secret)->secret_id());
  std::string with_secret = id(request);
  ids.insert(with_secret);
  EXPECT_EQ(ids.size(), 6u);
  EXPECT_EQ(workers_.Build(5).first.env().at("TOKEN"), "x");
  // The same content in another secret is the same input.
  request.mutable_image()->set_secret_ids(
      0, Ask<pb::SecretGetOrCreateResponse>("SecretGetOrCreate", secret)->secret_id());
  EXPECT_EQ(id(request), with_secret);
  request.set_builder_version("2026.10");
  EXPECT_EQ(Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request).status().code(),
            Code::kUnimplemented);
}

TEST_F(ImagesTest, ABuildThatNobodyFollowsAnyMoreIsCancelled) {
  image_options_.abandoned_after = Millis(50);
  Boot();
  auto request = ImageRequest(NewApp());
  auto image = Ordered(request);
  ASSERT_TRUE(image.ok());
  std::shared_ptr<FakeContext> first, second;
  Open("ImageJoinStreaming", JoinOf(image->image_id()), &first);
  Open("ImageJoinStreaming", JoinOf(image->image_id()), &second);
  auto build = workers_.Build(0);
  EXPECT_FALSE(build.first.workspace_id().empty());
  OnStrand([] { return 0; });
  first->Cancel();
  EXPECT_FALSE(workers_.WaitCancel(build.first.build_id(), Millis(200))) << "one of the two still waits";
  second->Cancel();
  ASSERT_TRUE(workers_.WaitCancel(build.first.build_id()));
  build.second(Cancelled());
  OnStrand([] { return 0; });
  auto found = OnStrand([&] { return objects_->images().ById(image->image_id()); });
  EXPECT_EQ(found->state, control::ImageState::kFailed);
  EXPECT_EQ(found->error, "the build was cancelled: nobody waited for it any more");
  EXPECT_FALSE(Ordered(request)->has_result());  // who asks again gets a new build
  EXPECT_EQ(workers_.count(), 2u);
}

TEST_F(ImagesTest, ABuildThatNobodyEverFollowsIsCancelled) {
  image_options_.asked_grace = Millis(50);
  Boot();
  ASSERT_TRUE(Ordered(ImageRequest(NewApp())).ok());
  EXPECT_TRUE(workers_.WaitCancel(workers_.Build(0).first.build_id()));
}

TEST_F(ImagesTest, WhoComesBackWhileABuildIsCancelledGetsANewOne) {
  image_options_.abandoned_after = Millis(50);
  Boot();
  auto image = Ordered(ImageRequest(NewApp()));
  std::shared_ptr<FakeContext> context;
  Open("ImageJoinStreaming", JoinOf(image->image_id()), &context);
  auto build = workers_.Build(0);
  OnStrand([] { return 0; });
  context->Cancel();
  ASSERT_TRUE(workers_.WaitCancel(build.first.build_id()));
  auto stream = Open("ImageJoinStreaming", JoinOf(image->image_id()));
  OnStrand([] { return 0; });
  build.second(Cancelled());
  workers_.Build(1).second(Ready("ly-1"));
  pb::ImageJoinStreamingResponse part;
  ASSERT_TRUE(part.ParseFromString(stream->WaitEnd().back()));
  EXPECT_EQ(part.result().status(), pb::GenericResult::GENERIC_STATUS_SUCCESS);
}

TEST_F(ImagesTest, ABuildThatItsWorkerCancelsUnaskedStartsAgainAFewTimes) {
  auto request = ImageRequest(NewApp());
  auto image = Ordered(request);
  auto stream = Open("ImageJoinStreaming", JoinOf(image->image_id()));
  workers_.Build(0).second(Cancelled());
  workers_.Build(1).second(Ready("ly-1"));
  pb::ImageJoinStreamingResponse part;
  ASSERT_TRUE(part.ParseFromString(stream->WaitEnd().back()));
  EXPECT_EQ(part.result().status(), pb::GenericResult::GENERIC_STATUS_SUCCESS);

  request.mutable_image()->add_dockerfile_commands("RUN true");
  stream = Open("ImageJoinStreaming", JoinOf(Ordered(request)->image_id()));
  for (size_t i = 2; i < 5; ++i) workers_.Build(i).second(Cancelled());
  ASSERT_TRUE(part.ParseFromString(stream->WaitEnd().back()));
  EXPECT_EQ(part.result().exception(), "its worker cancelled the build");
  EXPECT_EQ(workers_.count(), 5u);
}

TEST_F(ImagesTest, AWorkspaceHasAFewBuildsAtOnce) {
  image_options_.builds_at_once = 2;
  Boot();
  std::string app_id = NewApp();
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) {
    auto request = ImageRequest(app_id);
    request.mutable_image()->add_dockerfile_commands("RUN " + std::to_string(i));
    ids.push_back(Ordered(request)->image_id());
  }
  EXPECT_EQ(workers_.count(), 2u);
  auto stream = Open("ImageJoinStreaming", JoinOf(ids[2]));
  pb::ImageJoinStreamingResponse part;
  ASSERT_TRUE(part.ParseFromString(stream->WaitMessage(0)));
  EXPECT_EQ(
      part.task_logs(0).data(),
      "Waiting: 2 images of this workspace are being built; this one begins when one of them is done.\n");
  // Another workspace doesn't wait.
  rpc::Caller other = user_;
  auto token = objects_->tokens().Create("other", "o");
  ASSERT_TRUE(token.ok());
  other.token_id = token->token_id;
  other.workspace_id = objects_->tokens().Get(token->token_id)->workspace_id;
  auto request = ImageRequest("");
  ASSERT_TRUE(CallAs<pb::ImageGetOrCreateResponse>(other, "ImageGetOrCreate", request).ok());
  EXPECT_EQ(workers_.count(), 3u);
  workers_.Build(0).second(Ready("ly-1"));
  EXPECT_EQ(workers_.Build(3).first.image_id(), ids[2]);
}

TEST_F(ImagesTest, APlaceGoesOnWhenTheBuildThatWasNextIsGivenUp) {
  image_options_.builds_at_once = 1;
  image_options_.asked_grace = Millis(0);
  Boot();
  control::Images& images = objects_->images();
  control::Scope scope{user_.workspace_id, "", "test"};
  auto ordered = [&](const std::string& line) {
    control::ImageRequest request;
    request.spec.set_builder_version("2025.06");
    request.spec.add_dockerfile_commands(line);
    auto image = images.GetOrBuild(scope, request);
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? image->id : "";
  };
  // In one turn of the strand: the first ends in the next one, and the second is given up right after it.
  std::vector<std::shared_ptr<void>> followed = OnStrand([&] {
    std::vector<std::shared_ptr<void>> held;
    held.push_back(images.Follow(ordered("FROM a")));
    ordered("FROM b");
    held.push_back(images.Follow(ordered("FROM c")));
    workers_.Build(0).second(Ready("ly-1"));
    return held;
  });
  EXPECT_EQ(workers_.Build(1).first.dockerfile_commands(0), "FROM c");
}

TEST_F(ImagesTest, ABuildThatWorkersGiveBackIsTriedAFewTimes) {
  auto image = Ordered(ImageRequest(NewApp()));
  auto stream = Open("ImageJoinStreaming", JoinOf(image->image_id()));
  BuildUpdate lost;
  lost.mutable_result()->set_retryable(true);
  lost.mutable_result()->set_error("the worker has gone");
  for (size_t i = 0; i < 3; ++i) workers_.Build(i).second(lost);
  pb::ImageJoinStreamingResponse part;
  ASSERT_TRUE(part.ParseFromString(stream->WaitEnd().back()));
  EXPECT_EQ(part.result().exception(), "the worker has gone");
  EXPECT_EQ(workers_.count(), 3u);
}

TEST_F(ImagesTest, ARunFunctionStepAddsItsLayer) {
  std::string app_id = NewApp();
  pb::Function definition = Definition(app_id);
  definition.set_is_builder_function(true);
  auto builder = Create(app_id, definition);
  ASSERT_TRUE(builder.ok()) << builder.status();
  engine_.builder_outcome.layer_id = "ly-2";
  pb::ImageGetOrCreateRequest request;
  request.set_app_id(app_id);
  request.set_builder_version("2025.06");
  request.set_build_function_id(builder->function_id());
  auto& base = *request.mutable_image()->add_base_images();
  base.set_docker_tag("base");
  base.set_image_id(definition.image_id());
  request.mutable_image()->mutable_build_function()->set_definition("def f(): ...");
  auto response = Ask<pb::ImageGetOrCreateResponse>("ImageGetOrCreate", request);
  ASSERT_TRUE(response.ok()) << response.status();
  OnStrand([] { return 0; });
  OnStrand([] { return 0; });
  auto image = OnStrand([&] { return objects_->images().ById(response->image_id()); });
  ASSERT_TRUE(image.ok());
  EXPECT_EQ(image->state, control::ImageState::kReady) << image->error;
  ASSERT_EQ(image->spec.layer_ids_size(), 2);
  EXPECT_EQ(image->spec.layer_ids(1), "ly-2");
}

TEST_F(ImagesTest, RefusesContainersThatHoldTooMuchAtOnce) {
  std::string app_id = NewApp();
  pb::Function base = Definition(app_id);
  auto refused = [&](auto change, const std::string& word) {
    pb::Function function = base;
    change(function);
    Status status = Create(app_id, function).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << word;
    EXPECT_NE(status.message().find("function 'f': " + word), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("it may be 10000 at most"), std::string::npos) << status.message();
  };
  refused([](pb::Function& f) { f.set_max_concurrent_inputs(300'000'000); }, "max_concurrent_inputs");
  refused([](pb::Function& f) { f.set_target_concurrent_inputs(10'001); }, "target_concurrent_inputs");
  refused([](pb::Function& f) { f.set_batch_max_size(0x80000001u); }, "batch_max_size");
  base.set_max_concurrent_inputs(10'000);
  auto fine = Create(app_id, base);
  ASSERT_TRUE(fine.ok()) << fine.status();
  pb::FunctionBindParamsRequest bind;
  bind.set_function_id(fine->function_id());
  bind.mutable_function_options()->set_max_concurrent_inputs(10'001);
  EXPECT_EQ(Ask<pb::FunctionBindParamsResponse>("FunctionBindParams", bind).status().code(),
            Code::kInvalidArgument);
}

TEST_F(ImagesTest, RefusesWhatIsNotBuiltByName) {
  std::string app_id = NewApp();
  pb::Function base = Definition(app_id);
  auto refused = [&](auto change, const std::string& word) {
    pb::Function function = base;
    change(function);
    Status status = Create(app_id, function).status();
    EXPECT_EQ(status.code(), Code::kUnimplemented) << word;
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  };
  refused([](pb::Function& f) { f.mutable_webhook_config()->set_type(pb::WEBHOOK_TYPE_ASGI_APP); },
          "Web endpoints");
  refused([](pb::Function& f) { f.mutable_resources()->mutable_gpu_config()->set_count(1); }, "GPU");
  refused([](pb::Function& f) { f.add_volume_mounts(); }, "Volume");
  refused([](pb::Function& f) { f.set_block_network(true); }, "block_network");
  refused([](pb::Function& f) { f.set__experimental_group_size(2); }, "clustered");
  refused([](pb::Function& f) { f.set__experimental_fabric_size(2); }, "clustered");
  refused([](pb::Function& f) { f.set_is_sessioned(true); }, "sessions");
  refused([](pb::Function& f) { f.add_volume_mounts(); }, "function '" + base.function_name() + "'");
  pb::Function fine = base;
  fine.mutable_resources()->mutable_gpu_config();
  fine.set_checkpointing_enabled(true);
  fine.set_routing_region("eu");
  EXPECT_TRUE(Create(app_id, fine).ok());
}

}  // namespace
}  // namespace lydian::api
