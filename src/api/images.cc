// Images: asked for by recipe, joined while they build.
#include <modal_proto/api.pb.h>

#include "api/files.h"
#include "api/handlers.h"
#include "api/log_pump.h"
#include "api/log_records.h"
#include "api/unbuilt.h"
#include "base/ids.h"

namespace lydian::api {

namespace pb = modal::client;
using control::Image;
using control::ImageState;

namespace {

constexpr int kMostCommands = 10'000;

pb::ImageMetadata Metadata(const Image& image) {
  pb::ImageMetadata metadata;
  metadata.set_image_builder_version(image.builder_version);
  if (!image.spec.config().workdir().empty()) metadata.set_workdir(image.spec.config().workdir());
  if (!image.spec.python_version().empty())
    metadata.set_python_version_info("Python " + image.spec.python_version());
  if (!image.libc_version.empty()) metadata.set_libc_version_info(image.libc_version);
  return metadata;
}

pb::GenericResult ResultOf(const Image& image) {
  pb::GenericResult result;
  if (image.state == ImageState::kReady) result.set_status(pb::GenericResult::GENERIC_STATUS_SUCCESS);
  if (image.state == ImageState::kFailed) {
    result.set_status(pb::GenericResult::GENERIC_STATUS_FAILURE);
    result.set_exception(image.error);
  }
  return result;
}

Status CheckSupported(const pb::Image& image) {
  if (image.gpu_config().count() > 0) return NotBuilt(Feature::kImageGpus);
  if (image.volume_mounts_size() > 0) return NotBuilt(Feature::kImageVolumes);
  const auto& registry = image.image_registry_config();
  if (!registry.secret_id().empty() || registry.registry_auth_type() == pb::REGISTRY_AUTH_TYPE_AWS ||
      registry.registry_auth_type() == pb::REGISTRY_AUTH_TYPE_GCP) {
    return NotBuilt(Feature::kRegistryCredentials);
  }
  if (image.dockerfile_commands_size() > kMostCommands)
    return InvalidArgument("an image may have 10000 commands in one step");
  for (const auto& file : image.context_files()) RETURN_IF_ERROR(control::CheckAbsolutePath(file.filename()));
  return OkStatus();
}

Result<control::ImageRequest> RequestOf(const pb::ImageGetOrCreateRequest& request, Call& call) {
  const pb::Image& image = request.image();
  control::ImageRequest wanted;
  if (!request.app_id().empty()) {
    ASSIGN_OR_RETURN(auto app, call.objects().apps().GetAlive(call.scope, request.app_id()));
    wanted.environment_id = app.environment_id;
  } else {
    ASSIGN_OR_RETURN(auto environment, call.objects().environments().Resolve(call.scope, ""));
    wanted.environment_id = environment.id;
  }
  BuildSpec& spec = wanted.spec;
  spec.set_builder_version(request.builder_version());
  *spec.mutable_dockerfile_commands() = {image.dockerfile_commands().begin(),
                                         image.dockerfile_commands().end()};
  for (const auto& [key, value] : image.build_args()) (*spec.mutable_build_args())[key] = value;
  if (!image.context_mount_id().empty()) {
    ASSIGN_OR_RETURN(auto mount, call.objects().mounts().Get(call.scope, image.context_mount_id()));
    ASSIGN_OR_RETURN(auto files, call.objects().mounts().FilesOf(mount));
    for (auto& file : files) *spec.add_context() = std::move(file);
  }
  for (const auto& file : image.context_files()) {
    ContextFile& entry = *spec.add_context();
    entry.set_path(file.filename());
    entry.set_sha256(Sha256Hex(file.data()));
    entry.set_mode(0644);
    entry.set_size(file.data().size());
  }
  for (const auto& base : image.base_images()) wanted.bases.emplace_back(base.docker_tag(), base.image_id());
  wanted.secret_ids.assign(image.secret_ids().begin(), image.secret_ids().end());
  wanted.force_build = request.force_build();
  wanted.ignore_cache = request.ignore_cache();
  if (image.has_build_function()) {
    if (wanted.bases.empty()) return InvalidArgument("a build function needs a base image");
    ASSIGN_OR_RETURN(auto function, call.objects().functions().Get(call.scope, request.build_function_id()));
    if (!function.builder) return InvalidArgument(function.id + " isn't a build function");
    wanted.build_function_id = function.id;
    wanted.build_function_digest =
        Sha256Hex(image.build_function().definition() + '\0' + image.build_function().globals());
    wanted.build_input = image.build_function().input().SerializeAsString();
    wanted.build_input_blob = image.build_function().input().args_blob_id();
  } else if (image.dockerfile_commands().empty()) {
    return InvalidArgument("the image has neither commands nor a build function");
  }
  return wanted;
}

Result<pb::ImageGetOrCreateResponse> Build(const pb::ImageGetOrCreateRequest& request, Call& call) {
  ASSIGN_OR_RETURN(auto wanted, RequestOf(request, call));
  ASSIGN_OR_RETURN(Image image, call.objects().images().GetOrBuild(call.scope, wanted));
  pb::ImageGetOrCreateResponse response;
  response.set_image_id(image.id);
  if (image.state != ImageState::kBuilding) {
    *response.mutable_result() = ResultOf(image);
    *response.mutable_metadata() = Metadata(image);
  }
  return response;
}

void GetOrCreate(const ServicesPtr& services, const pb::ImageGetOrCreateRequest& request, Call& call,
                 const rpc::Reply<pb::ImageGetOrCreateResponse>& reply) {
  if (Status supported = CheckSupported(request.image()); !supported.ok()) return reply(supported);
  if (request.image().context_files().empty()) return reply(Build(request, call));
  std::vector<NewFile> files;
  for (const auto& file : request.image().context_files())
    files.push_back({Sha256Hex(file.data()), file.data()});
  StoreFiles(services, call.scope.workspace_id, std::move(files),
             [services, request, reply, ctx = call.ctx, scope = call.scope](Status stored) {
               if (!stored.ok()) return reply(stored);
               Call again{*services, ctx, scope};
               reply(Build(request, again));
             });
}

void SendEnd(const ServicesPtr& services, const rpc::Stream<pb::ImageJoinStreamingResponse>& stream,
             const std::string& image_id) {
  auto image = services->objects->images().ById(image_id);
  if (!image.ok()) return stream.Finish(image.status());
  pb::ImageJoinStreamingResponse last;
  *last.mutable_result() = ResultOf(*image);
  *last.mutable_metadata() = Metadata(*image);
  last.set_eof(true);
  stream.Write(last);
  stream.Finish();
}

void Join(const ServicesPtr& services, const pb::ImageJoinStreamingRequest& request, rpc::Ctx ctx,
          rpc::Stream<pb::ImageJoinStreamingResponse> stream) {
  auto scope = ScopeOf(*services, *ctx, Who::kAnyone);
  if (!scope.ok()) return stream.Finish(scope.status());
  auto image = services->objects->images().Get(*scope, request.image_id());
  if (!image.ok()) return stream.Finish(image.status());
  auto cursor = ParseCursor(request.last_entry_id());
  if (!cursor.ok()) return stream.Finish(cursor.status());
  services->objects->images().Ensure(*image);
  bool finished = image->state != ImageState::kBuilding;
  // Someone who has begun to read gets the rest, whatever it asked for.
  if (finished && !request.include_logs_for_finished() && *cursor == 0)
    return SendEnd(services, stream, image->id);
  if (finished) services->logs->MarkDone(image->id);
  LogPump::Options options;
  options.stream = image->id;
  options.after = *cursor;
  options.timeout_secs = request.timeout();
  // What earlier builds of this recipe said, which failed, lies in the same stream.
  options.filter.since_nanos = static_cast<int64_t>(image->created_at * 1e9);
  // Held as long as somebody reads.
  options.write = [stream, follow = services->objects->images().Follow(image->id)](
                      const std::vector<control::LogRecord>& records) {
    pb::ImageJoinStreamingResponse part;
    for (const auto& record : records) *part.add_task_logs() = LogItem(record);
    part.set_entry_id(Cursor(records.back().seq));
    stream.Write(part);
  };
  options.end = [services, stream, image_id = image->id](Result<bool> done) {
    if (!done.ok()) return stream.Finish(done.status());
    if (!*done) return stream.Finish();
    SendEnd(services, stream, image_id);
  };
  options.workspace = ctx->caller().workspace_id;
  LogPump::Start(&services->objects->strand(), services->logs, services->log_pages, std::move(ctx),
                 stream.raw(), std::move(options));
}

Result<pb::ImageFromIdResponse> FromId(const pb::ImageFromIdRequest& request, Call& call) {
  ASSIGN_OR_RETURN(Image image, call.objects().images().Get(call.scope, request.image_id()));
  if (image.state != ImageState::kReady)
    return NotFound("the image " + image.id + " was never built to its end");
  RETURN_IF_ERROR(call.objects().images().Touch(image.id));
  pb::ImageFromIdResponse response;
  response.set_image_id(image.id);
  *response.mutable_metadata() = Metadata(image);
  return response;
}

}  // namespace

void RegisterImages(rpc::Router& router, ServicesPtr services) {
  OnObjectsAsync<pb::ImageGetOrCreateRequest, pb::ImageGetOrCreateResponse>(
      router, services, "ImageGetOrCreate", Who::kAnyone,
      [services](const pb::ImageGetOrCreateRequest& request, Call& call, const auto& reply) {
        GetOrCreate(services, request, call, reply);
      },
      {.idempotent = true});
  router.ServerStream<pb::ImageJoinStreamingRequest, pb::ImageJoinStreamingResponse>(
      kClientService, "ImageJoinStreaming",
      [services](const pb::ImageJoinStreamingRequest& request, rpc::Ctx ctx,
                 rpc::Stream<pb::ImageJoinStreamingResponse> stream) {
        services->objects->strand().Post(
            [services, request, ctx, stream] { Join(services, request, ctx, stream); });
      });
  OnObjects<pb::ImageFromIdRequest, pb::ImageFromIdResponse>(router, services, "ImageFromId", Who::kAnyone,
                                                             FromId);
}

}  // namespace lydian::api
