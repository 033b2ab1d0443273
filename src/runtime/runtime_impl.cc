#include "runtime/runtime_impl.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "os/loop.h"
#include "os/mount.h"
#include "os/seccomp.h"

namespace lydian::runtime {
namespace {

constexpr int kRemoveTimeoutMs = 10'000;
// How long the spawner, and with it everybody, waits for one container's processes to end.
constexpr int kEndTimeoutMs = 3000;
constexpr uint64_t kMostDisk = uint64_t{4} << 40;  // making a larger one takes seconds
constexpr int kCloseMs = 10;

// What all containers may have of the machine's processes and threads; the rest is the host's.
uint64_t ProcessShare() {
  uint64_t most = 0;
  for (const char* name : {"pid_max", "threads-max"}) {
    auto text = ReadFile(std::string("/proc/sys/kernel/") + name, 64);
    uint64_t value = text.ok() ? std::strtoull(text->c_str(), nullptr, 10) : 0;
    if (value != 0 && (most == 0 || value < most)) most = value;
  }
  return most / 4 * 3;
}

}  // namespace

uint64_t NowNanos() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

Result<std::unique_ptr<Runtime>> Runtime::Create(RuntimeOptions options) {
  auto runtime = std::make_unique<RuntimeImpl>(std::move(options));
  RETURN_IF_ERROR(runtime->Open());
  return std::unique_ptr<Runtime>(std::move(runtime));
}

Status RemoveInstance(const RuntimeOptions& options) {
  Status result;
  auto note = [&result](Status status) {
    if (result.ok() && !status.ok()) result = status;
  };
  auto cgroups = os::CgroupTree::Open("lydian-" + options.instance);
  note(cgroups.status());
  if (cgroups.ok()) {
    for (const auto& name : (*cgroups)->List()) note((*cgroups)->Destroy(name));
    note((*cgroups)->RemoveParent());
  }
  // Of an `up` that was killed; one that runs is in it.
  if (auto daemons = os::MemoryGroup::Open(DaemonGroup(options.instance), 0); daemons.ok())
    note(daemons->Remove());
  note(Networks::RemoveAll(options.instance));
  const std::string forwarding = options.state_dir + "/ip_forward_was_off";
  if (Exists(forwarding)) {
    note(WriteExisting("/proc/sys/net/ipv4/ip_forward", "0"));
    ::unlink(forwarding.c_str());
  }
  return result;
}

Status RuntimeImpl::Open() {
  containers_dir_ = options_.state_dir + "/containers";
  // Each container mounts over these in a mount namespace of its own, as a user who may not walk through a
  // closed state folder.
  overlay_anchor_ = "/run/lydian-anchors/overlay";
  own_anchor_ = "/run/lydian-anchors/own";
  for (const auto& dir : {containers_dir_, overlay_anchor_, own_anchor_})
    RETURN_IF_ERROR(MakeDirs(dir, 0755));
  ASSIGN_OR_RETURN(self_pidfd_, os::OpenPidfd(::getpid()));
  init_fd_.reset(::open(options_.init_path.c_str(), O_PATH | O_CLOEXEC));
  if (!init_fd_.valid()) return ErrnoStatus("opening " + options_.init_path);
  time_namespaces_ = ::access("/proc/self/ns/time", F_OK) == 0;
  ASSIGN_OR_RETURN(filter_, os::BuildSeccompFilter());
  ASSIGN_OR_RETURN(overlays_, Overlays::Create(containers_dir_));
  // Opened after this process may have changed its mount namespace, so that its path is one that can be
  // resolved.
  null_fd_.reset(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null_fd_.valid()) return ErrnoStatus("opening /dev/null");
  ASSIGN_OR_RETURN(cgroups_, os::CgroupTree::Open("lydian-" + options_.instance));
  uint64_t total = TotalMemory();
  uint64_t reserve =
      options_.memory_reserve_bytes != 0 ? options_.memory_reserve_bytes : DefaultMemoryReserve(total);
  if (reserve >= total) return InvalidArgument("the memory reserve is more than the machine has");
  shared_memory_limit_ = (total - reserve) & ~uint64_t{4095};
  RETURN_IF_ERROR(cgroups_->SetMemoryLimit(shared_memory_limit_));
  const uint64_t processes = ProcessShare();
  if (processes != 0) RETURN_IF_ERROR(cgroups_->SetProcessLimit(processes));
  ASSIGN_OR_RETURN(networks_, Networks::Create(options_));
  // Now, since the worker's name server binds an address of the bridge. What is wrong is said again by each
  // start.
  if (Status status = networks_->Prepare(); !status.ok()) {
    LOG_WARN("containers have no network", {{"error", status}});
  }
  quotas_ = std::make_unique<QuotaPool>(containers_dir_, options_.disk_bytes & ~uint64_t{4095});
  LOG_INFO("the runtime is ready", {{"instance", options_.instance},
                                    {"cgroups", cgroups_->version()},
                                    {"overlay", OverlayModeName(overlays_->mode())},
                                    {"addresses", networks_->range()},
                                    {"memory_for_containers", shared_memory_limit_},
                                    {"processes_for_containers", processes}});
  return OkStatus();
}

RuntimeImpl::~RuntimeImpl() {
  RetryDying(kEndTimeoutMs);
  DrainPools();
  ending_.clear();
  for (const auto& closer : closers_) (void)os::WaitPidfd(closer.get(), kRemoveTimeoutMs);
  if (live_ != 0 || networks_ == nullptr) return;
  if (Status status = networks_->Remove(); !status.ok())
    LOG_WARN("the bridge or firewall stays", {{"error", status}});
  if (Status status = cgroups_->RemoveParent(); !status.ok())
    LOG_WARN("a control group stays", {{"error", status}});
}

Result<Plan> RuntimeImpl::MakePlan(const Job& job) {
  ASSIGN_OR_RETURN(StartPlan plan, MakeStartPlan(job, options_));
  return DescribePlan(plan, job, options_);
}

Result<std::unique_ptr<Container>> RuntimeImpl::Start(const Job& job, std::vector<UniqueFd> stdio,
                                                      StepError* error) {
  Steps steps;
  auto container = std::make_unique<Container>();
  container->job = job;
  container->held = std::make_shared<Container::Held>();
  ++live_;
  Status status = Build(job, std::move(stdio), container.get(), &steps);
  if (status.ok()) {
    container->phases = steps.TakePhases();
    refill_broken_ = false;
    return container;
  }
  if (error != nullptr) *error = {steps.name(), status};
  if (Status removed = Release(std::move(container)); !removed.ok()) {
    LOG_WARN("a container that failed to start left something",
             {{"container_id", job.container_id()}, {"error", removed}});
  }
  return std::move(status).With(steps.name());
}

Status RuntimeImpl::CheckDisk(uint64_t bytes) {
  struct statvfs info {};
  if (::statvfs(options_.state_dir.c_str(), &info) != 0)
    return ErrnoStatus("looking at " + options_.state_dir);
  const uint64_t most =
      std::max(options_.disk_bytes, std::min(kMostDisk, uint64_t{info.f_blocks} * info.f_frsize));
  if (bytes > most) {
    return InvalidArgument("a disk of " + std::to_string(bytes >> 30) + " GiB is asked for, and " +
                           options_.state_dir + " can give a container " + std::to_string(most >> 30) +
                           " GiB at most");
  }
  uint64_t free = uint64_t{info.f_bavail} * info.f_frsize;
  if (free >= options_.disk_reserve_bytes) return OkStatus();
  return ErrnoStatus("the disk of " + options_.state_dir + " has " + std::to_string(free >> 20) +
                         " MiB free, and " + std::to_string(options_.disk_reserve_bytes >> 20) +
                         " MiB are kept in reserve",
                     ENOSPC);
}

Status RuntimeImpl::Build(const Job& job, std::vector<UniqueFd> stdio, Container* container, Steps* steps) {
  auto& held = *container->held;
  ASSIGN_OR_RETURN(StartPlan plan, MakeStartPlan(job, options_));
  steps->Begin("disk");
  RETURN_IF_ERROR(CheckDisk(plan.quota_bytes));
  steps->Done("plan");

  steps->Begin("network");
  ASSIGN_OR_RETURN(held.pair, networks_->Take(plan.nat, plan.build));
  if (held.pair.address != 0) container->ip = os::Ipv4Text(held.pair.address);
  ASSIGN_OR_RETURN(container->netns, Duplicate(held.pair.net_ns.get()));
  if (job.http_listener()) container->http_listener = std::move(held.pair.http_listener);
  held.pair.http_listener.reset();
  steps->Done("network");

  steps->Begin("quota");
  ASSIGN_OR_RETURN(UniqueFd writable, TakeWritable(plan, container));
  steps->Done("quota");

  steps->Begin("cgroup");
  ASSIGN_OR_RETURN(auto helper, MakeCgroup(job, plan, container));
  steps->Done("cgroup");

  steps->Begin("overlay");
  ASSIGN_OR_RETURN(UniqueFd overlay, MakeRoot(plan, std::move(writable), held.pair));
  steps->Done("overlay");

  steps->Begin("bind");
  ASSIGN_OR_RETURN(auto binds, OpenBinds(plan, held.pair));
  RETURN_IF_ERROR(WriteOwnFiles(plan, held.pair));
  RETURN_IF_ERROR(AddDevices(job, held.pair));
  steps->Begin("sockets");
  if (job.api_socket()) RETURN_IF_ERROR(MakeApiSocket(overlay.get(), container));
  steps->Begin("stdio");
  ASSIGN_OR_RETURN(Stdio fds, MakeStdio(job.process(), std::move(stdio), held.pair.base, &container->main));
  steps->Begin("namespaces");
  RETURN_IF_ERROR(FillInit(plan, *container, overlay.get(), binds, helper.get()));
  RETURN_IF_ERROR(FillProcess(job.process(), fds, -1, helper.get()));
  steps->Done("files");
  RETURN_IF_ERROR(RunHelper(&plan, container, std::move(helper), &container->main, steps));
  held.pair.own_files.reset();
  // Only now: its start must not have to wait for a share of what may be a hundredth of a processor.
  if (job.limits().milli_cpu() != 0) {
    steps->Begin("cgroup");
    RETURN_IF_ERROR(held.cgroup->SetCpu(job.limits().milli_cpu()));
  }
  return OkStatus();
}

Result<UniqueFd> RuntimeImpl::TakeWritable(const StartPlan& plan, Container* container) {
  auto& held = *container->held;
  if (plan.bare) return UniqueFd();
  if (!plan.writable_dir.empty()) {
    ASSIGN_OR_RETURN(UniqueFd writable, OpenWritableDir(plan.writable_dir));
    container->upper = plan.writable_dir + "/upper";
    held.kept.reset(::open(plan.writable_dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!held.kept.valid()) return ErrnoStatus("opening the writable layer");
    return writable;
  }
  ASSIGN_OR_RETURN(QuotaDisk disk, quotas_->Take(plan.quota_bytes));
  if (!plan.hand_over) {
    held.disk = std::move(disk.plain);
    return std::move(disk.mount);
  }
  ASSIGN_OR_RETURN(held.kept, Duplicate(disk.plain.get()));
  container->writable = std::move(disk.plain);
  return std::move(disk.mount);
}

Result<UniqueFd> RuntimeImpl::MakeRoot(const StartPlan& plan, UniqueFd writable, const Pair& pair) {
  const int user_ns = pair.user_ns.get();
  if (plan.bare) return CloneLayer(plan.lowers[0], user_ns);
  // What is handed over is read where it lies, at once: only what becomes a layer as it stands must be
  // synced.
  return overlays_->Make(plan.lowers, std::move(writable), !plan.writable_dir.empty(), user_ns, pair.base);
}

Result<std::unique_ptr<Helper>> RuntimeImpl::MakeCgroup(const Job& job, const StartPlan& plan,
                                                        Container* container) {
  auto& held = *container->held;
  os::CgroupLimits limits;
  limits.memory_bytes = plan.memory_bytes;
  limits.memory_low_bytes = std::min(job.limits().memory_request_bytes(), shared_memory_limit_);
  if (job.limits().milli_cpu_request() != 0) limits.weight_milli_cpu = job.limits().milli_cpu_request();
  limits.pids = plan.pids;
  std::unique_ptr<Helper> helper;
  if (!seats_.empty()) {
    helper = std::move(seats_.front().helper);
    held.cgroup = std::move(seats_.front().cgroup);
    seats_.pop_front();
    RETURN_IF_ERROR(cgroups_->Assign(held.cgroup.get(), job.container_id(), limits));
  } else {
    ASSIGN_OR_RETURN(held.cgroup, cgroups_->Make(job.container_id(), limits));
    ASSIGN_OR_RETURN(helper, MakeHelper(*held.cgroup));
  }
  held.memory_limit = plan.memory_bytes != 0 ? plan.memory_bytes : shared_memory_limit_;
  // Who has no limit goes first when the machine is short; who has one, still before the machine's own
  // services.
  held.oom_score_adj = plan.memory_bytes != 0 ? 500 : 1000;
  return helper;
}

Status RuntimeImpl::AddSeat() {
  Seat seat;
  ASSIGN_OR_RETURN(seat.cgroup, cgroups_->Make("seat-" + std::to_string(next_seat_++), {}));
  auto helper = MakeHelper(*seat.cgroup);
  if (!helper.ok()) {
    (void)seat.cgroup->Remove();
    return helper.status();
  }
  seat.helper = std::move(*helper);
  seats_.push_back(std::move(seat));
  return OkStatus();
}

Status RuntimeImpl::WriteOwnFiles(const StartPlan& plan, const Pair& pair) {
  os::ScopedFsIds ids(pair.base, pair.base);
  std::string address = pair.address != 0 ? os::Ipv4Text(pair.address) : "127.0.1.1";
  const std::pair<const char*, std::string> files[] = {
      {"etc/hostname", plan.hostname + "\n"},
      {"etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" + address + "\t" +
                        plan.hostname + "\n"},
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
    if (!S_ISCHR(info.st_mode) && !S_ISBLK(info.st_mode))
      return InvalidArgument(device.path() + " is not a device");
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
  if (::unlinkat(run.get(), name, 0) != 0 && errno != ENOENT)
    return ErrnoStatus(std::string("replacing ") + kApiSocket);
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
  if (held.kept.valid()) {
    container->held->made.push_back(kApiSocket);
    if (!had_run) container->held->made.push_back("/run");
  }
  return OkStatus();
}

Result<std::vector<UniqueFd>> RuntimeImpl::OpenBinds(const StartPlan& plan, const Pair& pair) {
  std::vector<UniqueFd> binds;
  for (const auto& mount : plan.mounts) {
    if (mount.kind == MountStep::kTree) {
      ASSIGN_OR_RETURN(UniqueFd tree, OpenTree(mount, pair));
      binds.push_back(std::move(tree));
    }
    if (mount.kind != MountStep::kBind) continue;
    ASSIGN_OR_RETURN(UniqueFd fd, os::CloneTree(AT_FDCWD, mount.source));
    RETURN_IF_ERROR(os::ChangeMount(fd.get(), mount.attributes, mount.idmap ? pair.user_ns.get() : -1)
                        .With(mount.source));
    binds.push_back(std::move(fd));
  }
  return binds;
}

// Layers that are not the container's own root, for work on them from beside: nothing of it is ever run.
Result<UniqueFd> RuntimeImpl::OpenTree(const MountStep& mount, const Pair& pair) {
  const int user_ns = pair.user_ns.get();
  Result<UniqueFd> tree = Internal("no tree");
  if (mount.lowers.empty()) {
    RETURN_IF_ERROR(OpenWritableDir(mount.writable_dir).status());  // makes `upper`
    tree = os::CloneTree(AT_FDCWD, mount.writable_dir + "/upper");
    if (tree.ok()) RETURN_IF_ERROR(os::ChangeMount(tree->get(), mount.attributes, user_ns));
  } else if (mount.writable_dir.empty() && mount.lowers.size() == 1) {
    tree = CloneLayer(mount.lowers[0], user_ns);
    if (tree.ok()) RETURN_IF_ERROR(os::ChangeMount(tree->get(), mount.attributes));
  } else {
    UniqueFd writable;
    if (!mount.writable_dir.empty()) {
      ASSIGN_OR_RETURN(writable, OpenWritableDir(mount.writable_dir));
    }
    const bool keep = writable.valid();
    tree = overlays_->Make(mount.lowers, std::move(writable), keep, user_ns, pair.base);
    if (tree.ok()) RETURN_IF_ERROR(os::ChangeMount(tree->get(), mount.attributes));
  }
  return std::move(tree).With("tree at " + mount.target);
}

Status RuntimeImpl::KillAll(Container& container) {
  // Ending takes processor time too, a thousand processes a lot of it.
  auto& cgroup = container.held->cgroup;
  if (container.job.limits().milli_cpu() != 0 && cgroup != nullptr) (void)cgroup->SetCpu(0);
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

Status RuntimeImpl::Remove(std::unique_ptr<Container> container) { return Release(std::move(container)); }

// DEADLINE_EXCEEDED while a process is left.
Status RuntimeImpl::EndInit(Container* container, int timeout_ms) {
  if (!container->init_pidfd.valid()) return OkStatus();
  RETURN_IF_ERROR(KillAll(*container));
  // Process 1 waits for all others, and they for being reaped by their parent, this process.
  auto& held = *container->held;
  if (container->main.pidfd.valid()) held.exec_pidfds.push_back(std::move(container->main.pidfd));
  const uint64_t until = NowNanos() + static_cast<uint64_t>(timeout_ms) * 1'000'000;
  auto ended = [until](const UniqueFd& pidfd) {
    const uint64_t now = NowNanos();
    Status status =
        os::WaitPidfd(pidfd.get(), now < until ? static_cast<int>((until - now) / 1'000'000) : 0).status();
    return status.error() == ECHILD ? OkStatus() : status;
  };
  for (const auto& pidfd : held.exec_pidfds) RETURN_IF_ERROR(ended(pidfd).With("ending a process"));
  held.exec_pidfds.clear();
  RETURN_IF_ERROR(ended(container->init_pidfd).With("ending process 1"));
  container->init_pidfd.reset();
  return OkStatus();
}

// Unmounting writes back what is dirty, gigabytes perhaps: what is much is given up, and the rest is left to
// another process.
void RuntimeImpl::DiscardDisk(UniqueFd disk) {
  constexpr uint64_t kMuch = uint64_t{16} << 20;
  struct statvfs info {};
  if (::fstatvfs(disk.get(), &info) == 0 && uint64_t{info.f_blocks - info.f_bfree} * info.f_frsize > kMuch) {
    os::AbandonWrites(disk.get());
  }
  auto closer = os::CloseElsewhere(std::move(disk), helper_stack_);
  if (closer.ok()) {
    // On a quiet machine it is done by then, and nothing of the container is left when Remove returns.
    (void)os::PidfdEnded(closer->get(), kCloseMs);
    closers_.push_back(std::move(*closer));
  } else {
    LOG_WARN("a writable layer was taken down in place", {{"error", closer.status()}});
  }
}

void RuntimeImpl::ReapEnded() {
  std::erase_if(ending_, [](const auto& helper) { return os::PidfdEnded(helper->pidfd().get()); });
  std::erase_if(closers_, [](const UniqueFd& pidfd) {
    if (!os::PidfdEnded(pidfd.get())) return false;
    (void)os::WaitPidfd(pidfd.get(), -1);  // reaps it, unless a wait for any child has
    return true;
  });
}

Status RuntimeImpl::Release(std::unique_ptr<Container> container) {
  // A build's layer is worth waiting for: what is written to it after this would be half of it.
  const int timeout_ms = container->held->kept.valid() ? kRemoveTimeoutMs : kEndTimeoutMs;
  Status status = EndInit(container.get(), timeout_ms);
  if (status.code() == Code::kDeadlineExceeded) {
    // It lives, so nobody else may have its ids and its address.
    LOG_WARN("a container does not end; its ids and address stay taken until it has",
             {{"container_id", container->job.container_id()}, {"error", status}});
    container->main.fds.clear();
    for (UniqueFd* fd : {&container->api_listener, &container->http_listener, &container->netns}) fd->reset();
    dying_.push_back(std::move(container));
    return status;
  }
  Status freed = Free(container.get());
  return status.ok() ? freed : status;
}

void RuntimeImpl::RetryDying(int timeout_ms) {
  std::erase_if(dying_, [&](auto& container) {
    Status status = EndInit(container.get(), timeout_ms);
    if (status.code() == Code::kDeadlineExceeded) return false;
    if (status.ok()) status = Free(container.get());
    LOG_INFO("a container that did not end has ended",
             {{"container_id", container->job.container_id()}, {"error", status}});
    return true;
  });
}

Status RuntimeImpl::Free(Container* container) {
  auto& held = *container->held;
  Status status;
  ending_.clear();  // one of them may still be in the control group
  if (held.disk.valid()) DiscardDisk(std::move(held.disk));
  ReapEnded();
  if (held.cgroup != nullptr) {
    Status removed = held.cgroup->Remove();
    if (removed.error() == EBUSY) {
      lingering_.push_back(std::move(held.cgroup));  // a process of it is still on its way out
    } else if (status.ok()) {
      status = removed;
    }
    held.cgroup.reset();
  }
  TidyWritableDir(held);
  networks_->Return(held.pair);
  held.pair = Pair{};
  --live_;
  return status;
}

// A build's layer keeps nothing of what was only needed to mount over it: placeholders that are still empty,
// the socket.
void RuntimeImpl::TidyWritableDir(const Container::Held& held) {
  if (!held.kept.valid() || held.made.empty()) return;
  UniqueFd upper(::openat(held.kept.get(), "upper", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!upper.valid()) return;
  std::vector<std::string> made = held.made;
  std::sort(made.begin(), made.end(),
            [](const auto& a, const auto& b) { return a.size() > b.size(); });  // inner ones first
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
  ReapEnded();
  RetryDying(0);
  std::erase_if(lingering_, [](const auto& group) { return group->Remove().ok(); });
  if (refill_broken_) return false;
  Status status;
  if (networks_->pooled() < options_.network_pool) {
    status = networks_->AddToPool();
  } else if (cgroups_->renames() && seats_.size() < options_.network_pool) {
    status = AddSeat();
  } else if (quotas_->pooled() < options_.quota_pool) {
    status = CheckDisk(0);
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
  ReapEnded();
  refill_broken_ = false;
  for (auto& seat : seats_) {
    seat.helper.reset();
    if (Status status = seat.cgroup->Remove(); !status.ok())
      LOG_WARN("a control group stays", {{"error", status}});
  }
  seats_.clear();
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
  // Mounts need nothing: they were never attached to the host's tree. Quota images are unlinked as soon as
  // they are mounted.
  note(RemoveTree(containers_dir_));
  note(MakeDirs(containers_dir_, 0755));
  quotas_ = std::make_unique<QuotaPool>(containers_dir_, options_.disk_bytes & ~uint64_t{4095});
  return result;
}

}  // namespace lydian::runtime
