#include "api/admin.h"

#include <unistd.h>

#include <memory>

#include "api/handlers.h"
#include "base/ids.h"

namespace lydian::api {

namespace {

constexpr char kService[] = "lydian.ControlAdmin";
constexpr size_t kMostImages = 200;

// What is in the store: apps and images.
Status AddStored(Services& services, StatusResponse* response) {
  for (const auto& workspace_id : services.objects->tokens().WorkspaceIds()) {
    ASSIGN_OR_RETURN(auto environments, services.objects->environments().List(workspace_id));
    for (const auto& environment : environments) {
      ASSIGN_OR_RETURN(auto apps, services.objects->apps().List(environment.id));
      for (const auto& app : apps) {
        if (app.state == control::AppState::kStopped) continue;
        AppInfo& info = *response->add_apps();
        info.set_app_id(app.id);
        info.set_name(app.title());
        info.set_state(control::AppStateName(app.state));
        info.set_created_at(app.created_at);
        info.set_environment(environment.name);
      }
    }
  }
  ASSIGN_OR_RETURN(auto images, services.objects->images().List(kMostImages));
  for (const auto& image : images) {
    ImageInfo& info = *response->add_images();
    info.set_image_id(image.id);
    info.set_state(image.state == control::ImageState::kReady    ? "ready"
                   : image.state == control::ImageState::kFailed ? "failed"
                   : image.state == control::ImageState::kLost   ? "lost"
                                                                 : "building");
    info.set_created_at(image.created_at);
    info.set_layers(static_cast<uint32_t>(image.spec.layer_ids_size()));
  }
  return OkStatus();
}

// Lines of the functions of living apps that have work; asked for one after the other.
struct Queues : std::enable_shared_from_this<Queues> {
  ServicesPtr services;
  std::vector<std::pair<std::string, std::string>> functions;  // id, name
  std::shared_ptr<StatusResponse> response;
  std::function<void()> done;
  size_t at = 0;

  void Next() {
    if (at == functions.size()) return done();
    auto self = shared_from_this();
    services->engine->Stats(functions[at].first, [self](control::FunctionStats stats) {
      if (stats.queued > 0 || stats.running > 0) {
        QueueInfo& info = *self->response->add_queues();
        info.set_function_id(self->functions[self->at].first);
        info.set_function_name(self->functions[self->at].second);
        info.set_queued(stats.queued);
        info.set_running(stats.running);
      }
      ++self->at;
      self->services->objects->strand().Post([self] { self->Next(); });
    });
  }
};

Result<std::vector<std::pair<std::string, std::string>>> LivingFunctions(Services& services) {
  std::vector<std::pair<std::string, std::string>> ids;
  ASSIGN_OR_RETURN(auto apps, services.objects->apps().Alive());
  for (const auto& app : apps) {
    if (!app.published) continue;
    ASSIGN_OR_RETURN(auto members, services.objects->functions().Members(app.id, true));
    for (const auto& member : members) {
      if (IdPrefix(member.id) != "fu") continue;
      ids.emplace_back(member.id, member.tag);
      ASSIGN_OR_RETURN(auto bound, services.objects->functions().BoundTo(member.id));
      for (const auto& variant : bound) ids.emplace_back(variant.id, member.tag);
    }
  }
  return ids;
}

void AddTasks(const std::vector<control::TaskView>& tasks, StatusResponse* response) {
  for (const auto& task : tasks) {
    TaskInfo& info = *response->add_tasks();
    info.set_task_id(task.task_id);
    info.set_app_id(task.app_id);
    info.set_function_name(task.function_name);
    info.set_container_id(task.container_id);
    info.set_pid(task.pid);
    info.set_state(task.state);
    info.set_started_at(task.started_at);
    info.set_worker_id(task.worker_id);
    info.set_ip(task.ip);
    for (auto& app : *response->mutable_apps()) {
      if (app.app_id() == task.app_id) app.set_tasks(app.tasks() + 1);
    }
  }
}

void AnswerStatus(const std::shared_ptr<AdminOptions>& options, const rpc::Reply<StatusResponse>& reply) {
  auto response = std::make_shared<StatusResponse>();
  ProcessInfo& own = *response->add_processes();
  own.set_role("control");
  own.set_pid(getpid());
  for (const auto& listener : options->listeners) response->add_listeners(listener);
  response->set_version(options->services->version);
  response->set_uptime_secs(
      std::chrono::duration<double>(std::chrono::steady_clock::now() - options->started).count());
  if (Status added = AddStored(*options->services, response.get()); !added.ok()) return reply(added);
  auto functions = LivingFunctions(*options->services);
  if (!functions.ok()) return reply(functions.status());
  auto queues = std::make_shared<Queues>();
  queues->services = options->services, queues->functions = *functions, queues->response = response;
  queues->done = [options, response, reply] {
    options->services->engine->Tasks([options, response, reply](std::vector<control::TaskView> tasks) {
      AddTasks(tasks, response.get());
      if (!options->workers) return reply(*response);
      options->workers([response, reply](std::vector<WorkerInfo> workers) {
        for (auto& worker : workers) *response->add_workers() = std::move(worker);
        reply(*response);
      });
    });
  };
  queues->Next();
}

}  // namespace

Status RequireRoot(const rpc::Context& ctx) {
  if (ctx.caller().kind == rpc::Caller::Kind::kRoot) return OkStatus();
  return PermissionDenied(std::string(ctx.method()) + " is for root, over the admin socket");
}

void RegisterAdmin(rpc::Router& router, AdminOptions given) {
  auto options = std::make_shared<AdminOptions>(std::move(given));
  RegisterStoreAdmin(router, options->services);
  // On the strand, for root.
  auto on_strand = [options](const rpc::Ctx& ctx, const auto& reply, auto fn) {
    if (Status root = RequireRoot(*ctx); !root.ok()) return reply(root);
    options->services->objects->strand().Post(std::move(fn));
  };
  router.Unary<StatusRequest, StatusResponse>(
      kService, "Status",
      [options, on_strand](const StatusRequest&, rpc::Ctx ctx, rpc::Reply<StatusResponse> reply) {
        on_strand(ctx, reply, [options, reply] { AnswerStatus(options, reply); });
      });
  router.Unary<TokenCreateRequest, TokenCreateResponse>(
      kService, "TokenCreate",
      [options, on_strand](const TokenCreateRequest& request, rpc::Ctx ctx,
                           rpc::Reply<TokenCreateResponse> reply) {
        on_strand(ctx, reply, [options, request, reply] {
          auto token = options->services->objects->tokens().Create(request.workspace(), request.name());
          if (!token.ok()) return reply(token.status());
          TokenCreateResponse response;
          response.set_token_id(token->token_id);
          response.set_token_secret(token->token_secret);
          response.set_workspace(token->workspace);
          reply(response);
        });
      });
  router.Unary<TokenListRequest, TokenListResponse>(
      kService, "TokenList",
      [options, on_strand](const TokenListRequest&, rpc::Ctx ctx, rpc::Reply<TokenListResponse> reply) {
        on_strand(ctx, reply, [options, reply] {
          TokenListResponse response;
          for (const auto& token : options->services->objects->tokens().List()) {
            TokenEntry& entry = *response.add_tokens();
            entry.set_token_id(token.token_id);
            entry.set_workspace(token.workspace);
            entry.set_name(token.name);
            entry.set_created_at(token.created_at);
            entry.set_revoked(token.revoked);
            entry.set_last_used_at(token.last_used_at);
          }
          reply(response);
        });
      });
  router.Unary<TokenRevokeRequest, TokenRevokeResponse>(
      kService, "TokenRevoke",
      [options, on_strand](const TokenRevokeRequest& request, rpc::Ctx ctx,
                           rpc::Reply<TokenRevokeResponse> reply) {
        on_strand(ctx, reply, [options, request, reply] {
          if (Status revoked = options->services->objects->tokens().Revoke(request.token_id()); !revoked.ok())
            return reply(revoked);
          reply(TokenRevokeResponse());
        });
      });
}

}  // namespace lydian::api
