#include "api/calls.h"

#include <algorithm>

#include "control/blob_ids.h"
#include "modal_proto/api.pb.h"

namespace lydian::api {
namespace {

namespace pb = modal::client;
using control::CallEngine;
using google::protobuf::Empty;

constexpr char kService[] = "modal.client.ModalClient";
constexpr float kRetryAfterSecs = 1;
constexpr uint32_t kMostOutstanding = 1000;  // of a map's inputs, as the client's own default

// The journal reads these from bytes.
static_assert(control::kInputBlobField == pb::FunctionInput::kArgsBlobIdFieldNumber);
static_assert(control::kResultBlobField == pb::GenericResult::kDataBlobIdFieldNumber);
static_assert(control::kChunkBlobField == pb::DataChunk::kDataBlobIdFieldNumber);

Result<control::CallScope> ScopeOf(const rpc::Context& ctx) {
  const rpc::Caller& caller = ctx.caller();
  switch (caller.kind) {
    case rpc::Caller::Kind::kUser:
      return control::CallScope{caller.workspace_id, ""};
    case rpc::Caller::Kind::kTask:
      return control::CallScope{caller.workspace_id, caller.environment};
    default:
      return PermissionDenied(std::string(ctx.method()) + " needs a user's token");
  }
}

// The same key of two callers is two keys.
std::string IdempotencyKey(const rpc::Context& ctx) {
  std::string_view key = ctx.header("x-idempotency-key");
  if (key.empty() || key.size() > 200) return "";
  const rpc::Caller& caller = ctx.caller();
  return (caller.task_id.empty() ? caller.token_id : caller.task_id) + "/" + std::string(key);
}

template <typename Items>
Result<std::vector<control::NewInput>> InputsOf(const Items& items) {
  RETURN_IF_ERROR(control::CheckInputCount(static_cast<size_t>(items.size())));
  std::vector<control::NewInput> inputs;
  inputs.reserve(static_cast<size_t>(items.size()));
  for (const pb::FunctionPutInputsItem& item : items) {
    if (item.idx() < 0) return InvalidArgument("an input's index is negative");
    inputs.push_back(
        {static_cast<uint32_t>(item.idx()), item.input().SerializeAsString(), item.input().method_name()});
  }
  return inputs;
}

// Input tokens stay empty: retries are ours, and the client sends the token of every outstanding input with
// each poll.
template <typename Out>
void FillInputs(const std::vector<control::PutInput>& inputs, Out* out) {
  out->Reserve(static_cast<int>(inputs.size()));
  for (const control::PutInput& input : inputs) {
    auto* item = out->Add();
    item->set_idx(static_cast<int32_t>(input.idx));
    item->set_input_id(input.input_id);
  }
}

// A client puts a map's inputs again by itself when they are too many. For a call of its own it does so only
// if it is told when; unlike other errors it doesn't count as a failed try.
Status Later(const Status& status) {
  if (status.code() != Code::kResourceExhausted) return status;
  pb::RPCRetryPolicy policy;
  policy.set_retry_after_secs(kRetryAfterSecs);
  pb::RPCStatus details;
  details.set_code(static_cast<int32_t>(status.code()));
  details.set_message(status.message());
  details.add_details()->PackFrom(policy, "type.modal.com/");
  return status.WithDetails(details.SerializeAsString());
}

void Map(CallEngine& engine, const pb::FunctionMapRequest& request, const rpc::Ctx& ctx,
         const rpc::Reply<pb::FunctionMapResponse>& reply) {
  auto scope = ScopeOf(*ctx);
  if (!scope.ok()) return reply(scope.status());
  auto inputs = InputsOf(request.pipelined_inputs());
  if (!inputs.ok()) return reply(inputs.status());
  control::NewCall call;
  call.scope = *scope;
  call.function_id = request.function_id();
  call.parent_input_id = request.parent_input_id();
  call.idempotency_key = IdempotencyKey(*ctx);
  if (request.function_call_type() != pb::FUNCTION_CALL_TYPE_UNARY &&
      request.function_call_type() != pb::FUNCTION_CALL_TYPE_MAP) {
    return reply(InvalidArgument("a function call is a single call or a map"));
  }
  call.call_type = request.function_call_type();
  call.invocation_type =
      request.function_call_invocation_type() == pb::FUNCTION_CALL_INVOCATION_TYPE_UNSPECIFIED
          ? control::kSyncLegacy
          : static_cast<int32_t>(request.function_call_invocation_type());
  call.inputs = std::move(*inputs);
  engine.CreateCall(std::move(call), [reply](Result<control::CreatedCall> created) {
    if (!created.ok()) return reply(Later(created.status()));
    pb::FunctionMapResponse response;
    response.set_function_call_id(created->call_id);
    FillInputs(created->inputs, response.mutable_pipelined_inputs());
    pb::FunctionRetryPolicy* policy = response.mutable_retry_policy();
    policy->set_retries(created->retry.retries);
    policy->set_backoff_coefficient(static_cast<float>(created->retry.backoff_coefficient));
    policy->set_initial_delay_ms(created->retry.initial_delay_ms);
    policy->set_max_delay_ms(created->retry.max_delay_ms);
    response.set_sync_client_retries_enabled(false);
    response.set_max_inputs_outstanding(kMostOutstanding);
    reply(response);
  });
}

void PutInputs(CallEngine& engine, const pb::FunctionPutInputsRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionPutInputsResponse>& reply) {
  auto scope = ScopeOf(*ctx);
  if (!scope.ok()) return reply(scope.status());
  auto inputs = InputsOf(request.inputs());
  if (!inputs.ok()) return reply(inputs.status());
  engine.PutInputs(*scope, request.function_call_id(), request.function_id(), std::move(*inputs),
                   [reply](Result<std::vector<control::PutInput>> put) {
                     if (!put.ok()) return reply(put.status());
                     pb::FunctionPutInputsResponse response;
                     FillInputs(*put, response.mutable_inputs());
                     reply(response);
                   });
}

void FillOutput(const control::OutputView& output, pb::FunctionGetOutputsItem* item) {
  pb::GenericResult* result = item->mutable_result();
  if (output.result == nullptr || !result->ParseFromString(*output.result)) {
    result->Clear();
    result->set_status(static_cast<pb::GenericResult::GenericStatus>(output.status));
    result->set_exception(output.text);
  }
  // The container leaves it empty, and it is all that the caller gets to read.
  if (result->status() == pb::GenericResult::GENERIC_STATUS_TERMINATED && result->exception().empty()) {
    result->set_exception("the call was cancelled");
  }
  item->set_idx(static_cast<int32_t>(output.idx));
  item->set_input_id(output.input_id);
  item->set_data_format(static_cast<pb::DataFormat>(output.data_format));
  item->set_task_id(output.task_id);
  item->set_input_started_at(output.started_at);
  item->set_output_created_at(output.created_at);
  item->set_retry_count(0);  // the client counts no attempts of its own, and drops what has another number
}

void GetOutputs(CallEngine& engine, const pb::FunctionGetOutputsRequest& request, const rpc::Ctx& ctx,
                const rpc::Reply<pb::FunctionGetOutputsResponse>& reply) {
  auto scope = ScopeOf(*ctx);
  if (!scope.ok()) return reply(scope.status());
  control::OutputsQuery query;
  query.scope = *scope;
  query.call_id = request.function_call_id();
  query.last_entry_id = request.last_entry_id();
  double timeout = request.timeout();
  query.timeout = Millis(timeout > 0 && timeout < 3600 ? static_cast<int64_t>(timeout * 1000)
                         : timeout >= 3600             ? 3'600'000
                                                       : 0);
  query.clear_on_success = request.clear_on_success();
  if (request.has_start_idx()) query.start_idx = request.start_idx();
  if (request.has_end_idx()) query.end_idx = request.end_idx();
  if (request.has_end_idx() && !request.has_start_idx()) query.start_idx = 0;
  query.max_values = request.max_values() > 0 ? static_cast<size_t>(request.max_values()) : 0;
  std::shared_ptr<void> asked =
      engine.GetOutputs(std::move(query), [reply](Result<control::OutputsPage> page) {
        if (!page.ok()) return reply(page.status());
        pb::FunctionGetOutputsResponse response;
        for (const control::OutputView& output : page->outputs) {
          response.add_idxs(static_cast<int32_t>(output.idx));
          FillOutput(output, response.add_outputs());
        }
        response.set_last_entry_id(page->last_entry_id);
        response.set_num_unfinished_inputs(page->unfinished);
        reply(response);
      });
  ctx->OnCancel([asked = std::move(asked)]() mutable { asked.reset(); });
}

// Sends a generator's data as it comes, for as long as the client wants it.
class ChunkPump : public std::enable_shared_from_this<ChunkPump> {
 public:
  ChunkPump(CallEngine& engine, control::CallScope scope, std::string call_id, uint64_t last,
            rpc::Stream<pb::DataChunk> stream)
      : engine_(engine),
        scope_(std::move(scope)),
        call_id_(std::move(call_id)),
        last_(last),
        stream_(std::move(stream)) {}

  void Next() {
    auto self = shared_from_this();
    std::shared_ptr<void> asked =
        engine_.NextChunks(scope_, call_id_, last_,
                           [self](Result<control::DataChunks> chunks) { self->Send(std::move(chunks)); });
    std::lock_guard lock(mutex_);
    if (!over_) asked_ = std::move(asked);
  }

  void Stop() {
    std::shared_ptr<void> asked;
    std::lock_guard lock(mutex_);
    over_ = true;
    asked.swap(asked_);
  }

 private:
  void Send(Result<control::DataChunks> chunks) {
    if (!chunks.ok()) return stream_.Finish(chunks.status());
    for (const auto& [index, bytes] : chunks->chunks) {
      last_ = index;
      if (!stream_.raw()->Write(*bytes)) return;
    }
    stream_.OnDrained(size_t{8} << 20, [self = shared_from_this()] { self->Next(); });
  }

  CallEngine& engine_;
  const control::CallScope scope_;
  const std::string call_id_;
  uint64_t last_;
  rpc::Stream<pb::DataChunk> stream_;
  std::mutex mutex_;  // guards the two below
  std::shared_ptr<void> asked_;
  bool over_ = false;
};

void GetDataOut(CallEngine& engine, const pb::FunctionCallGetDataRequest& request, const rpc::Ctx& ctx,
                rpc::Stream<pb::DataChunk> stream) {
  auto scope = ScopeOf(*ctx);
  if (!scope.ok()) return stream.Finish(scope.status());
  auto pump =
      std::make_shared<ChunkPump>(engine, *scope, request.function_call_id(), request.last_index(), stream);
  ctx->OnCancel([weak = std::weak_ptr(pump)] {
    if (auto running = weak.lock()) running->Stop();
  });
  pump->Next();
}

void PutDataOut(CallEngine& engine, const pb::FunctionCallPutDataRequest& request, const rpc::Ctx& ctx,
                const rpc::Reply<Empty>& reply) {
  auto scope = ScopeOf(*ctx);
  if (!scope.ok()) return reply(scope.status());
  std::vector<std::pair<uint64_t, std::string>> chunks;
  for (const pb::DataChunk& chunk : request.data_chunks())
    chunks.emplace_back(chunk.index(), chunk.SerializeAsString());
  engine.PutChunks(*scope, request.function_call_id(), ctx->caller().task_id, std::move(chunks),
                   [reply](Status status) {
                     if (!status.ok()) return reply(status);
                     reply(Empty());
                   });
}

void FillInfo(const control::CallInfo& info, pb::FunctionCallInfo* out) {
  out->set_function_call_id(info.call_id);
  out->set_created_at(info.created_at);
  out->set_scheduled_at(info.created_at);
  out->set_total_inputs(static_cast<int32_t>(info.total));
  out->mutable_pending_inputs()->set_total(static_cast<int32_t>(info.pending));
  out->mutable_failed_inputs()->set_total(static_cast<int32_t>(info.failed));
  out->mutable_succeeded_inputs()->set_total(static_cast<int32_t>(info.succeeded));
  out->mutable_timeout_inputs()->set_total(static_cast<int32_t>(info.timed_out));
  out->mutable_cancelled_inputs()->set_total(static_cast<int32_t>(info.cancelled));
}

void GetCallGraph(CallEngine& engine, const pb::FunctionGetCallGraphRequest& request, const rpc::Ctx& ctx,
                  const rpc::Reply<pb::FunctionGetCallGraphResponse>& reply) {
  auto scope = ScopeOf(*ctx);
  if (!scope.ok()) return reply(scope.status());
  engine.GetCallGraph(*scope, request.function_call_id(), [reply](Result<control::CallGraph> graph) {
    if (!graph.ok()) return reply(graph.status());
    pb::FunctionGetCallGraphResponse response;
    for (const auto& node : graph->inputs) {
      pb::InputCallGraphInfo* out = response.add_inputs();
      out->set_input_id(node.input_id);
      out->set_function_call_id(node.call_id);
      out->set_task_id(node.task_id);
      out->set_status(static_cast<pb::GenericResult::GenericStatus>(node.status));
    }
    for (const auto& node : graph->calls) {
      pb::FunctionCallCallGraphInfo* out = response.add_function_calls();
      out->set_function_call_id(node.call_id);
      out->set_parent_input_id(node.parent_input_id);
      out->set_function_name(node.function_name);
    }
    response.set_truncated(graph->truncated);
    reply(response);
  });
}

void RegisterQuestions(rpc::Router& router, CallEngine* engine) {
  router.Unary<pb::FunctionCallFromIdRequest, pb::FunctionCallFromIdResponse>(
      kService, "FunctionCallFromId",
      [engine](const pb::FunctionCallFromIdRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionCallFromIdResponse>& reply) {
        auto scope = ScopeOf(*ctx);
        if (!scope.ok()) return reply(scope.status());
        engine->GetCallInfo(*scope, request.function_call_id(), [reply](Result<control::CallInfo> info) {
          if (!info.ok()) return reply(info.status());
          pb::FunctionCallFromIdResponse response;
          response.set_function_call_id(info->call_id);
          response.set_num_inputs(static_cast<int32_t>(info->total));
          response.mutable_metadata()->set_app_id(info->app_id);
          response.mutable_metadata()->set_function_id(info->function_id);
          reply(response);
        });
      });
  router.Unary<pb::FunctionCallGetInfoRequest, pb::FunctionCallGetInfoResponse>(
      kService, "FunctionCallGetInfo",
      [engine](const pb::FunctionCallGetInfoRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionCallGetInfoResponse>& reply) {
        auto scope = ScopeOf(*ctx);
        if (!scope.ok()) return reply(scope.status());
        engine->GetCallInfo(*scope, request.function_call_id(), [reply](Result<control::CallInfo> info) {
          if (!info.ok()) return reply(info.status());
          pb::FunctionCallGetInfoResponse response;
          FillInfo(*info, response.mutable_info());
          reply(response);
        });
      });
  router.Unary<pb::FunctionCallListRequest, pb::FunctionCallListResponse>(
      kService, "FunctionCallList",
      [engine](const pb::FunctionCallListRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionCallListResponse>& reply) {
        auto scope = ScopeOf(*ctx);
        if (!scope.ok()) return reply(scope.status());
        engine->ListCalls(*scope, request.function_id(),
                          [reply](Result<std::vector<control::CallInfo>> calls) {
                            if (!calls.ok()) return reply(calls.status());
                            pb::FunctionCallListResponse response;
                            for (const control::CallInfo& call : *calls)
                              FillInfo(call, response.add_function_calls());
                            reply(response);
                          });
      });
  router.Unary<pb::FunctionGetCurrentStatsRequest, pb::FunctionStats>(
      kService, "FunctionGetCurrentStats",
      [engine](const pb::FunctionGetCurrentStatsRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionStats>& reply) {
        auto scope = ScopeOf(*ctx);
        if (!scope.ok()) return reply(scope.status());
        engine->FunctionStatsIn(*scope, request.function_id(), [reply](Result<control::FunctionStats> stats) {
          if (!stats.ok()) return reply(stats.status());
          pb::FunctionStats response;
          response.set_backlog(stats->queued);
          response.set_num_total_tasks(stats->tasks);
          response.set_num_running_inputs(stats->running);
          response.set_input_headroom(stats->free);
          reply(response);
        });
      });
  router.Unary<pb::FunctionGetCallGraphRequest, pb::FunctionGetCallGraphResponse>(
      kService, "FunctionGetCallGraph",
      [engine](const pb::FunctionGetCallGraphRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionGetCallGraphResponse>& reply) {
        GetCallGraph(*engine, request, ctx, reply);
      });
  // A container may always take what its function allows: the engine gives it no more than that.
  router.Unary<pb::FunctionGetDynamicConcurrencyRequest, pb::FunctionGetDynamicConcurrencyResponse>(
      kService, "FunctionGetDynamicConcurrency",
      [](const pb::FunctionGetDynamicConcurrencyRequest& request, const rpc::Ctx&,
         const rpc::Reply<pb::FunctionGetDynamicConcurrencyResponse>& reply) {
        pb::FunctionGetDynamicConcurrencyResponse response;
        response.set_concurrency(std::max(request.max_concurrency(), request.target_concurrency()));
        reply(response);
      });
}

}  // namespace

void RegisterCalls(rpc::Router& router, CallsDeps deps) {
  CallEngine* engine = deps.engine;
  router.Unary<pb::FunctionMapRequest, pb::FunctionMapResponse>(
      kService, "FunctionMap",
      [engine](const pb::FunctionMapRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionMapResponse>& reply) { Map(*engine, request, ctx, reply); });
  router.Unary<pb::FunctionPutInputsRequest, pb::FunctionPutInputsResponse>(
      kService, "FunctionPutInputs",
      [engine](const pb::FunctionPutInputsRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionPutInputsResponse>& reply) {
        PutInputs(*engine, request, ctx, reply);
      });
  router.Unary<pb::FunctionGetOutputsRequest, pb::FunctionGetOutputsResponse>(
      kService, "FunctionGetOutputs",
      [engine](const pb::FunctionGetOutputsRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<pb::FunctionGetOutputsResponse>& reply) {
        GetOutputs(*engine, request, ctx, reply);
      });
  // Each input is queued as it comes, so nothing waits for this; but a lost one would never be noticed.
  router.Unary<pb::FunctionFinishInputsRequest, Empty>(
      kService, "FunctionFinishInputs",
      [engine](const pb::FunctionFinishInputsRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<Empty>& reply) {
        auto scope = ScopeOf(*ctx);
        if (!scope.ok()) return reply(scope.status());
        engine->GetCallInfo(
            *scope, request.function_call_id(),
            [reply, announced = request.num_inputs()](Result<control::CallInfo> info) {
              if (!info.ok()) return reply(info.status());
              if (info->total < announced) {
                return reply(FailedPrecondition("the call " + info->call_id + " was to have " +
                                                std::to_string(announced) + " inputs, and " +
                                                std::to_string(info->total) + " have come"));
              }
              reply(Empty());
            });
      });
  router.Unary<pb::FunctionCallCancelRequest, Empty>(
      kService, "FunctionCallCancel",
      [engine](const pb::FunctionCallCancelRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<Empty>& reply) {
        auto scope = ScopeOf(*ctx);
        if (!scope.ok()) return reply(scope.status());
        engine->CancelCall(*scope, request.function_call_id(), request.terminate_containers(),
                           [reply](Status status) {
                             if (!status.ok()) return reply(status);
                             reply(Empty());
                           });
      });
  router.Unary<pb::FunctionCallPutDataRequest, Empty>(
      kService, "FunctionCallPutDataOut",
      [engine](const pb::FunctionCallPutDataRequest& request, const rpc::Ctx& ctx,
               const rpc::Reply<Empty>& reply) { PutDataOut(*engine, request, ctx, reply); });
  router.ServerStream<pb::FunctionCallGetDataRequest, pb::DataChunk>(
      kService, "FunctionCallGetDataOut",
      [engine](const pb::FunctionCallGetDataRequest& request, const rpc::Ctx& ctx,
               rpc::Stream<pb::DataChunk> stream) { GetDataOut(*engine, request, ctx, std::move(stream)); });
  RegisterQuestions(router, engine);
}

std::string ResultText(const std::string& bytes) {
  pb::GenericResult result;
  if (!result.ParseFromString(bytes)) return "a result that can't be read";
  if (!result.traceback().empty() && !result.exception().empty())
    return result.exception() + "\n" + result.traceback();
  return result.exception().empty() ? result.traceback() : result.exception();
}

}  // namespace lydian::api
