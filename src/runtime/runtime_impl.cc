#include "runtime/runtime_impl.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "os/mount.h"
#include "os/seccomp.h"

namespace lydian::runtime {
namespace {

constexpr int kRemoveTimeoutMs = 10'000;
constexpr uint64_t kNewTimeNamespace = 0x80;

uint64_t NowNanos() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

uint64_t TotalMemory() {
  struct sysinfo info {};
  return ::sysinfo(&info) == 0 ? uint64_t{info.totalram} * info.mem_unit : 0;
}

// No signal is handled while a child shares this process's memory.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockSignals() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  sigset_t before_;
};

std::vector<const char*> Pointers(const std::vector<std::string>& words) {
  std::vector<const char*> out;
  for (const auto& word : words) out.push_back(word.c_str());
  out.push_back(nullptr);
  return out;
}

}  // namespace

// Names and times what is done, and turns a failure into a StepError.
class RuntimeImpl::Steps {
 public:
  Steps() : last_(NowNanos()) {}
  void Begin(const char* name) { name_ = name; }
  void Done(const char* name) { Done(name, NowNanos()); }
  void Done(const char* name, uint64_t at) {
    Phase phase;
    phase.set_name(name);
    phase.set_nanos(at - last_);
    phases_.push_back(phase);
    last_ = at;
  }
  const char* name() const { return name_; }
  std::vector<Phase> TakePhases() { return std::move(phases_); }

 private:
  const char* name_ = "job";
  uint64_t last_;
  std::vector<Phase> phases_;
};

struct RuntimeImpl::Stdio {
  UniqueFd child[4];
};

Result<std::unique_ptr<Runtime>> Runtime::Create(RuntimeOptions options) {
  auto runtime = std::make_unique<RuntimeImpl>(std::move(options));
  RETURN_IF_ERROR(runtime->Open());
  return std::unique_ptr<Runtime>(std::move(runtime));
}

Status RuntimeImpl::Open() {
  containers_dir_ = options_.state_dir + "/containers";
  // Each container mounts over these in a mount namespace of its own, as a user who may not walk through a closed state folder.
  overlay_anchor_ = "/run/lydian-anchors/overlay";
  own_anchor_ = "/run/lydian-anchors/own";
  for (const auto& dir : {containers_dir_, overlay_anchor_, own_anchor_}) RETURN_IF_ERROR(MakeDirs(dir, 0755));
  report_ = static_cast<ChildReport*>(
      ::mmap(nullptr, sizeof(ChildReport), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  if (report_ == MAP_FAILED) {
    report_ = nullptr;
    return ErrnoStatus("mapping a page for reports");
  }
  ASSIGN_OR_RETURN(self_pidfd_, os::OpenPidfd(::getpid()));
  null_fd_.reset(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null_fd_.valid()) return ErrnoStatus("opening /dev/null");
  init_fd_.reset(::open(options_.init_path.c_str(), O_PATH | O_CLOEXEC));
  if (!init_fd_.valid()) return ErrnoStatus("opening " + options_.init_path);
  time_namespaces_ = ::access("/proc/self/ns/time", F_OK) == 0;
  ASSIGN_OR_RETURN(filter_, os::BuildSeccompFilter());
  ASSIGN_OR_RETURN(overlays_, Overlays::Create(containers_dir_));
  ASSIGN_OR_RETURN(cgroups_, os::CgroupTree::Open("lydian-" + options_.instance));
  uint64_t total = TotalMemory();
  uint64_t reserve = options_.memory_reserve_bytes != 0 ? options_.memory_reserve_bytes : DefaultMemoryReserve(total);
  if (reserve >= total) return InvalidArgument("the memory reserve is more than the machine has");
  shared_memory_limit_ = (total - reserve) & ~uint64_t{4095};
  RETURN_IF_ERROR(cgroups_->SetMemoryLimit(shared_memory_limit_));
  ASSIGN_OR_RETURN(networks_, Networks::Create(options_.instance, options_.address_range, options_.state_dir));
  quotas_ = std::make_unique<QuotaPool>(containers_dir_, options_.disk_bytes & ~uint64_t{4095});
  LOG_INFO("the runtime is ready", {{"instance", options_.instance}, {"cgroups", cgroups_->version()},
                                    {"overlay", OverlayModeName(overlays_->mode())}, {"addresses", networks_->range()},
                                    {"memory_for_containers", shared_memory_limit_}});
  return OkStatus();
}

RuntimeImpl::~RuntimeImpl() {
  DrainPools();
  if (report_ != nullptr) ::munmap(report_, sizeof(ChildReport));
  if (live_ != 0 || networks_ == nullptr) return;
  if (Status status = networks_->Remove(); !status.ok()) LOG_WARN("the bridge or firewall stays", {{"error", status}});
  if (Status status = cgroups_->RemoveParent(); !status.ok()) LOG_WARN("a control group stays", {{"error", status}});
}

Result<Plan> RuntimeImpl::MakePlan(const Job& job) {
  ASSIGN_OR_RETURN(StartPlan plan, MakeStartPlan(job, options_));
  return DescribePlan(plan, job, options_);
}

Result<std::unique_ptr<Container>> RuntimeImpl::Start(const Job& job, std::vector<UniqueFd> stdio, StepError* error) {
  Steps steps;
  auto container = std::make_unique<Container>();
  container->job = job;
  container->held = std::make_shared<Container::Held>();
  ++live_;
  Status status = Build(job, std::move(stdio), container.get(), &steps);
  if (status.ok()) {
    container->phases = steps.TakePhases();
    return container;
  }
  if (error != nullptr) *error = {steps.name(), status};
  if (Status removed = Release(container.get()); !removed.ok()) {
    LOG_WARN("a container that failed to start left something", {{"container_id", job.container_id()}, {"error", removed}});
  }
  return std::move(status).With(steps.name());
}

Status RuntimeImpl::CheckDisk() {
  struct statvfs info {};
  if (::statvfs(options_.state_dir.c_str(), &info) != 0) return ErrnoStatus("looking at " + options_.state_dir);
  uint64_t free = uint64_t{info.f_bavail} * info.f_frsize;
  if (free >= options_.disk_reserve_bytes) return OkStatus();
  return ErrnoStatus("the disk of " + options_.state_dir + " has " + std::to_string(free >> 20) + " MiB free, and " +
                         std::to_string(options_.disk_reserve_bytes >> 20) + " MiB are kept in reserve",
                     ENOSPC);
}

Status RuntimeImpl::Build(const Job& job, std::vector<UniqueFd> stdio, Container* container, Steps* steps) {
  auto& held = *container->held;
  ASSIGN_OR_RETURN(StartPlan plan, MakeStartPlan(job, options_));
  steps->Begin("disk");
  RETURN_IF_ERROR(CheckDisk());
  steps->Done("plan");

  steps->Begin("network");
  ASSIGN_OR_RETURN(held.pair, networks_->Take(plan.nat));
  if (held.pair.address != 0) container->ip = os::Ipv4Text(held.pair.address);
  ASSIGN_OR_RETURN(container->netns, Duplicate(held.pair.net_ns.get()));
  if (job.http_listener()) container->http_listener = std::move(held.pair.http_listener);
  held.pair.http_listener.reset();
  steps->Done("network");

  steps->Begin("quota");
  UniqueFd writable;
  if (plan.writable_dir.empty()) {
    ASSIGN_OR_RETURN(writable, quotas_->Take(plan.quota_bytes));
  } else {
    ASSIGN_OR_RETURN(writable, OpenWritableDir(plan.writable_dir));
    held.writable_dir = plan.writable_dir;
    container->upper = plan.writable_dir + "/upper";
  }
  steps->Done("quota");

  steps->Begin("cgroup");
  RETURN_IF_ERROR(MakeCgroup(job, plan, container));
  steps->Done("cgroup");

  steps->Begin("overlay");
  ASSIGN_OR_RETURN(UniqueFd overlay, overlays_->Make(plan, std::move(writable), held.pair.user_ns.get(), held.pair.base));
  steps->Done("overlay");

  steps->Begin("bind");
  ASSIGN_OR_RETURN(auto binds, OpenBinds(plan, held.pair));
  RETURN_IF_ERROR(WriteOwnFiles(plan, held.pair));
  RETURN_IF_ERROR(AddDevices(job, held.pair));
  steps->Begin("sockets");
  if (job.api_socket()) RETURN_IF_ERROR(MakeApiSocket(overlay.get(), container));
  steps->Done("files");

  RETURN_IF_ERROR(StartInit(plan, overlay.get(), binds, container, steps));
  held.pair.own_files.reset();
  ASSIGN_OR_RETURN(container->main, StartProcess(job.process(), std::move(stdio), true, container, steps));
  return OkStatus();
}

Status RuntimeImpl::MakeCgroup(const Job& job, const StartPlan& plan, Container* container) {
  auto& held = *container->held;
  os::CgroupLimits limits;
  limits.memory_bytes = plan.memory_bytes;
  limits.memory_low_bytes = std::min(job.limits().memory_request_bytes(), shared_memory_limit_);
  limits.milli_cpu = job.limits().milli_cpu();
  if (job.limits().milli_cpu_request() != 0) limits.weight_milli_cpu = job.limits().milli_cpu_request();
  limits.pids = plan.pids;
  lingering_.erase(job.container_id());
  ASSIGN_OR_RETURN(held.cgroup, cgroups_->Make(job.container_id(), limits));
  held.memory_limit = plan.memory_bytes != 0 ? plan.memory_bytes : shared_memory_limit_;
  // Who has no limit goes first when the machine is short; who has one, still before the machine's own services.
  held.oom_score_adj = plan.memory_bytes != 0 ? 500 : 1000;
  return OkStatus();
}

Status RuntimeImpl::WriteOwnFiles(const StartPlan& plan, const Pair& pair) {
  os::ScopedFsIds ids(pair.base, pair.base);
  std::string address = pair.address != 0 ? os::Ipv4Text(pair.address) : "127.0.1.1";
  const std::pair<const char*, std::string> files[] = {
      {"etc/hostname", plan.hostname + "\n"},
      {"etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + address + "\t" + plan.hostname + "\n"},
      {"etc/resolv.conf", std::string("nameserver ") + kNameserver + "\n"}};
  for (const auto& [path, text] : files) {
    UniqueFd fd(::openat(pair.own_files.get(), path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd.valid()) return ErrnoStatus(std::string("creating ") + path);
    RETURN_IF_ERROR(WriteAll(fd.get(), text).With(path));
  }
  return OkStatus();
}

Status RuntimeImpl::AddDevices(const Job& job, const Pair& pair) {
  if (job.devices().empty()) return OkStatus();
  os::ScopedFsIds ids(pair.base, pair.base);
  for (const auto& device : job.devices()) {
    struct stat info {};
    if (::stat(device.path().c_str(), &info) != 0) return ErrnoStatus("device " + device.path());
    if (!S_ISCHR(info.st_mode) && !S_ISBLK(info.st_mode)) return InvalidArgument(device.path() + " is not a device");
    std::string path = device.path().substr(1);
    size_t slash = path.rfind('/');
    RETURN_IF_ERROR(os::MakeDirsInRoot(pair.own_files.get(), "/" + path.substr(0, slash)).status());
    if (::mknodat(pair.own_files.get(), path.c_str(), (info.st_mode & S_IFMT) | 0666, info.st_rdev) != 0 ||
        ::fchmodat(pair.own_files.get(), path.c_str(), 0666, 0) != 0) {
      return ErrnoStatus("creating " + device.path());
    }
  }
  return OkStatus();
}

Status RuntimeImpl::MakeApiSocket(int overlay, Container* container) {
  const auto& held = *container->held;
  os::ScopedFsIds ids(held.pair.base, held.pair.base);
  const bool had_run = os::OpenInRoot(overlay, "/run", O_PATH).ok();
  ASSIGN_OR_RETURN(UniqueFd run, os::MakeDirsInRoot(overlay, "/run"));
  const char* name = kApiSocket + sizeof("/run/") - 1;
  // One that an earlier run of the same layer left.
  if (::unlinkat(run.get(), name, 0) != 0 && errno != ENOENT) return ErrnoStatus(std::string("replacing ") + kApiSocket);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus("making the API socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string path = "/proc/self/fd/" + std::to_string(run.get()) + "/" + name;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(std::string("binding ") + kApiSocket);
  }
  if (::fchmodat(run.get(), name, 0666, 0) != 0) return ErrnoStatus(std::string("opening up ") + kApiSocket);
  if (::listen(fd.get(), 1024) != 0) return ErrnoStatus(std::string("listening at ") + kApiSocket);
  container->api_listener = std::move(fd);
  if (!held.writable_dir.empty()) {
    container->held->made.push_back(kApiSocket);
    if (!had_run) container->held->made.push_back("/run");
  }
  return OkStatus();
}

Result<std::vector<UniqueFd>> RuntimeImpl::OpenBinds(const StartPlan& plan, const Pair& pair) {
  std::vector<UniqueFd> binds;
  for (const auto& mount : plan.mounts) {
    if (mount.kind != MountStep::kBind) continue;
    ASSIGN_OR_RETURN(UniqueFd fd, os::CloneTree(AT_FDCWD, mount.source));
    RETURN_IF_ERROR(os::ChangeMount(fd.get(), mount.attributes, mount.idmap ? pair.user_ns.get() : -1).With(mount.source));
    binds.push_back(std::move(fd));
  }
  return binds;
}

JoinArgs RuntimeImpl::JoinOf(const Container& container, std::vector<int>* cgroup_fds) const {
  const auto& held = *container.held;
  for (const auto& fd : held.cgroup->join_fds()) cgroup_fds->push_back(fd.get());
  uint64_t all = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
  if (time_namespaces_) all |= kNewTimeNamespace;
  return {cgroup_fds->data(), static_cast<int>(cgroup_fds->size()), held.oom_score_adj, held.pair.user_ns.get(),
          held.pair.net_ns.get(), container.init_pidfd.get(), all};
}

Status RuntimeImpl::RunHelper(int (*helper)(void*), void* args, uint64_t flags, int cgroup_fd, Steps* steps) {
  *report_ = ChildReport{};
  report_->pidfd = report_->pid = -1;
  int raw = -1;
  os::CloneSpec spec{.flags = flags | CLONE_VFORK | CLONE_FILES | CLONE_CLEAR_SIGHAND, .pidfd = &raw,
                     .cgroup_fd = cgroup_fd, .stack = &helper_stack_, .run = helper, .argument = args};
  pid_t pid;
  {
    BlockSignals block;
    pid = os::RawClone(spec);
    if (pid < 0) return ErrnoStatus("making a process");
    UniqueFd pidfd(raw);
    auto status = os::WaitPidfd(pidfd.get(), -1);
    RETURN_IF_ERROR(status.status());
    // The helper gave up root's id, which marks shared memory as not to be looked at: not meant for this process.
    ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    if (*status != 0 && report_->error == 0) return Internal("the helper process was killed");
  }
  for (int i = 0; i < report_->phase_count; ++i) steps->Done(report_->phases[i].name, report_->phases[i].end_nanos);
  if (report_->error == 0) return OkStatus();
  Status status = ErrnoStatus(report_->detail, report_->error);
  steps->Begin(report_->step);
  if (report_->pid > 0) {
    // It was made and has failed before exec: nobody else knows it.
    UniqueFd child(report_->pidfd);
    (void)os::SignalPidfd(child.get(), SIGKILL);
    (void)os::WaitPidfd(child.get(), kRemoveTimeoutMs);
  }
  return status;
}

Status RuntimeImpl::StartInit(const StartPlan& plan, int overlay, const std::vector<UniqueFd>& binds,
                              Container* container, Steps* steps) {
  steps->Begin("mount");
  if (plan.mounts.size() > ChildReport::kMaxMounts) return InvalidArgument("more mounts than a container can have");
  std::vector<std::vector<std::string>> option_words(plan.mounts.size());
  std::vector<std::vector<const char*>> options(plan.mounts.size());
  std::vector<RawMount> mounts;
  size_t next_bind = 0;
  for (size_t i = 0; i < plan.mounts.size(); ++i) {
    const MountStep& mount = plan.mounts[i];
    for (const auto& option : mount.options) {
      size_t equals = option.find('=');
      option_words[i].push_back(option.substr(0, equals));
      option_words[i].push_back(option.substr(equals + 1));
    }
    options[i] = Pointers(option_words[i]);
    RawMount raw{mount.kind, mount.source.c_str(), mount.target.c_str(), options[i].data(), mount.attributes,
                 mount.optional, -1, true};
    if (mount.kind == MountStep::kBind) {
      raw.fd = binds[next_bind++].get();
      struct stat info {};
      if (::fstat(raw.fd, &info) != 0) return ErrnoStatus("looking at " + mount.source);
      raw.is_dir = S_ISDIR(info.st_mode);
    }
    mounts.push_back(raw);
  }
  steps->Begin("namespaces");
  auto& held = *container->held;
  std::vector<int> cgroup_fds;
  InitArgs args{};
  args.join = JoinOf(*container, &cgroup_fds);
  args.report = report_;
  args.stack = &child_stack_;
  args.new_namespaces = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
  if (time_namespaces_) args.new_namespaces |= kNewTimeNamespace;
  args.spawner_pidfd = self_pidfd_.get();
  args.overlay = overlay;
  args.own_files = held.pair.own_files.get();
  args.overlay_anchor = overlay_anchor_.c_str();
  args.own_anchor = own_anchor_.c_str();
  args.hostname = plan.hostname.c_str();
  args.hostname_size = plan.hostname.size();
  args.mounts = mounts.data();
  args.mount_count = static_cast<int>(mounts.size());
  args.read_only = plan.read_only;
  args.null_fd = null_fd_.get();
  args.init_fd = init_fd_.get();
  args.filter = &filter_;
  Status status = RunHelper(RunInitHelper, &args, CLONE_VM, held.cgroup->into_fd(), steps);
  if (!held.writable_dir.empty()) {
    for (size_t i = 0; i < plan.mounts.size(); ++i) {
      if (report_->made[i]) held.made.push_back(plan.mounts[i].target);
    }
  }
  RETURN_IF_ERROR(status);
  container->init_pid = report_->pid;
  container->init_pidfd.reset(report_->pidfd);
  steps->Done("init");
  return OkStatus();
}

Result<RuntimeImpl::Stdio> RuntimeImpl::MakeStdio(const lydian::Process& process, std::vector<UniqueFd> stdio,
                                                  uint32_t base, Process* out) {
  Stdio result;
  auto make_pipe = [&](int number, const char* name, bool child_reads) -> Status {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("making a pipe");
    UniqueFd child(ends[child_reads ? 0 : 1]), ours(ends[child_reads ? 1 : 0]);
    // The container's user must own the pipe, or /dev/stdout could not be opened.
    if (::fchown(child.get(), base + process.uid(), base + process.gid()) != 0) return ErrnoStatus("giving a pipe away");
    result.child[number] = std::move(child);
    out->fds[name] = std::move(ours);
    return OkStatus();
  };
  if (process.stdio() == lydian::Process::INHERIT) {
    if (stdio.size() != 3) return InvalidArgument("INHERIT needs three descriptors");
    for (size_t i = 0; i < 3; ++i) result.child[i] = std::move(stdio[i]);
  } else {
    if (process.stdio() == lydian::Process::PIPES_WITH_STDIN) {
      RETURN_IF_ERROR(make_pipe(0, "stdin", true));
    } else {
      ASSIGN_OR_RETURN(result.child[0], Duplicate(null_fd_.get()));
    }
    RETURN_IF_ERROR(make_pipe(1, "stdout", false));
    RETURN_IF_ERROR(make_pipe(2, "stderr", false));
  }
  if (process.control_fd()) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return ErrnoStatus("making the control socket");
    result.child[3].reset(ends[0]);
    out->fds["control"].reset(ends[1]);
  }
  for (auto& fd : result.child) {
    if (!fd.valid() || fd.get() > 3) continue;
    // 0 to 3 are what they become; a source there would be overwritten before its turn.
    int moved = ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 4);
    if (moved < 0) return ErrnoStatus("moving a descriptor");
    fd.reset(moved);
  }
  return result;
}

Result<Process> RuntimeImpl::StartProcess(const lydian::Process& process, std::vector<UniqueFd> stdio, bool is_main,
                                          Container* container, Steps* steps) {
  auto& held = *container->held;
  steps->Begin("stdio");
  RETURN_IF_ERROR(CheckProcess(process));
  Process out;
  ASSIGN_OR_RETURN(Stdio fds, MakeStdio(process, std::move(stdio), held.pair.base, &out));
  steps->Begin("exec");
  std::vector<std::string> candidate_words = ExecCandidates(process);
  std::vector<const char*> candidates = Pointers(candidate_words);
  std::vector<const char*> argv = Pointers({process.argv().begin(), process.argv().end()});
  argv.clear();
  for (const auto& word : process.argv()) argv.push_back(word.c_str());
  argv.push_back(nullptr);
  std::vector<const char*> envp;
  for (const auto& word : process.env()) envp.push_back(word.c_str());
  envp.push_back(nullptr);
  std::string cwd = process.cwd().empty() ? "/" : process.cwd();
  std::vector<int> cgroup_fds;
  ProcessArgs args{};
  args.join = JoinOf(*container, &cgroup_fds);
  args.report = report_;
  args.stack = &child_stack_;
  args.set_tid = is_main ? 2 : 0;
  for (int i = 0; i < 4; ++i) args.fds[i] = fds.child[i].get();
  args.cwd = cwd.c_str();
  args.uid = process.uid();
  args.gid = process.gid();
  args.candidates = candidates.data();
  args.argv = const_cast<char* const*>(argv.data());
  args.envp = const_cast<char* const*>(envp.data());
  args.filter = &filter_;
  // Not CLONE_VM: the kernel lets only a process with memory of its own join a time namespace.
  RETURN_IF_ERROR(RunHelper(RunProcessHelper, &args, 0, held.cgroup->into_fd(), steps));
  out.pid = report_->pid;
  out.pidfd.reset(report_->pidfd);
  steps->Done("exec");
  return out;
}

Result<Process> RuntimeImpl::Exec(Container& container, const lydian::Process& process, std::vector<UniqueFd> stdio,
                                  StepError* error) {
  Steps steps;
  auto& held = *container.held;
  std::erase_if(held.exec_pidfds, [](const UniqueFd& fd) { return os::PidfdEnded(fd.get()); });
  auto started = StartProcess(process, std::move(stdio), false, &container, &steps);
  Status status = started.status();
  if (status.ok()) {
    auto copy = Duplicate(started->pidfd.get());
    if (copy.ok()) held.exec_pidfds.push_back(std::move(*copy));
    return started;
  }
  if (error != nullptr) *error = {steps.name(), status};
  return std::move(status).With(steps.name());
}

Status RuntimeImpl::KillAll(Container& container) {
  // The end of process 1 is the end of its pid namespace.
  Status status = os::SignalPidfd(container.init_pidfd.get(), SIGKILL);
  return status.error() == ESRCH ? OkStatus() : status;
}

MemoryUse RuntimeImpl::Memory(Container& container) {
  MemoryUse use;
  use.limit_bytes = container.held->memory_limit;
  if (container.held->cgroup == nullptr) return use;
  os::CgroupMemory memory = container.held->cgroup->Memory();
  use.oom_killed = memory.oom_killed;
  use.peak_bytes = memory.peak_bytes;
  return use;
}

Status RuntimeImpl::Remove(std::unique_ptr<Container> container) { return Release(container.get()); }

Status RuntimeImpl::EndInit(Container* container) {
  if (!container->init_pidfd.valid()) return OkStatus();
  RETURN_IF_ERROR(KillAll(*container));
  // Process 1 waits for all others, and they for being reaped by their parent, this process.
  auto& held = *container->held;
  if (container->main.pidfd.valid()) held.exec_pidfds.push_back(std::move(container->main.pidfd));
  for (const auto& pidfd : held.exec_pidfds) {
    auto ended = os::WaitPidfd(pidfd.get(), kRemoveTimeoutMs);
    if (!ended.ok() && ended.status().error() != ECHILD) return ended.status().With("ending a process");
  }
  held.exec_pidfds.clear();
  auto ended = os::WaitPidfd(container->init_pidfd.get(), kRemoveTimeoutMs);
  if (!ended.ok() && ended.status().error() != ECHILD) return ended.status().With("ending process 1");
  container->init_pidfd.reset();
  return OkStatus();
}

Status RuntimeImpl::Release(Container* container) {
  auto& held = *container->held;
  Status status = EndInit(container);
  if (held.cgroup != nullptr) {
    Status removed = held.cgroup->Remove();
    if (!removed.ok()) lingering_.insert(container->job.container_id());
    if (status.ok() && removed.error() != EBUSY) status = removed;
    held.cgroup.reset();
  }
  TidyWritableDir(held);
  networks_->Return(held.pair);
  held.pair = Pair{};
  --live_;
  return status;
}

// A build's layer keeps nothing of what was only needed to mount over it: placeholders that are still empty, the socket.
void RuntimeImpl::TidyWritableDir(const Container::Held& held) {
  if (held.writable_dir.empty() || held.made.empty()) return;
  UniqueFd upper(::open((held.writable_dir + "/upper").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!upper.valid()) return;
  std::vector<std::string> made = held.made;
  std::sort(made.begin(), made.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });  // inner ones first
  for (const auto& path : made) {
    size_t slash = path.find_last_of('/');
    if (slash == std::string::npos || slash + 1 >= path.size()) continue;
    auto parent = os::OpenInRoot(upper.get(), slash == 0 ? "/" : path.substr(0, slash), O_PATH | O_DIRECTORY);
    if (!parent.ok()) continue;
    const char* name = path.c_str() + slash + 1;
    struct stat info {};
    if (::fstatat(parent->get(), name, &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (S_ISDIR(info.st_mode)) {
      ::unlinkat(parent->get(), name, AT_REMOVEDIR);  // fails if something is in it, as it should
    } else if (S_ISSOCK(info.st_mode) || (S_ISREG(info.st_mode) && info.st_size == 0)) {
      ::unlinkat(parent->get(), name, 0);
    }
  }
}

bool RuntimeImpl::Refill() {
  for (auto it = lingering_.begin(); it != lingering_.end();) {
    it = cgroups_->Destroy(*it).ok() ? lingering_.erase(it) : std::next(it);
  }
  if (refill_broken_) return false;
  Status status;
  if (networks_->pooled() < options_.network_pool) {
    status = networks_->AddToPool();
  } else if (quotas_->pooled() < options_.quota_pool) {
    status = CheckDisk();
    if (status.ok()) status = quotas_->AddToPool();
  } else {
    return false;
  }
  if (status.ok()) return true;
  refill_broken_ = true;  // a start will try for itself and say what is wrong
  LOG_WARN("a pool could not be filled", {{"error", status}});
  return false;
}

void RuntimeImpl::DrainPools() {
  refill_broken_ = false;
  if (networks_ != nullptr) networks_->Drain();
  if (quotas_ != nullptr) quotas_->Drain();
}

Status RuntimeImpl::CleanLeftovers() {
  Status result;
  auto note = [&result](Status status) {
    if (result.ok() && !status.ok()) result = status;
  };
  if (live_ != 0) return FailedPrecondition("leftovers can be removed only while no container runs");
  DrainPools();
  for (const auto& name : cgroups_->List()) note(cgroups_->Destroy(name));
  note(networks_->RemoveLeftoverLinks());
  // Mounts need nothing: they were never attached to the host's tree. Quota images are unlinked as soon as they are mounted.
  note(RemoveTree(containers_dir_));
  note(MakeDirs(containers_dir_, 0755));
  quotas_ = std::make_unique<QuotaPool>(containers_dir_, options_.disk_bytes & ~uint64_t{4095});
  return result;
}

}  // namespace lydian::runtime
