#include "worker/admin_service.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <map>
#include <thread>

#include "base/ids.h"
#include "base/log.h"
#include "lydian/admin.pb.h"
#include "worker/task_job.h"

namespace lydian::worker {
namespace {

constexpr char kService[] = "lydian.WorkerAdmin";
constexpr size_t kMostBuffered = 4 << 20;

// Root over the admin socket; the server checks the uid.
class RootOnly : public rpc::Authenticator {
 public:
  Result<rpc::Caller> Authenticate(const Headers&, std::string_view, const rpc::MethodOptions&) override {
    rpc::Caller caller;
    caller.kind = rpc::Caller::Kind::kRoot;
    caller.unix_socket = true;
    return caller;
  }
};

// One `debug run`: reads the pipes on a thread of its own, so that a slow reader of one run holds up nobody.
class RunSession : public std::enable_shared_from_this<RunSession> {
 public:
  RunSession(rpc::Ctx ctx, rpc::Stream<RunEvent> out, std::shared_ptr<spawner::Client> client,
             SteadyTime asked)
      : ctx_(std::move(ctx)),
        out_(std::move(out)),
        client_(std::move(client)),
        asked_(asked),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  void Begin(Node* node, Job job) {
    id_ = job.container_id();
    node->WatchContainer(id_, [self = shared_from_this()](const ExitEvent& event) { self->Exited(event); });
    ctx_->OnCancel([self = shared_from_this()] { self->KillIt(); });
    client_->Create(std::move(job), [self = shared_from_this(), node](Result<spawner::Container> container) {
      if (!container.ok()) {
        node->UnwatchContainer(self->id_);
        self->ctx_->OnCancel(nullptr);
        return self->out_.Finish(container.status());
      }
      self->Created(std::move(*container));
    });
  }

 private:
  void Created(spawner::Container container) {
    ready_nanos_ = Nanos();
    phases_ = container.info.phases();
    for (int i = 0; i < 2; ++i) {
      auto it = container.fds.find(i == 0 ? "stdout" : "stderr");
      if (it == container.fds.end()) continue;
      pipes_[i] = std::move(it->second);
      fcntl(pipes_[i].get(), F_SETFL, fcntl(pipes_[i].get(), F_GETFL) | O_NONBLOCK);
    }
    created_ = true;
    if (killed_) KillIt();
    std::thread([self = shared_from_this()] { self->Run(); }).detach();
  }

  void Exited(const ExitEvent& event) {
    exit_nanos_ = Nanos();
    status_ = event.status();
    exited_ = true;
    uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof one);
  }

  void KillIt() {
    killed_ = true;
    if (created_) client_->Kill(id_, [](const Status&) {});
  }

  // False when the pipe has no more for now, or none at all.
  bool ReadPipe(int index) {
    std::array<char, 64 << 10> buffer;
    const ssize_t n = read(pipes_[index].get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) return true;
    if (n == 0 || (n < 0 && errno != EAGAIN)) pipes_[index].reset();
    if (n <= 0) return false;
    RunEvent event;
    (index == 0 ? *event.mutable_stdout_data() : *event.mutable_stderr_data())
        .assign(buffer.data(), static_cast<size_t>(n));
    out_.Write(event);
    return true;
  }

  void Run() {
    while (!exited_) {
      if (out_.buffered() > kMostBuffered) WaitDrained();
      std::array<pollfd, 3> fds = {pollfd{wake_.get(), POLLIN, 0}, pollfd{pipes_[0].get(), POLLIN, 0},
                                   pollfd{pipes_[1].get(), POLLIN, 0}};
      poll(fds.data(), fds.size(), -1);
      for (int i = 0; i < 2; ++i) {
        if (fds[static_cast<size_t>(i) + 1].revents != 0) ReadPipe(i);
      }
    }
    for (int i = 0; i < 2; ++i) {
      while (pipes_[i].valid() && ReadPipe(i)) {
      }
    }
    ctx_->OnCancel(nullptr);
    RunEvent timing;
    timing.mutable_timing()->mutable_phases()->Swap(&phases_);
    timing.mutable_timing()->set_ready_nanos(ready_nanos_);
    timing.mutable_timing()->set_exit_nanos(exit_nanos_);
    out_.Write(timing);
    RunEvent end;
    end.set_status(status_);
    out_.Write(end);
    out_.Finish();
    client_->Remove(id_, [id = id_](const Status& status) {
      if (!status.ok())
        LOG_WARN("a container could not be removed", {{"container_id", id}, {"error", status}});
    });
  }

  void WaitDrained() {
    out_.OnDrained(kMostBuffered / 2, [self = shared_from_this()] {
      uint64_t one = 1;
      (void)!write(self->wake_.get(), &one, sizeof one);
    });
    pollfd fd{wake_.get(), POLLIN, 0};
    poll(&fd, 1, -1);
    uint64_t ticks = 0;
    if (!exited_) (void)!read(wake_.get(), &ticks, sizeof ticks);
  }

  uint64_t Nanos() const {
    return static_cast<uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - asked_).count());
  }

  rpc::Ctx ctx_;
  rpc::Stream<RunEvent> out_;
  std::shared_ptr<spawner::Client> client_;
  const SteadyTime asked_;
  UniqueFd wake_, pipes_[2];
  std::string id_;
  uint64_t ready_nanos_ = 0;
  std::atomic<uint64_t> exit_nanos_{0};
  google::protobuf::RepeatedPtrField<Phase> phases_;
  std::atomic<int> status_{0};
  std::atomic<bool> exited_{false}, killed_{false}, created_{false};
};

// What `debug run` leaves open.
Job CompleteJob(Job job, const ImageSpec& image) {
  job.set_version(1);
  job.set_container_id(NewId("ct"));
  job.set_owner_data("debug");
  if (job.hostname().empty()) job.set_hostname("modal");
  Process* process = job.mutable_process();
  EnvMap env = BaseEnv(image);
  env.erase("MODAL_IS_REMOTE");
  env.erase("PYTHONPATH");
  for (const std::string& entry : process->env()) {
    const size_t equals = entry.find('=');
    if (equals != std::string::npos) env[entry.substr(0, equals)] = entry.substr(equals + 1);
  }
  process->clear_env();
  for (const auto& [name, value] : env) process->add_env(name + "=" + value);
  if (process->cwd().empty())
    process->set_cwd(image.config().workdir().empty() ? "/root" : image.config().workdir());
  return job;
}

}  // namespace

Result<std::unique_ptr<rpc::Server>> AdminService::Serve(int listener) {
  auto router = std::make_shared<rpc::Router>();
  router->Unary<StatusRequest, StatusResponse>(
      kService, "Status", [this](const StatusRequest&, rpc::Ctx ctx, rpc::Reply<StatusResponse> reply) {
        auto response = std::make_shared<StatusResponse>();
        node_->Status(response.get(), [response, reply, ctx = std::move(ctx)] { reply(*response); });
      });
  router->Unary<Job, Plan>(kService, "Plan", [this](const Job& job, rpc::Ctx ctx, rpc::Reply<Plan> reply) {
    auto client = node_->spawner();
    if (!client) return reply(Unavailable("the spawner is not there"));
    client->MakePlan(CompleteJob(job, ImageSpec()),
                     [reply, ctx = std::move(ctx)](const Result<Plan>& plan) { reply(plan); });
  });
  router->Unary<DrainPools, Done>(kService, "DrainPools",
                                  [this](const DrainPools&, rpc::Ctx ctx, rpc::Reply<Done> reply) {
                                    auto client = node_->spawner();
                                    if (!client) return reply(Unavailable("the spawner is not there"));
                                    client->DrainPools([reply, ctx = std::move(ctx)](const Status& status) {
                                      if (status.ok()) {
                                        reply(Done());
                                      } else {
                                        reply(status);
                                      }
                                    });
                                  });
  AddRun(*router);
  AddImages(*router);
  rpc::ServerOptions options;
  options.router = std::move(router);
  options.authenticator = std::make_shared<RootOnly>();
  options.require_peer_uid = 0;
  return rpc::Server::Start(std::move(options), listener);
}

void AdminService::AddRun(rpc::Router& router) {
  router.ServerStream<
      RunRequest,
      RunEvent>(kService, "Run", [this](const RunRequest& request, rpc::Ctx ctx, rpc::Stream<RunEvent> out) {
    const SteadyTime asked = std::chrono::steady_clock::now();
    auto client = node_->spawner();
    if (!client) return out.Finish(Unavailable("the spawner is not there"));
    if (const std::string why = node_->RefuseReason(); !why.empty())
      return out.Finish(ResourceExhausted(why));
    auto session = std::make_shared<RunSession>(std::move(ctx), out, client, asked);
    if (request.image().empty()) {
      if (request.client_runtime())
        return out.Finish(InvalidArgument("the client's runtime goes with an image"));
      return session->Begin(node_, CompleteJob(request.job(), ImageSpec()));
    }
    if (request.image().starts_with("im-")) {
      return out.Finish(Unimplemented(
          "a container can be started from a base image by its name here, such as python:3.11-slim-bookworm; "
          "images of apps are known to the server"));
    }
    auto start = [this, session, out](const ImageSpec& image, Job job, std::vector<std::string> ids) {
      for (const std::string& id : ids) {
        Result<image::LayerInfo> layer = layers_->Find(id);
        if (!layer.ok()) return out.Finish(layer.status());
        job.mutable_rootfs()->add_lowers(layer->path);
      }
      session->Begin(node_, CompleteJob(std::move(job), image));
    };
    builder_->MakeBase(
        request.image(), [](const std::string&) {},
        [this, start, out, request](Result<ImageSpec> image) {
          if (!image.ok()) return out.Finish(image.status());
          std::vector<std::string> ids(image->layer_ids().begin(), image->layer_ids().end());
          if (!request.client_runtime()) return start(*image, request.job(), std::move(ids));
          builder_->RuntimeLayers(
              *image, node_->ground().default_client_version, true,
              [start, out, request, image = *image, ids](Result<std::vector<std::string>> runtime) mutable {
                if (!runtime.ok()) return out.Finish(runtime.status());
                ids.insert(ids.end(), runtime->begin(), runtime->end());
                Job job = request.job();
                job.mutable_process()->add_env("PYTHONPATH=/root:/pkg");
                start(image, std::move(job), std::move(ids));
              });
        });
  });
}

void AdminService::AddImages(rpc::Router& router) {
  router.Unary<BaseListRequest, BaseListResponse>(
      kService, "Bases", [this](const BaseListRequest&, rpc::Ctx ctx, rpc::Reply<BaseListResponse> reply) {
        pool_->Post([this, reply, ctx = std::move(ctx)] {
          BaseListResponse response;
          for (const build::Builder::Base& base : builder_->Bases()) {
            BaseEntry* entry = response.add_bases();
            entry->set_name(base.name);
            entry->set_version(base.version);
            entry->set_made(base.made);
            entry->set_note(base.note);
            entry->set_bytes(base.bytes);
          }
          reply(response);
        });
      });
  auto finish = [](const rpc::Stream<ProgressEvent>& out, const Status& status) {
    ProgressEvent event;
    event.set_done(true);
    event.set_error(status.message());
    event.set_error_code(static_cast<int>(status.code()));
    out.Write(event);
    out.Finish();
  };
  auto tell = [](const rpc::Stream<ProgressEvent>& out, const std::string& text) {
    ProgressEvent event;
    event.set_text(text);
    out.Write(event);
  };
  router.ServerStream<BaseMakeRequest, ProgressEvent>(
      kService, "MakeBase",
      [this, finish, tell](const BaseMakeRequest& request, rpc::Ctx ctx, rpc::Stream<ProgressEvent> out) {
        builder_->MakeBase(
            request.name(), [out, tell](const std::string& text) { tell(out, text); },
            [this, out, finish, tell, request, ctx](Result<ImageSpec> image) {
              if (!image.ok() || !request.client_runtime()) return finish(out, image.status());
              tell(out, "making the client's runtime for Python " + image->python_version());
              builder_->RuntimeLayers(*image, node_->ground().default_client_version, true,
                                      [out, finish, ctx](const Result<std::vector<std::string>>& layers) {
                                        finish(out, layers.status());
                                      });
            });
      });
  router.ServerStream<ImageImportRequest, ProgressEvent>(
      kService, "ImportImage",
      [this, finish](const ImageImportRequest& request, rpc::Ctx ctx, rpc::Stream<ProgressEvent> out) {
        pool_->Post([this, finish, request, out, ctx = std::move(ctx)] {
          finish(out, builder_->ImportArchive(request.name(), request.path()));
        });
      });
}

}  // namespace lydian::worker
