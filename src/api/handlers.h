// How a handler of an object is written: a function from request and caller to an answer, run on the objects
// strand.
//
//   OnObjects<AppStopRequest, Empty>(router, services, "AppStop", Who::kAnyone, [](const AppStopRequest&
//   request, Call& call) -> Result<Empty> {...});
//
// Private to api/.
#pragma once

#include <google/protobuf/message_lite.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "api/services.h"
#include "control/scope.h"
#include "rpc/router.h"

namespace lydian::api {

inline constexpr char kClientService[] = "modal.client.ModalClient";

enum class Who {
  kAnyone,  // users and containers
  kUser,    // tokens, environments, members: never a container
};

// One call on its way: who asks, and what it may see.
struct Call {
  Services& services;
  rpc::Ctx ctx;
  control::Scope scope;

  control::Objects& objects() { return *services.objects; }
  const rpc::Caller& caller() const { return ctx->caller(); }
  bool from_task() const { return ctx->caller().kind == rpc::Caller::Kind::kTask; }
};

// On the strand. PERMISSION_DENIED for those who may not.
Result<control::Scope> ScopeOf(Services& services, const rpc::Context& ctx, Who who);

// Of a call that creates: where its answer is kept over a restart (control/answers.h). "" without an
// idempotency key.
std::string AnswerKey(Call& call);
bool FindAnswer(Call& call, const std::string& key, google::protobuf::MessageLite* answer);
void KeepAnswer(Call& call, const std::string& key, const google::protobuf::MessageLite& answer);

// `fn(request, call, reply)`: may answer later.
template <typename Request, typename Response, typename Fn>
void OnObjectsAsync(rpc::Router& router, ServicesPtr services, std::string_view method, Who who, Fn fn,
                    rpc::MethodOptions options = {}) {
  router.Unary<Request, Response>(
      kClientService, method,
      [services, who, fn](const Request& request, rpc::Ctx ctx, rpc::Reply<Response> reply) {
        auto kept = std::make_shared<Request>(request);
        services->objects->strand().Post([services, who, fn, kept, ctx, reply] {
          auto scope = ScopeOf(*services, *ctx, who);
          if (!scope.ok()) return reply(scope.status());
          Call call{*services, ctx, *scope};
          fn(*kept, call, reply);
        });
      },
      options);
}

// `fn(request, call) -> Result<Response>`.
template <typename Request, typename Response, typename Fn>
void OnObjects(rpc::Router& router, ServicesPtr services, std::string_view method, Who who, Fn fn,
               rpc::MethodOptions options = {}) {
  OnObjectsAsync<Request, Response>(
      router, std::move(services), method, who,
      [fn, options](const Request& request, Call& call, const rpc::Reply<Response>& reply) {
        const std::string key = options.idempotent ? AnswerKey(call) : "";
        Response earlier;
        if (!key.empty() && FindAnswer(call, key, &earlier)) return reply(earlier);
        Result<Response> result = fn(request, call);
        if (!key.empty() && result.ok()) KeepAnswer(call, key, *result);
        reply(result);
      },
      options);
}

// What a look-up of a task says, in the words that every object's has.
Status NoSuchTask(const Status& status, const std::string& task_id);

// The feature areas, one a file.
void RegisterEnvironments(rpc::Router& router, ServicesPtr services);
void RegisterApps(rpc::Router& router, ServicesPtr services);
void RegisterAppLogs(rpc::Router& router, ServicesPtr services);
void RegisterFunctions(rpc::Router& router, ServicesPtr services);
void RegisterMounts(rpc::Router& router, ServicesPtr services);
void RegisterImages(rpc::Router& router, ServicesPtr services);
void RegisterSecrets(rpc::Router& router, ServicesPtr services);
void RegisterBlobs(rpc::Router& router, ServicesPtr services);
void RegisterTasks(rpc::Router& router, ServicesPtr services);

}  // namespace lydian::api
