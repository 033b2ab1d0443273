// Puts control together: stores, domain, API, and the three listeners that `up` has given it.
#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "api/admin.h"
#include "api/auth.h"
#include "api/calls.h"
#include "api/services.h"
#include "api/task_specs.h"
#include "api/worker_link.h"
#include "base/log.h"
#include "bin/daemons.h"
#include "bin/methods.h"
#include "blob/blob_store.h"
#include "blob/url_signer.h"
#include "control/call_engine.h"
#include "control/log_store.h"
#include "control/objects.h"
#include "gateway/app_source.h"
#include "gateway/blob_handler.h"
#include "gateway/pages.h"
#include "gateway/root_handler.h"
#include "rpc/server.h"
#include "worker/guest_api.h"

namespace lydian::bin {
namespace {

constexpr int kStopGraceMs = 2000;
constexpr uint32_t kStreamsOfWorkers = 20'000;  // calls at once: a worker brings those of all its containers

// Everything in the order in which it is made; destroyed backwards.
class Control {
 public:
  explicit Control(const DaemonArgs& args) : args_(args) {}

  Status Open() {
    ASSIGN_OR_RETURN(
        logs_, control::OpenLogStore(args_.state_dir + "/logs.db", {args_.app_log_bytes, args_.log_bytes,
                                                                    static_cast<double>(args_.log_age_s)}));
    ASSIGN_OR_RETURN(blobs_, blob::OpenDirectory({.path = args_.state_dir}));
    control::EngineOptions engine;
    engine.journal_path = args_.state_dir + "/calls.db";
    engine.logs = logs_.get();
    engine.result_text = api::ResultText;
    engine.max_queued_inputs = args_.queued_inputs;
    engine.max_queued_bytes = args_.queued_bytes;
    const MemoryShares memory = SharesOfMemory(args_);
    engine.max_ready_bytes = std::min(engine.max_ready_bytes, memory.queued);
    engine.max_chunk_bytes = std::min(engine.max_chunk_bytes, memory.chunks);
    engine.max_result_bytes = std::min(engine.max_result_bytes, memory.results);
    ASSIGN_OR_RETURN(engine_, control::CallEngine::Open(std::move(engine)));
    control::ObjectsOptions objects;
    objects.state_dir = args_.state_dir;
    objects.apps.list_stopped_secs = args_.list_stopped_s;
    ASSIGN_OR_RETURN(objects_, control::Objects::Open(std::move(objects), &SystemClock()));
    objects_->Attach(engine_.get(), &engine_->registry(), logs_.get());
    signer_ = std::make_unique<blob::UrlSigner>(objects_->key().Derive("urls"));
    specs_ = std::make_unique<api::TaskSpecs>(objects_.get());
    engine_->SetTaskSpecSource(specs_.get());
    engine_->SetWorkspaceCount([this] { return objects_->tokens().workspaces_in_use(); });
    services_ = std::make_shared<api::Services>();
    services_->objects = objects_.get();
    services_->engine = engine_.get();
    services_->workers = &engine_->registry();
    services_->logs = logs_.get();
    services_->blobs = blobs_.get();
    services_->signer = signer_.get();
    services_->public_url = args_.url;
    RegisterMethods(*router_);
    RETURN_IF_ERROR(api::Start(services_));
    control::CollectorOptions collector;
    collector.keep_files_secs = args_.keep_files_s;
    collector.keep_images_secs = args_.keep_images_s;
    collector.keep_apps_secs = args_.keep_apps_s;
    control::CollectorDeps deps;
    deps.blobs = blobs_.get();
    deps.workers = &engine_->registry();
    deps.blobs_of_calls = [engine = engine_.get()](const std::vector<std::string>& ids) {
      return engine->BlobsInUse(ids);
    };
    objects_->StartCollector(collector, std::move(deps));
    return {};
  }

  Status Serve() {
    source_ = std::make_unique<gateway::AppSource>(objects_.get(), engine_.get(), logs_.get());
    auto blobs = std::make_shared<gateway::BlobHandler>(blobs_.get(), signer_.get(), &SystemClock());
    auto pages = std::make_shared<gateway::Pages>(source_.get(), signer_.get(),
                                                  [this] { return router_->MetricsText(); });
    auto http = std::make_shared<gateway::RootHandler>(blobs, pages);
    RETURN_IF_ERROR(Listen("api", std::make_shared<api::ApiAuthenticator>(&objects_->tokens()), http));
    auto lookup = [this](const std::string& task_id) { return api::CallerOfTask(*engine_, task_id); };
    RETURN_IF_ERROR(Listen("link", std::make_shared<api::LinkAuthenticator>(lookup), http, /*peer_uid=*/0));
    return Listen("admin", std::make_shared<api::AdminAuthenticator>(), nullptr, /*peer_uid=*/0);
  }

  void Stop() {
    for (auto& server : servers_) server->Stop(kStopGraceMs);
    servers_.clear();
    // Then nobody asks any more; what the engine still says goes to a strand that has ended, and is dropped.
    objects_->Stop();
    engine_.reset();
  }

  void RegisterMethods(rpc::Router& router) {
    api::RegisterObjects(router, services_);
    api::RegisterCalls(router, {.engine = engine_.get()});
    api::RegisterWorkerLink(
        router,
        {.engine = engine_.get(), .mounts = objects_ ? &objects_->mounts() : nullptr, .blobs = blobs_.get()});
    api::AdminOptions admin;
    admin.services = services_;
    admin.listeners = {args_.url};
    admin.started = SystemClock().Now();
    admin.workers = [this](std::function<void(std::vector<WorkerInfo>)> reply) {
      ListWorkers(std::move(reply));
    };
    api::RegisterAdmin(router, std::move(admin));
  }

 private:
  Status Listen(const std::string& name, std::shared_ptr<rpc::Authenticator> authenticator,
                std::shared_ptr<http::Handler> http, uint32_t peer_uid = UINT32_MAX) {
    const int fd = args_.fd(name);
    if (fd < 0) return FailedPrecondition("no socket called " + name + " was handed over");
    rpc::ServerOptions options;
    options.router = router_;
    options.authenticator = std::move(authenticator);
    options.http = std::move(http);
    options.require_peer_uid = peer_uid;
    if (name == "link") {  // carries the calls of all containers: none may hold up the others
      options.max_streams = kStreamsOfWorkers;
      options.max_unread_bytes = SIZE_MAX;
    }
    ASSIGN_OR_RETURN(auto server, rpc::Server::Start(std::move(options), fd));
    servers_.push_back(std::move(server));
    return OkStatus();
  }

  void ListWorkers(std::function<void(std::vector<WorkerInfo>)> reply) {
    engine_->ListWorkers([reply = std::move(reply)](std::vector<control::WorkerRegistry::Worker> workers) {
      std::vector<WorkerInfo> out;
      for (const auto& worker : workers) {
        WorkerInfo& info = out.emplace_back();
        info.set_worker_id(worker.id);
        info.set_connected(worker.connected);
        info.set_memory_bytes(worker.capacity.memory_bytes());
        info.set_milli_cpu(worker.capacity.milli_cpu());
      }
      reply(std::move(out));
    });
  }

  const DaemonArgs& args_;
  std::shared_ptr<rpc::Router> router_ = std::make_shared<rpc::Router>();
  std::unique_ptr<control::LogStore> logs_;
  std::unique_ptr<blob::BlobStore> blobs_;
  std::unique_ptr<blob::UrlSigner> signer_;
  std::unique_ptr<control::CallEngine> engine_;
  std::unique_ptr<control::Objects> objects_;
  std::unique_ptr<api::TaskSpecs> specs_;
  api::ServicesPtr services_;
  std::unique_ptr<gateway::AppSource> source_;
  std::vector<std::unique_ptr<rpc::Server>> servers_;
};

Status Run(const DaemonArgs& args) {
  Control control(args);
  RETURN_IF_ERROR(control.Open());
  RETURN_IF_ERROR(control.Serve());
  args.NotifyReady();
  LOG_INFO("serving", {{"url", args.url}});
  args.WaitForStop();
  control.Stop();
  return OkStatus();
}

}  // namespace

int ControlMain(const DaemonArgs& args) {
  Status status = Run(args);
  if (!status.ok()) LOG_ERROR("control ends", {{"error", status}});
  return status.ok() ? 0 : 1;
}

std::string MethodTable() {
  // Registration keeps pointers and calls none of them, so an unopened control has the whole table.
  rpc::Router router;
  DaemonArgs none;
  auto services = std::make_shared<api::Services>();
  api::RegisterObjects(router, services);
  api::RegisterCalls(router, {});
  api::RegisterWorkerLink(router, {});
  api::RegisterAdmin(router, {.services = services, .listeners = {}, .workers = nullptr, .started = {}});
  std::string text;
  auto print = [&text](const rpc::Router& table) {
    for (const rpc::Router::Entry& entry : table.entries()) {
      const char* kind = entry.kind == rpc::Router::Entry::Kind::kUnary          ? "unary"
                         : entry.kind == rpc::Router::Entry::Kind::kServerStream ? "server_stream"
                                                                                 : "bidi";
      text += entry.service + " " + entry.method + " " + kind + "\n";
    }
  };
  print(router);
  print(*worker::MakeGuestRouter(nullptr, nullptr));  // what a worker answers its containers itself
  return text;
}

int PrintMethods() {
  fputs(MethodTable().c_str(), stdout);
  return 0;
}

}  // namespace lydian::bin
