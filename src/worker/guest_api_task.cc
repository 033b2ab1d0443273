#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <map>

#include "modal_proto/api.pb.h"
#include "rpc/restricted.h"
#include "worker/guest_api.h"
#include "worker/link_limits.h"

namespace lydian::worker {
namespace {

namespace api = modal::client;
constexpr char kService[] = "modal.client.ModalClient";

class GuestAuthenticator : public rpc::Authenticator {
 public:
  explicit GuestAuthenticator(const TaskSpec& spec) {
    caller_.kind = rpc::Caller::Kind::kTask;
    caller_.workspace_id = spec.workspace_id();
    caller_.task_id = spec.task_id();
    caller_.environment = spec.environment_name();
    caller_.restricted = spec.restrict_modal_access();
    caller_.unix_socket = true;
  }
  Result<rpc::Caller> Authenticate(const Headers&, std::string_view, const rpc::MethodOptions&) override {
    return caller_;
  }

 private:
  rpc::Caller caller_;
};

void AddOwnMethods(rpc::Router& router, GuestBackend* backend, Relay* relay);

}  // namespace

std::shared_ptr<rpc::Authenticator> MakeGuestAuthenticator(const TaskSpec& spec) {
  return std::make_shared<GuestAuthenticator>(spec);
}

RelayKind GuestMethodKind(std::string_view full_method) {
  static const std::map<std::string, RelayKind, std::less<>> kinds = [] {
    std::map<std::string, RelayKind, std::less<>> made;
    const auto* service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(kService);
    if (service == nullptr) {
      // The descriptors are registered by a static of api.pb.cc, which the linker keeps because of these
      // messages.
      (void)api::ContainerArguments::descriptor();
      service = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(kService);
    }
    CHECK(service != nullptr);
    for (int i = 0; i < service->method_count(); ++i) {
      const auto* method = service->method(i);
      const RelayKind kind = method->client_streaming()   ? RelayKind::kUnknown
                             : method->server_streaming() ? RelayKind::kServerStream
                                                          : RelayKind::kUnary;
      made.emplace("/" + std::string(kService) + "/" + method->name(), kind);
    }
    return made;
  }();
  const auto it = kinds.find(full_method);
  return it == kinds.end() ? RelayKind::kUnknown : it->second;
}

Result<std::string> MakeContainerArguments(const TaskSpec& spec) {
  api::ContainerArguments arguments;
  arguments.set_task_id(spec.task_id());
  arguments.set_function_id(spec.function_id());
  arguments.set_app_id(spec.app_id());
  if (!arguments.mutable_function_def()->ParseFromString(spec.function_def())) {
    return InvalidArgument("the definition of " + spec.function_name() + " does not parse");
  }
  if (!arguments.mutable_app_layout()->ParseFromString(spec.app_layout())) {
    return InvalidArgument("the layout of app " + spec.app_id() + " does not parse");
  }
  arguments.set_serialized_params(spec.serialized_params());
  arguments.set_environment_name(spec.environment_name());
  return arguments.SerializeAsString();
}

std::shared_ptr<rpc::Router> MakeGuestRouter(GuestBackend* backend, Relay* relay) {
  auto router = std::make_shared<rpc::Router>();
  AddOwnMethods(*router, backend, relay);
  router->SetFallback([relay](std::string_view full_method, rpc::Ctx ctx,
                              std::shared_ptr<rpc::RawStream> out) -> rpc::RawReader {
    const std::string_view method = full_method.substr(full_method.rfind('/') + 1);
    if (Status open = ctx->caller().restricted ? rpc::CheckRestricted(method) : OkStatus(); !open.ok()) {
      out->Finish(std::move(open));
      return {[](std::string_view) -> Status { return {}; }, [] {}};
    }
    return relay->Start(full_method, std::move(ctx), std::move(out));
  });
  return router;
}

namespace {

void GetInputs(GuestBackend* backend, const api::FunctionGetInputsRequest& request, rpc::Ctx ctx,
               rpc::Reply<api::FunctionGetInputsResponse> reply) {
  auto question = std::make_shared<InputQuestion>();
  question->key = ctx->header("x-idempotency-key");
  question->batch_max_size = request.batch_max_size();
  question->batch_linger_ms = request.batch_linger_ms();
  // The context is kept: a reply whose call is gone does nothing.
  question->reply = [reply, ctx](Result<Handed> handed) {
    if (!handed.ok()) return reply(handed.status());
    api::FunctionGetInputsResponse response;
    if (handed->kill_switch) response.add_inputs()->set_kill_switch(true);
    for (const Lease& lease : handed->leases) {
      api::FunctionGetInputsItem* item = response.add_inputs();
      item->set_input_id(lease.input_id());
      if (!item->mutable_input()->ParseFromString(lease.input())) {
        return reply(Internal("input " + lease.input_id() + " does not parse"));
      }
      item->set_function_call_id(lease.function_call_id());
      item->set_function_call_invocation_type(
          static_cast<api::FunctionCallInvocationType>(lease.invocation_type()));
      item->set_retry_count(lease.attempt());
      item->set_function_map_idx(static_cast<int32_t>(lease.idx()));
    }
    reply(response);
  };
  const std::string task_id = ctx->caller().task_id;
  ctx->OnCancel([backend, task_id, weak = std::weak_ptr<InputQuestion>(question)] {
    if (auto question = weak.lock()) backend->GuestWithdraws(task_id, std::move(question));
  });
  backend->GuestAsks(task_id, std::move(question));
}

void PutOutputs(GuestBackend* backend, const api::FunctionPutOutputsRequest& request, const rpc::Ctx& ctx,
                rpc::Reply<google::protobuf::Empty> reply) {
  std::vector<Output> outputs;
  for (const api::FunctionPutOutputsItem& item : request.outputs()) {
    Output output;
    output.set_input_id(item.input_id());
    output.set_attempt(item.retry_count());
    output.set_result(item.result().SerializeAsString());
    output.set_status(item.result().status());
    output.set_data_format(item.data_format());
    output.set_started_at(item.input_started_at());
    output.set_created_at(item.output_created_at());
    outputs.push_back(std::move(output));
  }
  backend->GuestPuts(ctx->caller().task_id, std::move(outputs),
                     [reply, ctx] { reply(google::protobuf::Empty()); });
}

void Heartbeat(GuestBackend* backend, const rpc::Ctx& ctx,
               rpc::Reply<api::ContainerHeartbeatResponse> reply) {
  backend->GuestHeartbeat(ctx->caller().task_id, ctx,
                          [reply, ctx](Result<std::vector<std::string>> cancelled) {
                            if (!cancelled.ok()) return reply(cancelled.status());
                            api::ContainerHeartbeatResponse response;
                            for (const std::string& id : *cancelled)
                              response.mutable_cancel_input_event()->add_input_ids(id);
                            reply(response);
                          });
}

// ContainerStop of another task is for control to judge.
void Stop(GuestBackend* backend, Relay* relay, std::string_view bytes, rpc::Ctx ctx,
          std::shared_ptr<rpc::RawStream> out) {
  api::ContainerStopRequest request;
  if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return out->Finish(InvalidArgument("the bytes are not a ContainerStop request"));
  }
  if (request.task_id() == ctx->caller().task_id) {
    return backend->GuestStopsItself(request.task_id(), [out, ctx] {
      out->Write(api::ContainerStopResponse().SerializeAsString());
      out->Finish({});
    });
  }
  if (ctx->caller().restricted) {
    return out->Finish(
        PermissionDenied("ContainerStop of another task is not open to this container: it was made with "
                         "restrict_modal_access=True"));
  }
  rpc::RawReader reader =
      relay->Start("/" + std::string(kService) + "/ContainerStop", std::move(ctx), std::move(out));
  if (Status status = reader.on_message(bytes); status.ok()) reader.on_end();
}

void AddOwnMethods(rpc::Router& router, GuestBackend* backend, Relay* relay) {
  const rpc::MethodOptions own{.task_only = true};
  // The client repeats RESOURCE_EXHAUSTED for ever; what could never travel ends the container instead, with
  // the reason in its log.
  const rpc::MethodOptions bounded{
      .max_request_bytes = kMostGuestOutputs, .too_large = Code::kInvalidArgument, .task_only = true};
  using google::protobuf::Empty;
  router.Unary<Empty, Empty>(
      kService, "ContainerHello",
      [backend](const Empty&, const rpc::Ctx& ctx, const rpc::Reply<Empty>& reply) {
        backend->GuestHello(ctx->caller().task_id);
        reply(Empty());
      },
      own);
  router.Unary<api::ContainerHeartbeatRequest, api::ContainerHeartbeatResponse>(
      kService, "ContainerHeartbeat",
      [backend](const auto&, const rpc::Ctx& ctx, auto reply) { Heartbeat(backend, ctx, std::move(reply)); },
      own);
  router.Unary<api::FunctionGetInputsRequest, api::FunctionGetInputsResponse>(
      kService, "FunctionGetInputs",
      [backend](const auto& request, rpc::Ctx ctx, auto reply) {
        GetInputs(backend, request, std::move(ctx), std::move(reply));
      },
      own);
  router.Unary<api::FunctionPutOutputsRequest, Empty>(
      kService, "FunctionPutOutputs",
      [backend](const auto& request, const rpc::Ctx& ctx, auto reply) {
        PutOutputs(backend, request, ctx, std::move(reply));
      },
      bounded);
  router.Unary<api::TaskResultRequest, Empty>(
      kService, "TaskResult",
      [backend](const api::TaskResultRequest& request, const rpc::Ctx& ctx, const rpc::Reply<Empty>& reply) {
        backend->GuestResult(ctx->caller().task_id, request.result().SerializeAsString(),
                             [reply, ctx] { reply(Empty()); });
      },
      bounded);
  router.Unary<api::FunctionGetDynamicConcurrencyRequest, api::FunctionGetDynamicConcurrencyResponse>(
      kService, "FunctionGetDynamicConcurrency",
      [](const api::FunctionGetDynamicConcurrencyRequest& request, const rpc::Ctx&, const auto& reply) {
        // How many run at once is decided where inputs are leased: the container takes what it is handed.
        api::FunctionGetDynamicConcurrencyResponse response;
        response.set_concurrency(
            std::max({uint32_t{1}, request.target_concurrency(), request.max_concurrency()}));
        reply(response);
      },
      own);
  router.AddServerStream(
      kService, "ContainerStop",
      [backend, relay](std::string_view bytes, rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out) {
        Stop(backend, relay, bytes, std::move(ctx), std::move(out));
      },
      own);
}

}  // namespace
}  // namespace lydian::worker
