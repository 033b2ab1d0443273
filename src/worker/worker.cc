#include "worker/worker.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>

#include <filesystem>
#include <utility>

#include "base/ids.h"
#include "base/log.h"
#include "build/builder.h"
#include "image/layer_store.h"
#include "rpc/server.h"
#include "spawner/client.h"
#include "worker/admin_service.h"
#include "worker/dns_relay.h"
#include "worker/guest_api.h"
#include "worker/guest_http.h"
#include "worker/launcher_text.h"
#include "worker/link.h"
#include "worker/log_pump.h"
#include "worker/node.h"
#include "worker/objects.h"
#include "worker/relay.h"

namespace lydian::worker {
namespace {

// Of the memory for calls a container has a part, since one is not to take what there is for all; on a small
// machine so much that one message of results still fits.
constexpr size_t kPartOfContainer = 4, kLeastOfContainer = size_t{64} << 20;

size_t MostOfContainer() { return std::max(MostOfContainer(), kLeastOfContainer); }

constexpr size_t kPoolThreads = 4;
constexpr size_t kCommitThreads = 2;  // each copies a layer: more would only take turns at the disk

// "wk-...", made once; and a number that grows with every start.
Status ReadIdentity(const std::string& dir, std::string* id, uint64_t* epoch) {
  if (Result<std::string> kept = ReadFile(dir + "/id", 256); kept.ok() && kept->starts_with("wk-")) {
    *id = *kept;
  } else {
    *id = NewId("wk");
    RETURN_IF_ERROR(WriteFileAtomic(dir + "/id", *id, 0600, true));
  }
  *epoch = 0;
  if (Result<std::string> kept = ReadFile(dir + "/epoch", 256); kept.ok())
    *epoch = std::strtoull(kept->c_str(), nullptr, 10);
  ++*epoch;
  return WriteFileAtomic(dir + "/epoch", std::to_string(*epoch), 0600, true);
}

// A layer that holds the launcher: it costs no mount at a start.
Result<std::string> LauncherLayer(image::LayerStore& layers) {
  const std::string id = DigestId("ly", std::string("launcher\n") + kLauncherPath + "\n" + kLauncherText);
  if (layers.Find(id).ok()) return id;
  ASSIGN_OR_RETURN(const std::unique_ptr<image::LayerTransaction> transaction, layers.Begin());
  const std::string path = transaction->dir() + "/upper" + kLauncherPath;
  RETURN_IF_ERROR(MakeDirs(std::filesystem::path(path).parent_path().string()));
  RETURN_IF_ERROR(WriteFileAtomic(path, kLauncherText, 0644));
  ASSIGN_OR_RETURN(const image::LayerInfo layer, transaction->Commit(id, "the launcher"));
  return layer.id;
}

class WorkerImpl : public Worker {
 public:
  explicit WorkerImpl(WorkerOptions options) : options_(std::move(options)) {}
  ~WorkerImpl() override { Stop(); }

  Status Begin(UniqueFd admin_listener) {
    umask(022);
    for (const char* dir : {"", "/tasks", "/containers"})
      RETURN_IF_ERROR(MakeDirs(options_.state_dir + dir, 0700));
    NodeOptions node;
    RETURN_IF_ERROR(ReadIdentity(options_.state_dir, &node.worker_id, &node.epoch));
    if (options_.spawner_socket.empty()) options_.spawner_socket = options_.state_dir + "/spawner.sock";
    node.state_dir = options_.state_dir;
    node.version = options_.version;
    node.client_version = options_.client_version;
    node.memory_reserve_bytes = options_.memory_reserve_bytes;
    node.disk_reserve_bytes = options_.disk_reserve_bytes;
    node.connect_spawner = [path = options_.spawner_socket](spawner::ClientEvents events) {
      return spawner::Client::Connect(path, std::move(events));
    };
    dns_ = std::make_unique<DnsRelay>(DnsRelay::Options{
        .bridge = options_.bridge.empty() ? options_.instance : options_.bridge, .mark = kAnswerMark});
    node.on_spawner = [this] { dns_->Open(); };
    node_ = std::make_unique<Node>(std::move(node), &strand_, &pool_);

    Link::Hooks hooks;
    hooks.make_hello = [this] { return node_->MakeHello(); };
    hooks.on_welcome = [this](const Welcome&) { node_->OnWelcome(); };
    hooks.on_down = [this] { logs_->SetLinkUp(false); };
    hooks.on_message = [this](ToWorker message) { node_->OnMessage(std::move(message)); };
    link_ = std::make_unique<Link>(rpc::Channel::Create("unix:" + options_.control_socket), &strand_,
                                   std::move(hooks));
    node_->SetLink(link_.get());
    LogPump::Options logs;
    logs.send = [this](FromWorker message) { link_->Send(std::move(message)); };
    logs_ = std::make_unique<LogPump>(std::move(logs));
    http_ = std::make_unique<GuestHttp>(options_.control_socket);
    objects_ = std::make_unique<Objects>(options_.state_dir + "/objects", link_.get());
    RETURN_IF_ERROR(objects_->Open());
    RETURN_IF_ERROR(OpenLayersAndBuilder());
    relay_ = std::make_unique<Relay>(link_.get(), GuestMethodKind);
    guest_router_ = MakeGuestRouter(node_.get(), relay_.get());

    TaskGround& ground = node_->ground();
    ground.commits = &commits_;
    ground.commit_seconds = options_.step_timeout_s;
    ground.logs = logs_.get();
    ground.http = http_.get();
    ground.objects = objects_.get();
    ground.layers = layers_.get();
    ground.builder = builder_.get();
    ASSIGN_OR_RETURN(ground.launcher_layer, LauncherLayer(*layers_));
    ground.serve = [this](int listener, const TaskSpec& spec) {
      rpc::ServerOptions server;
      server.router = guest_router_;
      server.authenticator = MakeGuestAuthenticator(spec);
      server.max_connections = 64;
      server.memory = std::make_shared<rpc::MemoryBudget>(
          rpc::MemoryBudget::OfProcess()->most() / kPartOfContainer, rpc::MemoryBudget::OfProcess());
      return rpc::Server::Start(std::move(server), listener);
    };
    if (admin_listener.valid()) {
      admin_ = std::make_unique<AdminService>(node_.get(), layers_.get(), builder_.get(), &pool_);
      ASSIGN_OR_RETURN(admin_server_, admin_->Serve(admin_listener.get()));
    }
    // What runs is adopted before control is told of this worker.
    node_->Start([this] { link_->Start(); });
    started_ = true;
    return {};
  }

  Status OpenLayersAndBuilder() {
    if (options_.make_layers) {
      layers_ = options_.make_layers();
    } else {
      ASSIGN_OR_RETURN(layers_, image::LayerStore::OpenFolders(options_.state_dir + "/layers"));
    }
    if (options_.make_builder) {
      builder_ = options_.make_builder();
      return {};
    }
    build::BuilderOptions building;
    building.state_dir = options_.state_dir;
    building.cache_dir = options_.cache_dir;
    building.client_version = options_.client_version;
    building.lend_host_settings = options_.lend_host_settings;
    building.step_seconds = options_.step_timeout_s;
    building.build_seconds = options_.build_timeout_s;
    struct sysinfo machine {};
    // A step that asks for nothing leaves half of the machine to others.
    if (::sysinfo(&machine) == 0)
      building.step_memory_bytes = uint64_t{machine.totalram} * machine.mem_unit / 2;
    ASSIGN_OR_RETURN(builder_, build::Builder::Create(std::move(building), layers_.get(), objects_.get(),
                                                      [this] { return node_->spawner(); }));
    return {};
  }

  void Stop() override {
    if (std::exchange(stopped_, true) || !node_) return;
    if (admin_server_) admin_server_->Stop();
    if (link_) link_->Stop();
    node_->Stop();
    // Callbacks of these post to the strand; they end before what they use.
    builder_.reset();
    logs_.reset();
    http_.reset();
    dns_.reset();
    commits_.Stop();
    pool_.Stop();
    strand_.Stop();
  }

 private:
  WorkerOptions options_;
  bool started_ = false, stopped_ = false;
  Strand strand_{"worker"};
  Pool pool_{"worker-io", kPoolThreads};
  Pool commits_{"worker-commit", kCommitThreads};
  std::unique_ptr<DnsRelay> dns_;
  std::unique_ptr<Link> link_;
  std::unique_ptr<Node> node_;
  std::unique_ptr<LogPump> logs_;
  std::unique_ptr<GuestHttp> http_;
  std::unique_ptr<Objects> objects_;
  std::unique_ptr<image::LayerStore> layers_;
  std::unique_ptr<build::Builder> builder_;
  std::unique_ptr<Relay> relay_;
  std::shared_ptr<rpc::Router> guest_router_;
  std::unique_ptr<AdminService> admin_;
  std::unique_ptr<rpc::Server> admin_server_;
};

}  // namespace

Result<std::unique_ptr<Worker>> Worker::Start(WorkerOptions options, UniqueFd admin_listener) {
  auto worker = std::make_unique<WorkerImpl>(std::move(options));
  if (Status status = worker->Begin(std::move(admin_listener)); !status.ok())
    return std::move(status).With("starting the worker");
  return std::unique_ptr<Worker>(std::move(worker));
}

}  // namespace lydian::worker
