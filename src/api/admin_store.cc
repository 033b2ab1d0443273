// The admin socket's questions about the stores: what takes space, a collection now, what is damaged.
#include "api/admin.h"
#include "base/executor.h"
#include "lydian/admin.pb.h"

namespace lydian::api {

namespace {

constexpr char kService[] = "lydian.ControlAdmin";

Result<StoreUsageResponse> Usage(control::Objects& objects) {
  StoreUsageResponse response;
  std::vector<std::string> notes;
  ASSIGN_OR_RETURN(auto usage, objects.store_check()->Measure(&notes));
  for (const auto& entry : usage) {
    StoreUsage& out = *response.add_usage();
    out.set_kind(entry.kind);
    out.set_workspace(entry.workspace);
    out.set_app(entry.app);
    out.set_count(entry.count);
    out.set_bytes(entry.bytes);
    out.set_place(entry.place);
  }
  response.mutable_notes()->Assign(notes.begin(), notes.end());
  return response;
}

Result<StoreCollectResponse> Collect(control::Objects& objects, bool dry_run) {
  ASSIGN_OR_RETURN(auto report, objects.collector()->Pass(dry_run));
  StoreCollectResponse response;
  for (const auto& line : report.lines) {
    StoreCollected& out = *response.add_collected();
    out.set_kind(line.kind);
    out.set_freed(line.freed);
    out.set_freed_bytes(line.freed_bytes);
    out.set_in_use(line.in_use);
    out.set_waiting(line.waiting);
    out.set_keep_secs(line.keep_secs);
  }
  response.mutable_notes()->Assign(report.notes.begin(), report.notes.end());
  response.set_dry_run(dry_run);
  return response;
}

Result<StoreVerifyResponse> Verify(control::Objects& objects) {
  ASSIGN_OR_RETURN(auto verdict, objects.store_check()->Verify());
  StoreVerifyResponse response;
  for (const auto& damage : verdict.damages) {
    StoreDamage& out = *response.add_damages();
    out.set_kind(damage.kind);
    out.set_id(damage.id);
    out.set_what(damage.what);
    out.set_mend(damage.mend);
  }
  response.set_checked(verdict.checked);
  response.mutable_notes()->Assign(verdict.notes.begin(), verdict.notes.end());
  return response;
}

}  // namespace

void RegisterStoreAdmin(rpc::Router& router, const ServicesPtr& services) {
  // A thread of their own: they look at everything there is.
  auto pool = std::make_shared<Pool>("store-admin", 1);
  auto answer = [services, pool](const rpc::Ctx& ctx, const auto& reply, auto work) {
    if (Status root = RequireRoot(*ctx); !root.ok()) return reply(root);
    if (services->objects->collector() == nullptr) return reply(Unavailable("control is still starting"));
    pool->Post([services, reply, work] { reply(work(*services->objects)); });
  };
  router.Unary<StoreUsageRequest, StoreUsageResponse>(
      kService, "StoreUsage",
      [answer](const StoreUsageRequest&, rpc::Ctx ctx, rpc::Reply<StoreUsageResponse> reply) {
        answer(ctx, reply, [](control::Objects& objects) { return Usage(objects); });
      });
  router.Unary<StoreCollectRequest, StoreCollectResponse>(
      kService, "StoreCollect",
      [answer](const StoreCollectRequest& request, rpc::Ctx ctx, rpc::Reply<StoreCollectResponse> reply) {
        answer(ctx, reply, [dry_run = request.dry_run()](control::Objects& objects) {
          return Collect(objects, dry_run);
        });
      });
  router.Unary<StoreVerifyRequest, StoreVerifyResponse>(
      kService, "StoreVerify",
      [answer](const StoreVerifyRequest&, rpc::Ctx ctx, rpc::Reply<StoreVerifyResponse> reply) {
        answer(ctx, reply, [](control::Objects& objects) { return Verify(objects); });
      });
}

}  // namespace lydian::api
