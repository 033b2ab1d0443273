#include "api/worker_link.h"
#include "base/log.h"

namespace lydian::api {

void RegisterWorkerObjects(rpc::Router& router, const WorkerLinkDeps& deps);  // worker_link_objects.cc

namespace {

rpc::RawReader Attach(control::WorkerRegistry& registry, const rpc::Ctx& ctx,
                      std::shared_ptr<rpc::RawStream> out) {
  if (ctx->caller().kind != rpc::Caller::Kind::kWorker) {
    out->Finish(PermissionDenied("only a worker attaches here"));
    return {[](std::string_view) { return Status(); }, [] {}};
  }
  uint64_t session = registry.Open(
      // A worker that doesn't read is as good as gone: Write ends its stream, and it comes with a new hello.
      [out](const ToWorker& message) { out->Write(message.SerializeAsString()); },
      [out](Status status) { out->Finish(std::move(status)); },
      {[out] { return out->buffered(); },
       [out](size_t limit, Task fn) { out->OnDrained(limit, std::move(fn)); }});
  ctx->OnCancel([&registry, session] { registry.Closed(session); });
  rpc::RawReader reader;
  reader.on_message = [&registry, session](std::string_view bytes) -> Status {
    FromWorker message;
    if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
      return InvalidArgument("the bytes are not a message of a worker");
    }
    registry.Deliver(session, std::move(message));
    return {};
  };
  reader.on_end = [&registry, session, out] {
    registry.Closed(session);
    out->Finish({});
  };
  return reader;
}

}  // namespace

void RegisterWorkerLink(rpc::Router& router, WorkerLinkDeps deps) {
  router.AddBidi("lydian.WorkerLink", "Attach",
                 [engine = deps.engine](rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out) {
                   return Attach(engine->registry(), ctx, std::move(out));
                 });
  RegisterWorkerObjects(router, deps);
}

Result<rpc::Caller> CallerOfTask(const control::CallEngine& engine, const std::string& task_id) {
  auto identity = engine.IdentityOfTask(task_id);
  if (!identity) return NotFound("no running task " + task_id);
  rpc::Caller caller;
  caller.kind = rpc::Caller::Kind::kTask;
  caller.workspace_id = identity->workspace_id;
  caller.environment = identity->environment;
  caller.restricted = identity->restricted;
  caller.task_id = task_id;
  return caller;
}

}  // namespace lydian::api
