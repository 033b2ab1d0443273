// The beginning of a task: files, layers, job, sockets; and its adoption.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <map>

#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"
#include "worker/container_task.h"
#include "worker/exit_text.h"
#include "worker/guest_api.h"
#include "worker/task_note.h"

namespace lydian::worker {
namespace {
constexpr Millis kSpawnerWait{100};
constexpr size_t kFrameRoom = size_t{256} << 10;

// Also those whose output control has not acknowledged yet.
uint64_t TableCapacity(const TaskSpec& spec) {
  return 256 + 2 * uint64_t{std::max(spec.slots(), spec.batch_max_size())};
}

std::string PythonOf(image::LayerStore* layers, const ImageSpec& image, const std::vector<std::string>& ids) {
  std::vector<image::Tree> trees;
  for (const std::string& id : ids)
    if (auto tree = layers->Open(id); tree.ok()) trees.push_back(std::move(*tree));
  return FindPython(image, [&](const std::string& path) {
    return std::any_of(trees.begin(), trees.end(), [&](const image::Tree& tree) {
      auto info = tree.Stat(path);
      return info.ok() && (S_ISREG(info->st_mode) || S_ISLNK(info->st_mode));
    });
  });
}

UniqueFd TakeFd(spawner::Container* container, const char* name) {
  auto it = container->fds.find(name);
  return it == container->fds.end() ? UniqueFd() : std::move(it->second);
}
}  // namespace

// What is gathered side by side before the spawner is asked.
struct ContainerTask::Preparation {
  size_t missing = 0;
  Status error;
  std::vector<std::vector<std::string>> layers;  // by slot: runtime, then the mounts in order
  std::unique_ptr<LeaseTable> table;
  std::unique_ptr<OutputSpool> spool;
  std::string python;
  std::vector<std::string> lowers;
};

ContainerTask::ContainerTask(TaskGround* ground, TaskSpec spec) : ground_(ground), spec_(std::move(spec)) {
  container_id_ = NewId("ct");
}

void ContainerTask::Begin() {
  if (const std::string why = ground_->refuse(); !why.empty()) return Refuse(ResourceExhausted(why));
  Update(TaskUpdate::CREATING);
  auto preparation = std::make_shared<Preparation>();
  preparation->missing = 2 + static_cast<size_t>(spec_.mount_ids_size());
  preparation->layers.resize(1 + static_cast<size_t>(spec_.mount_ids_size()));
  ground_->pool->Post([self = shared_from_this(), preparation] { self->WriteFiles(preparation); });
  GatherLayers(preparation);
}

// On the pool.
void ContainerTask::WriteFiles(std::shared_ptr<Preparation> preparation) {
  auto write = [&]() -> Status {
    RETURN_IF_ERROR(MakeDirs(Dir(), 0700));
    ASSIGN_OR_RETURN(const std::string arguments, MakeContainerArguments(spec_));
    // Readable by the container's root, who is nobody here; the folder above is closed to others.
    RETURN_IF_ERROR(WriteFileAtomic(Dir() + "/arguments.bin", arguments, 0444));
    TaskSpec kept = spec_;
    kept.clear_env();  // secrets stay out of files; an adopted container has them already
    RETURN_IF_ERROR(WriteNote(Dir() + "/spec.pb", kept, /*durable=*/false));
    ASSIGN_OR_RETURN(preparation->table, LeaseTable::Open(Dir() + "/table", TableCapacity(spec_)));
    ASSIGN_OR_RETURN(preparation->spool, OutputSpool::Open(Dir() + "/outputs"));
    return {};
  };
  Status status = write();
  ground_->strand->Post([self = shared_from_this(), preparation, status] {
    if (!status.ok() && preparation->error.ok()) preparation->error = status;
    if (preparation->table) self->table_ = std::move(preparation->table);
    if (preparation->spool) self->spool_ = std::move(preparation->spool);
    if (--preparation->missing == 0) self->Resolve(preparation);
  });
}

void ContainerTask::GatherLayers(std::shared_ptr<Preparation> preparation) {
  auto self = shared_from_this();
  const std::string version =
      spec_.client_version().empty() ? ground_->default_client_version : spec_.client_version();
  ground_->builder->RuntimeLayers(spec_.image(), version, NeedsDependencies(spec_.image().builder_version()),
                                  [self, preparation](Result<std::vector<std::string>> layers) {
                                    self->Gathered(preparation, 0,
                                                   std::move(layers).With("the client's runtime"));
                                  });
  for (int i = 0; i < spec_.mount_ids_size(); ++i) {
    const std::string& mount_id = spec_.mount_ids(i);
    const size_t slot = 1 + static_cast<size_t>(i);
    ground_->objects->Mount(
        mount_id, [self, preparation, slot, mount_id](Result<std::vector<ContextFile>> files) {
          if (!files.ok()) return self->Gathered(preparation, slot, files.status());
          self->ground_->builder->MountLayer(
              mount_id, *files, [self, preparation, slot, mount_id](Result<std::string> layer) {
                if (!layer.ok())
                  return self->Gathered(preparation, slot, layer.status().With("mount " + mount_id));
                self->Gathered(preparation, slot, std::vector<std::string>{*layer});
              });
        });
  }
}

void ContainerTask::Gathered(std::shared_ptr<Preparation> preparation, size_t slot,
                             Result<std::vector<std::string>> layers) {
  ground_->strand->Post([self = shared_from_this(), preparation, slot, layers = std::move(layers)]() mutable {
    if (layers.ok()) {
      preparation->layers[slot] = std::move(layers).value();
    } else if (preparation->error.ok()) {
      preparation->error = layers.status();
    }
    if (--preparation->missing == 0) self->Resolve(preparation);
  });
}

// A worker that adopts the container pins them again.
Status ContainerTask::NoteLayers(const std::vector<std::string>& ids) const {
  std::string text;
  for (const auto& id : ids) text += id + "\n";
  return WriteFileAtomic(Dir() + "/layers", text, 0600);
}

void ContainerTask::PinNoted() {
  auto text = ReadFile(Dir() + "/layers");
  std::vector<std::string> ids;
  if (text.ok()) {
    for (size_t start = 0; start < text->size();) {
      const size_t end = std::min(text->find('\n', start), text->size());
      ids.push_back(text->substr(start, end - start));
      start = end + 1;
    }
  } else {  // started by a worker that noted none
    ids.assign(spec_.image().layer_ids().begin(), spec_.image().layer_ids().end());
    for (const auto& mount_id : spec_.mount_ids()) ids.push_back(image::MountLayerId(mount_id));
  }
  auto pin = ground_->layers->Pin(ids);
  if (!pin.ok()) {
    LOG_WARN("not all layers of an adopted container are there",
             {{"task_id", spec_.task_id()}, {"error", pin.status()}});
    return;
  }
  pin_ = std::move(*pin);
}

// Names to folders, on the pool: it looks at the disk.
void ContainerTask::Resolve(std::shared_ptr<Preparation> preparation) {
  if (!preparation->error.ok()) return Refuse(preparation->error);
  ground_->pool->Post([self = shared_from_this(), preparation] {
    auto resolve = [&]() -> Status {
      std::vector<std::string> ids(self->spec_.image().layer_ids().begin(),
                                   self->spec_.image().layer_ids().end());
      const size_t of_image = ids.size();
      for (const auto& layers : preparation->layers) ids.insert(ids.end(), layers.begin(), layers.end());
      ids.push_back(self->ground_->launcher_layer);
      ASSIGN_OR_RETURN(self->pin_, self->ground_->layers->Pin(ids));
      RETURN_IF_ERROR(self->NoteLayers(ids));
      for (const std::string& id : ids) {
        ASSIGN_OR_RETURN(const image::LayerInfo layer, self->ground_->layers->Find(id));
        preparation->lowers.push_back(layer.path);
      }
      ids.resize(of_image);
      preparation->python = PythonOf(self->ground_->layers, self->spec_.image(), ids);
      return {};
    };
    Status status = resolve();
    self->ground_->strand->Post([self, preparation, status] {
      if (!status.ok()) return self->Refuse(status);
      self->Create(preparation);
    });
  });
}

void ContainerTask::Create(std::shared_ptr<Preparation> preparation) {
  if (stopping_) return Refuse(Cancelled("it was stopped before it had started"));
  auto spawner = ground_->spawner();
  if (!spawner) {
    // It is being started again.
    ground_->strand->PostAfter(kSpawnerWait,
                               [self = shared_from_this(), preparation] { self->Create(preparation); });
    return;
  }
  state_ = State::kStarting;
  TaskJob made =
      MakeTaskJob(spec_, {container_id_, preparation->lowers, Dir() + "/arguments.bin", preparation->python});
  spawner->Create(std::move(made.job), [self = shared_from_this(), identity = std::move(made.identity)](
                                           Result<spawner::Container> container) mutable {
    auto shared = std::make_shared<Result<spawner::Container>>(std::move(container));
    self->ground_->strand->Post(
        [self, shared, identity = std::move(identity)] { self->Created(std::move(*shared), identity); });
  });
}

void ContainerTask::Created(Result<spawner::Container> container, const std::string& identity) {
  if (!container.ok()) return Refuse(container.status());
  pid_ = container->info.main_pid();
  ip_ = container->info.ip();
  started_at_ = SystemClock().UnixSeconds();
  state_ = State::kRunning;
  LOG_INFO("task has started",
           {{"task_id", spec_.task_id()}, {"container_id", container_id_}, {"pid", pid_}});
  OpenDesk();
  if (Status status = Serve(&*container); !status.ok()) {
    LOG_ERROR("a container can't be served", {{"task_id", spec_.task_id()}, {"error", status}});
    end_error_ = status.ToString();
    KillNow();
  }
  Update(TaskUpdate::STARTED);
  if (stopping_) return KillNow();
  if (!identity.empty()) SendIdentity(identity);
}

void ContainerTask::OpenDesk() {
  InputDesk::Options options;
  options.task_id = spec_.task_id();
  options.slots = std::max<uint32_t>(1, spec_.slots());
  options.strand = ground_->strand;
  options.send = [this](FromWorker message) {
    if (!dropped_) ground_->send(std::move(message));
  };
  options.send_output = [this](const Output& output, bool soon) {
    if (!dropped_) ground_->send_output(output, soon);
  };
  options.on_ready = [this] { OnReady(); };
  options.on_kill_switch = [this] {
    stopping_ = true;
    ArmGrace(0);
  };
  desk_ = std::make_unique<InputDesk>(std::move(options), table_.get(), spool_.get());
}

// Logs, the API's socket, the HTTP socket.
Status ContainerTask::Serve(spawner::Container* container) {
  LogSource source;
  source.task_id = spec_.task_id();
  source.dir = Dir();
  source.stdout_pipe = TakeFd(container, "stdout");
  source.stderr_pipe = TakeFd(container, "stderr");
  source.table = table_;
  source.running = desk_->running_input();
  std::weak_ptr<ContainerTask> weak = weak_from_this();
  Strand* strand = ground_->strand;
  source.on_sent = [weak, strand] {
    strand->Post([weak] {
      auto self = weak.lock();
      if (!self) return;
      self->logs_sent_ = true;
      self->TrySendExit();
    });
  };
  source.on_acked = [weak, strand] {
    strand->Post([weak] {
      auto self = weak.lock();
      if (!self) return;
      self->logs_acked_ = true;
      self->TryLeave();
    });
  };
  RETURN_IF_ERROR(ground_->logs->Add(std::move(source)));
  control_ = TakeFd(container, "control");
  writable_ = TakeFd(container, "writable");
  if (UniqueFd listener = TakeFd(container, "api_listener"); listener.valid()) {
    ASSIGN_OR_RETURN(server_, ground_->serve(listener.get(), spec_));
  }
  if (UniqueFd listener = TakeFd(container, "http_listener"); listener.valid()) {
    ground_->http->Add(spec_.task_id(), std::move(listener));
  }
  return {};
}

void ContainerTask::SendIdentity(std::string frame) {
  if (!control_.valid()) {
    LOG_ERROR("a container came without its control socket", {{"task_id", spec_.task_id()}});
    return KillNow();
  }
  auto sent = [self = shared_from_this()](const Status& status) {
    self->control_.reset();
    if (status.ok()) return self->table_->SetFlag(LeaseTable::kIdentitySent);
    // It died before it read; its exit tells why.
    LOG_WARN("a launcher did not take its identity", {{"task_id", self->spec_.task_id()}, {"error", status}});
  };
  // Room for all of it: nobody waits for a launcher that doesn't read.
  const int room = static_cast<int>(std::min<size_t>(frame.size() * 2 + kFrameRoom, INT_MAX));
  (void)setsockopt(control_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
  const ssize_t n = send(control_.get(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n == static_cast<ssize_t>(frame.size())) return sent({});
  // Larger than the socket's buffer: the launcher reads when its imports are done.
  ground_->pool->Post([self = shared_from_this(), sent,
                       frame = frame.substr(n > 0 ? static_cast<size_t>(n) : 0)] {
    timeval limit{.tv_sec = 60, .tv_usec = 0};
    setsockopt(self->control_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    Status status;
    size_t done = 0;
    while (done < frame.size() && status.ok()) {
      const ssize_t n = send(self->control_.get(), frame.data() + done, frame.size() - done, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) status = ErrnoStatus("writing to the control socket");
      if (n > 0) done += static_cast<size_t>(n);
    }
    self->ground_->strand->Post([sent, status] { sent(status); });
  });
}

void ContainerTask::Refuse(const Status& status) {
  LOG_WARN("a task could not be started", {{"task_id", spec_.task_id()}, {"error", status}});
  state_ = State::kEnded;
  pin_.reset();
  Update(TaskUpdate::REFUSED, [&](TaskUpdate* update) {
    update->set_error(status.message());
    update->set_error_code(static_cast<int>(status.code()));
    // What a change of the machine's state can mend; the rest fails again.
    update->set_retryable(status.code() == Code::kUnavailable || status.code() == Code::kResourceExhausted ||
                          status.code() == Code::kAborted);
  });
  dropped_ = true;
  TryLeave();
}

// ---- Adoption.

Result<TaskSpec> ContainerTask::ReadSpec(const std::string& dir) {
  TaskSpec spec;
  RETURN_IF_ERROR(ReadNote(dir + "/spec.pb", &spec));
  return spec;
}

Status ContainerTask::OpenFiles() {
  ASSIGN_OR_RETURN(table_, LeaseTable::Open(Dir() + "/table", TableCapacity(spec_)));
  ASSIGN_OR_RETURN(spool_, OutputSpool::Open(Dir() + "/outputs"));
  return {};
}

bool ContainerTask::Adopt(spawner::Container container, bool exited, const ExitEvent& exit) {
  if (Status status = OpenFiles(); !status.ok()) {
    LOG_ERROR("a task can't be adopted", {{"task_id", spec_.task_id()}, {"error", status}});
    return false;
  }
  container_id_ = container.info.container_id();
  pid_ = container.info.main_pid();
  ip_ = container.info.ip();
  started_at_ = SystemClock().UnixSeconds();
  state_ = State::kRunning;
  hello_ = true;
  PinNoted();
  stopping_ = table_->flag(LeaseTable::kStopping);
  // Its variables were in the memory of the worker that died.
  if (!exited && container.info.job().process().control_fd() && !table_->flag(LeaseTable::kIdentitySent))
    return false;
  OpenDesk();
  if (Status status = Serve(&container); !status.ok()) {
    LOG_ERROR("an adopted container can't be served", {{"task_id", spec_.task_id()}, {"error", status}});
    return false;
  }
  if (exited) {
    OnExit(exit);
  } else if (stopping_) {
    ArmGrace(0);
  }
  return true;
}

void ContainerTask::AdoptRemains() {
  state_ = State::kEnded;
  if (Status status = OpenFiles(); !status.ok()) {
    LOG_ERROR("what an ended task left can't be read", {{"task_id", spec_.task_id()}, {"error", status}});
    return Vanish("what it left can't be read: " + status.ToString());
  }
  OpenDesk();
  exit_ = LostExit("the machine or the process that held its container went down");
  TaskExit noted;
  if (Status status = ReadNote(Dir() + "/exit.pb", &noted); status.ok()) {
    exit_ = noted;
  } else if (status.code() != Code::kNotFound) {
    LOG_ERROR("what was noted of a task's end is lost", {{"task_id", spec_.task_id()}, {"error", status}});
  }
  exit_known_ = true;
  if (Result<std::string> layer = ReadFile(Dir() + "/layer", 256); layer.ok()) layer_id_ = *layer;
  desk_->Abandon();
  spawner::Container none;
  if (Status status = Serve(&none); !status.ok()) {
    LOG_ERROR("the logs of an ended task can't be read", {{"task_id", spec_.task_id()}, {"error", status}});
    return Vanish("its logs can't be read: " + status.ToString());
  }
  finalized_ = true;
  ground_->logs->Finish(spec_.task_id());
}

}  // namespace lydian::worker
