#include "spawner/keeper.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "spawner/frames.h"

namespace lydian::spawner {
namespace {

constexpr size_t kEndedExecsKept = 16;  // with their pipes, for a worker that was away
constexpr size_t kListBytes = kMaxFrameBytes / 2;
constexpr size_t kMaxIdBytes = 64;

// Ids become names of cgroups and folders.
bool GoodId(const std::string& id) {
  if (id.empty() || id.size() > kMaxIdBytes) return false;
  return std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
  });
}

Status AddFd(const char* name, const UniqueFd& fd, google::protobuf::RepeatedPtrField<std::string>* names,
             Keeper::Fds* out) {
  if (!fd.valid()) return OkStatus();
  ASSIGN_OR_RETURN(UniqueFd copy, Duplicate(fd.get()));
  names->Add(name);
  out->push_back(std::move(copy));
  return OkStatus();
}

Status AddProcessFds(const runtime::Process& process, google::protobuf::RepeatedPtrField<std::string>* names,
                     Keeper::Fds* out) {
  RETURN_IF_ERROR(AddFd("pidfd", process.pidfd, names, out));
  for (const auto& [name, fd] : process.fds) RETURN_IF_ERROR(AddFd(name.c_str(), fd, names, out));
  return OkStatus();
}

}  // namespace

Keeper::Keeper(std::unique_ptr<runtime::Runtime> runtime, std::function<void(const ExitEvent&)> on_exit)
    : runtime_(std::move(runtime)), on_exit_(std::move(on_exit)) {}

size_t Keeper::NamedFds(const SpawnerRequest& request) {
  if (request.has_create()) return request.create().process().stdio() == lydian::Process::INHERIT ? 3 : 0;
  if (request.has_exec()) return request.exec().process().stdio() == lydian::Process::INHERIT ? 3 : 0;
  return 0;
}

SpawnerReply Keeper::Handle(const SpawnerRequest& request, Fds in, Fds* out) {
  SpawnerReply reply;
  std::string step;
  Status status;
  switch (request.kind_case()) {
    case SpawnerRequest::kCreate:
      status = Create(request.create(), std::move(in), &reply, out, &step);
      break;
    case SpawnerRequest::kExec:
      status = StartExec(request.exec(), std::move(in), &reply, out, &step);
      break;
    case SpawnerRequest::kSignal:
      status = Signal(request.signal());
      break;
    case SpawnerRequest::kKill:
      status = Kill(request.kill());
      break;
    case SpawnerRequest::kRemove:
      status = Remove(request.remove());
      break;
    case SpawnerRequest::kList:
      List(reply.mutable_list());
      break;
    case SpawnerRequest::kAttach:
      status = Attach(request.attach(), &reply, out);
      break;
    case SpawnerRequest::kPlan: {
      auto plan = runtime_->MakePlan(request.plan());
      status = plan.status();
      if (plan.ok()) *reply.mutable_plan() = std::move(*plan);
      break;
    }
    case SpawnerRequest::kDrainPools:
      runtime_->DrainPools();
      refill_ = false;  // until after the next create, which is what is going to be measured
      break;
    case SpawnerRequest::kCloseStdin:
      status = CloseStdin(request.close_stdin());
      break;
    case SpawnerRequest::KIND_NOT_SET:
      status = Unimplemented("this spawner does not know the request");
      break;
  }
  if (!status.ok()) {
    out->clear();
    SpawnError* error = reply.mutable_error();
    error->set_step(step);
    error->set_error(status.error());
    error->set_message(status.message());
    error->set_code(static_cast<int>(status.code()));
  } else if (reply.kind_case() == SpawnerReply::KIND_NOT_SET) {
    reply.mutable_done();
  }
  reply.set_id(request.id());
  return reply;
}

Status Keeper::Create(const Job& job, Fds stdio, SpawnerReply* reply, Fds* out, std::string* step) {
  const std::string& id = job.container_id();
  if (!GoodId(id))
    return InvalidArgument("not a container id: it may have up to 64 letters, digits, - and _");
  if (entries_.contains(id)) return AlreadyExists("there is a container " + id + " already");
  runtime::StepError error;
  auto started = runtime_->Start(job, std::move(stdio), &error);
  refill_ = true;
  if (!started.ok()) {
    *step = error.step;
    LOG_WARN("container did not start",
             {{"container_id", id}, {"step", error.step}, {"error", started.status()}});
    return started.status();
  }
  Entry& entry = entries_[id];
  entry.container = std::move(*started);
  by_pid_[entry.container->main.pid] = {id, ""};
  LOG_INFO(
      "container started",
      {{"container_id", id}, {"init_pid", entry.container->init_pid}, {"pid", entry.container->main.pid}});
  ContainerInfo* info = reply->mutable_container();
  Describe(entry, info);
  info->clear_job();
  for (const Phase& phase : entry.container->phases) *info->add_phases() = phase;
  Status status = AddFds(entry, info, out);
  if (!status.ok()) {
    // Nobody could talk to it: it ends, and is there to be removed.
    (void)runtime_->KillAll(*entry.container);
    return std::move(status).With("handing over the descriptors of " + id);
  }
  return OkStatus();
}

Status Keeper::StartExec(const ExecRequest& request, Fds stdio, SpawnerReply* reply, Fds* out,
                         std::string* step) {
  ASSIGN_OR_RETURN(Entry * entry, Find(request.container_id()));
  if (entry->exit) return FailedPrecondition("container " + request.container_id() + " has ended");
  if (!GoodId(request.exec_id()))
    return InvalidArgument("not an exec id: it may have up to 64 letters, digits, - and _");
  if (entry->execs.contains(request.exec_id())) {
    return AlreadyExists("there is a process " + request.exec_id() + " in " + request.container_id() +
                         " already");
  }
  runtime::StepError error;
  auto started = runtime_->Exec(*entry->container, request.process(), std::move(stdio), &error);
  if (!started.ok()) {
    *step = error.step;
    return started.status();
  }
  Exec& exec = entry->execs[request.exec_id()];
  exec.process = std::move(*started);
  by_pid_[exec.process.pid] = {request.container_id(), request.exec_id()};
  ExecInfo* info = reply->mutable_exec();
  info->set_container_id(request.container_id());
  info->set_exec_id(request.exec_id());
  info->set_pid(exec.process.pid);
  Status status = AddProcessFds(exec.process, info->mutable_fds(), out);
  if (!status.ok()) ::kill(exec.process.pid, SIGKILL);
  return status;
}

Result<Keeper::Entry*> Keeper::Find(const std::string& id) {
  auto found = entries_.find(id);
  if (found == entries_.end()) return NotFound("there is no container " + id.substr(0, kMaxIdBytes));
  return &found->second;
}

Result<runtime::Process*> Keeper::FindProcess(const std::string& container_id, const std::string& exec_id,
                                              bool* ended) {
  ASSIGN_OR_RETURN(Entry * entry, Find(container_id));
  if (exec_id.empty()) {
    *ended = entry->exit.has_value();
    return &entry->container->main;
  }
  auto found = entry->execs.find(exec_id);
  if (found == entry->execs.end())
    return NotFound("there is no process " + exec_id.substr(0, kMaxIdBytes) + " in " + container_id);
  *ended = found->second.exit.has_value();
  return &found->second.process;
}

Status Keeper::Signal(const SignalRequest& request) {
  bool ended = false;
  ASSIGN_OR_RETURN(runtime::Process * process,
                   FindProcess(request.container_id(), request.exec_id(), &ended));
  if (ended) return FailedPrecondition("the process has ended");
  if (request.signal() <= 0 || request.signal() > SIGRTMAX)
    return InvalidArgument("no signal " + std::to_string(request.signal()));
  // The pid is ours until we reap it, so that it can't name another process.
  if (::kill(process->pid, request.signal()) != 0)
    return ErrnoStatus("sending signal " + std::to_string(request.signal()));
  return OkStatus();
}

Status Keeper::CloseStdin(const lydian::CloseStdin& request) {
  bool ended = false;
  ASSIGN_OR_RETURN(runtime::Process * process,
                   FindProcess(request.container_id(), request.exec_id(), &ended));
  process->fds.erase("stdin");
  return OkStatus();
}

Status Keeper::Kill(const std::string& id) {
  ASSIGN_OR_RETURN(Entry * entry, Find(id));
  if (entry->exit) return OkStatus();
  return runtime_->KillAll(*entry->container).With("killing " + id);
}

Status Keeper::Remove(const std::string& id) {
  ASSIGN_OR_RETURN(Entry * entry, Find(id));
  if (!entry->exit) return FailedPrecondition("container " + id + " has not ended: kill it first");
  // Those that end only now are strangers to us.
  std::erase_if(by_pid_, [&](const auto& item) { return item.second.container_id == id; });
  auto container = std::move(entry->container);
  entries_.erase(id);
  Status status = runtime_->Remove(std::move(container)).With("removing " + id);
  if (!status.ok()) LOG_WARN("container was not removed cleanly", {{"container_id", id}, {"error", status}});
  refill_ = true;
  return status;
}

Status Keeper::Attach(const std::string& id, SpawnerReply* reply, Fds* out) {
  ASSIGN_OR_RETURN(Entry * entry, Find(id));
  ContainerInfo* info = reply->mutable_container();
  Describe(*entry, info);
  return AddFds(*entry, info, out).With("handing over the descriptors of " + id);
}

void Keeper::List(ContainerList* list) {
  size_t bytes = 0;
  for (const auto& [id, entry] : entries_) {
    ContainerInfo* info = list->add_containers();
    Describe(entry, info);
    if (bytes + info->ByteSizeLong() > kListBytes) info->clear_job();  // attach has it
    bytes += info->ByteSizeLong();
  }
}

void Keeper::Describe(const Entry& entry, ContainerInfo* info) {
  const runtime::Container& container = *entry.container;
  info->set_container_id(container.job.container_id());
  info->set_init_pid(container.init_pid);
  info->set_main_pid(container.main.pid);
  *info->mutable_job() = container.job;
  info->set_upper(container.upper);
  info->set_ip(container.ip);
  info->set_exited(entry.exit.has_value());
  if (entry.exit) *info->mutable_exit() = *entry.exit;
  for (const auto& [exec_id, exec] : entry.execs) {
    ExecInfo* out = info->add_execs();
    out->set_container_id(container.job.container_id());
    out->set_exec_id(exec_id);
    out->set_pid(exec.process.pid);
    out->set_exited(exec.exit.has_value());
    if (exec.exit) *out->mutable_exit() = *exec.exit;
  }
}

Status Keeper::AddFds(const Entry& entry, ContainerInfo* info, Fds* out) {
  const runtime::Container& container = *entry.container;
  RETURN_IF_ERROR(AddProcessFds(container.main, info->mutable_fds(), out));
  RETURN_IF_ERROR(AddFd("init_pidfd", container.init_pidfd, info->mutable_fds(), out));
  RETURN_IF_ERROR(AddFd("api_listener", container.api_listener, info->mutable_fds(), out));
  RETURN_IF_ERROR(AddFd("http_listener", container.http_listener, info->mutable_fds(), out));
  RETURN_IF_ERROR(AddFd("netns", container.netns, info->mutable_fds(), out));
  RETURN_IF_ERROR(AddFd("writable", container.writable, info->mutable_fds(), out));
  int at = 0;
  for (const auto& [exec_id, exec] : entry.execs) {
    RETURN_IF_ERROR(AddProcessFds(exec.process, info->mutable_execs(at++)->mutable_fds(), out));
  }
  return OkStatus();
}

void Keeper::OnReaped(int pid, int status) {
  auto found = by_pid_.find(pid);
  if (found == by_pid_.end()) {
    refill_ = true;  // what the runtime waited for may have ended
    return;
  }
  Owner owner = std::move(found->second);
  by_pid_.erase(found);
  auto entry = entries_.find(owner.container_id);
  if (entry == entries_.end()) return;
  ExitEvent exit;
  exit.set_container_id(owner.container_id);
  exit.set_exec_id(owner.exec_id);
  exit.set_status(status);
  runtime::MemoryUse memory = runtime_->Memory(*entry->second.container);
  exit.set_oom_killed(memory.oom_killed);
  exit.set_memory_peak_bytes(memory.peak_bytes);
  exit.set_memory_limit_bytes(memory.limit_bytes);
  if (!owner.exec_id.empty()) return ExecEnded(entry->second, owner.exec_id, std::move(exit));
  LOG_INFO("container ended",
           {{"container_id", owner.container_id}, {"status", status}, {"oom", memory.oom_killed}});
  // What it left running goes with it, so that its pipes end.
  if (Status killed = runtime_->KillAll(*entry->second.container); !killed.ok()) {
    LOG_WARN("what a container left running was not killed",
             {{"container_id", owner.container_id}, {"error", killed}});
  }
  entry->second.exit = exit;
  on_exit_(exit);
}

void Keeper::ExecEnded(Entry& entry, const std::string& exec_id, ExitEvent exit) {
  auto found = entry.execs.find(exec_id);
  if (found == entry.execs.end()) return;
  found->second.exit = exit;
  entry.ended_execs.push_back(exec_id);
  if (entry.ended_execs.size() > kEndedExecsKept) {
    entry.execs.erase(entry.ended_execs.front());
    entry.ended_execs.pop_front();
  }
  on_exit_(exit);
}

bool Keeper::Refill() {
  if (refill_) refill_ = runtime_->Refill();
  return refill_;
}

void Keeper::KillAll() {
  for (auto& [id, entry] : entries_) {
    if (entry.exit) continue;
    if (Status status = runtime_->KillAll(*entry.container); !status.ok()) {
      LOG_WARN("container was not killed", {{"container_id", id}, {"error", status}});
    }
  }
}

bool Keeper::AllEnded() const {
  return std::all_of(entries_.begin(), entries_.end(),
                     [](const auto& item) { return item.second.exit.has_value(); });
}

void Keeper::RemoveAll() {
  by_pid_.clear();
  for (auto& [id, entry] : entries_) {
    if (Status status = runtime_->Remove(std::move(entry.container)); !status.ok()) {
      LOG_WARN("container was not removed cleanly", {{"container_id", id}, {"error", status}});
    }
  }
  entries_.clear();
  runtime_->DrainPools();
}

}  // namespace lydian::spawner
