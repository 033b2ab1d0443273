// Containers as people see them: `modal container list`, `stop`, and what logs and redeployments ask about
// them.
#include <modal_proto/api.pb.h>

#include "api/handlers.h"

namespace lydian::api {

namespace pb = modal::client;

Status NoSuchTask(const Status& status, const std::string& task_id) {
  return status.code() == Code::kNotFound ? control::NoSuch("container", "ta", task_id) : status;
}

namespace {

// A task is seen by who sees its app.
Result<control::App> AppOf(const control::TaskView& task, Services& services, const control::Scope& scope) {
  auto app = services.objects->apps().Get(scope, task.app_id);
  if (!app.ok()) return control::NoSuch("container", "ta", task.task_id);
  return app;
}

using Then = std::function<void(const control::TaskView&)>;

// Looks a task up and goes on on the strand; `fail` gets NOT_FOUND, the same for one that isn't there and for
// another workspace's.
void WithTask(const ServicesPtr& services, const std::string& task_id, const control::Scope& scope,
              std::function<void(Status)> fail, Then then) {
  services->engine->TaskById(task_id, [services, task_id, scope, fail, then](Result<control::TaskView> task) {
    services->objects->strand().Post([services, task_id, scope, fail, then, task = std::move(task)] {
      if (!task.ok()) return fail(NoSuchTask(task.status(), task_id));
      if (auto app = AppOf(*task, *services, scope); !app.ok()) return fail(app.status());
      then(*task);
    });
  });
}

void List(const ServicesPtr& services, const pb::TaskListRequest& request, Call& call,
          const rpc::Reply<pb::TaskListResponse>& reply) {
  auto environment = call.objects().environments().Resolve(call.scope, request.environment_name());
  if (!environment.ok()) return reply(environment.status());
  services->engine->Tasks([services, scope = call.scope, reply, app_id = request.app_id(),
                           environment_id = environment->id](std::vector<control::TaskView> tasks) {
    services->objects->strand().Post(
        [services, scope, reply, app_id, environment_id, tasks = std::move(tasks)] {
          pb::TaskListResponse response;
          for (const auto& task : tasks) {
            if (!app_id.empty() && task.app_id != app_id) continue;
            auto app = AppOf(task, *services, scope);
            if (!app.ok() || (app_id.empty() && app->environment_id != environment_id)) continue;
            auto& item = *response.add_tasks();
            item.set_task_id(task.task_id);
            item.set_app_id(task.app_id);
            item.set_app_description(app->title());
            item.set_started_at(task.started_at);
            item.set_enqueued_at(task.enqueued_at);
          }
          reply(response);
        });
  });
}

void GetInfo(const ServicesPtr& services, const pb::TaskGetInfoRequest& request, Call& call,
             const rpc::Reply<pb::TaskGetInfoResponse>& reply) {
  WithTask(services, request.task_id(), call.scope, reply, [reply](const control::TaskView& task) {
    pb::TaskGetInfoResponse response;
    response.set_app_id(task.app_id);
    auto& info = *response.mutable_info();
    info.set_id(task.task_id);
    info.set_enqueued_at(task.enqueued_at);
    info.set_started_at(task.started_at);
    info.set_finished_at(task.finished_at);
    reply(response);
  });
}

void Stop(const ServicesPtr& services, const pb::ContainerStopRequest& request, Call& call,
          const rpc::Reply<pb::ContainerStopResponse>& reply) {
  WithTask(
      services, request.task_id(), call.scope, reply,
      [services, reply, graceful = request.graceful(), who = call.scope.who](const control::TaskView& task) {
        if (task.finished_at > 0) return reply(pb::ContainerStopResponse());
        services->engine->StopTask(task.task_id, "it was stopped by " + who, graceful,
                                   [reply](Status status) {
                                     if (!status.ok()) return reply(status);
                                     reply(pb::ContainerStopResponse());
                                   });
      });
}

}  // namespace

void RegisterTasks(rpc::Router& router, ServicesPtr services) {
  OnObjectsAsync<pb::TaskListRequest, pb::TaskListResponse>(
      router, services, "TaskList", Who::kAnyone,
      [services](const pb::TaskListRequest& request, Call& call, const auto& reply) {
        List(services, request, call, reply);
      });
  OnObjectsAsync<pb::TaskGetInfoRequest, pb::TaskGetInfoResponse>(
      router, services, "TaskGetInfo", Who::kAnyone,
      [services](const pb::TaskGetInfoRequest& request, Call& call, const auto& reply) {
        GetInfo(services, request, call, reply);
      });
  OnObjectsAsync<pb::ContainerStopRequest, pb::ContainerStopResponse>(
      router, services, "ContainerStop", Who::kAnyone,
      [services](const pb::ContainerStopRequest& request, Call& call, const auto& reply) {
        Stop(services, request, call, reply);
      });
}

}  // namespace lydian::api
