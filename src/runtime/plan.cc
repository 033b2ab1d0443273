#include "runtime/plan.h"

#include <sys/mount.h>
#include <sys/sysinfo.h>

#include <algorithm>

#include "os/caps.h"

namespace lydian::runtime {
namespace {

constexpr uint64_t kQuiet = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
constexpr uint64_t kInert = kQuiet | MOUNT_ATTR_NOEXEC;

bool GoodAbsolute(const std::string& path) {
  if (path.empty() || path[0] != '/' || path.size() > 4000 || path.find('\0') != std::string::npos)
    return false;
  return ("/" + path + "/").find("/../") == std::string::npos;
}

bool GoodName(const std::string& id) {
  if (id.empty() || id.size() > 100 || id[0] == '.') return false;
  return std::all_of(id.begin(), id.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; });
}

bool GoodHostname(const std::string& name) {
  if (name.empty() || name.size() > 63) return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '.'; });
}

MountStep FileSystem(const char* type, const char* target, uint64_t attributes,
                     std::vector<std::string> options = {}) {
  return {MountStep::kFileSystem, type, target, std::move(options), attributes};
}

void AddStandardMounts(StartPlan* plan) {
  auto& out = plan->mounts;
  out.push_back(FileSystem("proc", "/proc", kInert));
  out.push_back(FileSystem("sysfs", "/sys", kInert | MOUNT_ATTR_RDONLY));
  out.push_back({MountStep::kOwn, "dev", "/dev", {}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC});
  out.push_back(FileSystem("devpts", "/dev/pts", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
                           {"mode=0620", "ptmxmode=0666", "gid=5", "max=256"}));
  // It counts in the container's memory: who fills it is told ENOSPC, not ended, while there is room beside
  // it.
  const std::string shm = plan->memory_bytes != 0 ? std::to_string(plan->memory_bytes / 4 * 3) : "50%";
  out.push_back(FileSystem("tmpfs", "/dev/shm", kInert, {"mode=1777", "size=" + shm}));
  out.push_back(FileSystem("mqueue", "/dev/mqueue", kInert));
  for (const char* name : {"hostname", "hosts", "resolv.conf"}) {
    out.push_back({MountStep::kOwn, std::string("etc/") + name, std::string("/etc/") + name, {}, kQuiet});
  }
  for (const char* path : {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}) {
    out.push_back({MountStep::kSelf, path, path, {}, kInert | MOUNT_ATTR_RDONLY, true});
  }
  for (const char* path : {"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                           "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
                           "/proc/timer_stats", "/sys/firmware", "/sys/devices/virtual/powercap"}) {
    out.push_back({MountStep::kMask, "", path, {}, kInert | MOUNT_ATTR_RDONLY, true});
  }
}

Status CheckLowers(const std::vector<std::string>& lowers) {
  for (const auto& lower : lowers)
    if (!GoodAbsolute(lower)) return InvalidArgument("layer \"" + lower + "\" is not an absolute path");
  return lowers.size() > 400 ? InvalidArgument("more than 400 layers") : OkStatus();
}

// Nothing in it is ever run.
Status AddTree(const Mount& mount, StartPlan* plan) {
  MountStep step;
  step.kind = MountStep::kTree;
  step.target = mount.target();
  step.attributes = kInert;
  step.lowers.assign(mount.lowers().begin(), mount.lowers().end());
  RETURN_IF_ERROR(CheckLowers(step.lowers).With("mount of " + mount.target()));
  step.writable_dir = mount.writable_dir();
  if (step.writable_dir.empty()) {
    if (step.lowers.empty()) return InvalidArgument("mount of " + mount.target() + " has no layers");
    step.attributes |= MOUNT_ATTR_RDONLY;
  } else if (!GoodAbsolute(step.writable_dir)) {
    return InvalidArgument("writable_dir \"" + step.writable_dir + "\" is not an absolute path");
  }
  step.source = std::to_string(step.lowers.size()) + " layers";
  plan->mounts.push_back(std::move(step));
  return OkStatus();
}

Status AddMounts(const Job& job, StartPlan* plan) {
  for (const auto& mount : job.mounts()) {
    if (!GoodAbsolute(mount.target()))
      return InvalidArgument("mount target \"" + mount.target() + "\" is not an absolute path");
    if (mount.kind() == Mount::TMPFS) {
      std::vector<std::string> options = {"mode=0755"};
      if (mount.size_bytes() > 0) options.push_back("size=" + std::to_string(mount.size_bytes()));
      plan->mounts.push_back({MountStep::kFileSystem, "tmpfs", mount.target(), options,
                              kQuiet | (mount.read_only() ? MOUNT_ATTR_RDONLY : 0u)});
    } else if (mount.kind() == Mount::BIND) {
      if (!GoodAbsolute(mount.source()))
        return InvalidArgument("mount source \"" + mount.source() + "\" is not an absolute path");
      plan->mounts.push_back({MountStep::kBind,
                              mount.source(),
                              mount.target(),
                              {},
                              kQuiet | (mount.read_only() ? MOUNT_ATTR_RDONLY : 0u),
                              false,
                              mount.idmap()});
    } else if (mount.kind() == Mount::OVERLAY) {
      RETURN_IF_ERROR(AddTree(mount, plan));
    } else {
      return InvalidArgument("mount of " + mount.target() + " has no kind");
    }
  }
  return OkStatus();
}

std::string Mebi(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::string DescribeMount(const MountStep& mount) {
  static constexpr const char* kKinds[] = {"", "bind ", "tree of ", "own ", "read-only ", "masked"};
  std::string text = std::string(kKinds[mount.kind]) + (mount.kind == MountStep::kSelf ? "" : mount.source);
  if (mount.kind != MountStep::kSelf && mount.kind != MountStep::kMask &&
      (mount.attributes & MOUNT_ATTR_RDONLY) != 0) {
    text += " (read-only)";
  }
  for (const auto& option : mount.options) text += " " + option;
  return text + " at " + mount.target;
}

}  // namespace

uint64_t DefaultMemoryReserve(uint64_t total_bytes) {
  uint64_t reserve = std::clamp<uint64_t>(total_bytes / 8, uint64_t{512} << 20, uint64_t{4} << 30);
  return std::min(reserve, total_bytes / 4);
}

uint64_t DaemonMemory(uint64_t reserve_bytes, uint64_t total_bytes) {
  const uint64_t reserve = reserve_bytes != 0 ? reserve_bytes : DefaultMemoryReserve(total_bytes);
  return std::max<uint64_t>(reserve / 4 * 3, uint64_t{256} << 20) & ~uint64_t{4095};
}

uint64_t TotalMemory() {
  struct sysinfo info {};
  return ::sysinfo(&info) == 0 ? uint64_t{info.totalram} * info.mem_unit : 0;
}

Status CheckProcess(const lydian::Process& process) {
  if (process.argv_size() == 0 || process.argv(0).empty()) return InvalidArgument("the process has no argv");
  if (process.pty()) return Unimplemented("a process with a terminal (pty) is not built yet");
  if (!process.cwd().empty() && !GoodAbsolute(process.cwd())) {
    return InvalidArgument("cwd \"" + process.cwd() + "\" is not an absolute path");
  }
  if (process.uid() >= 65536 || process.gid() >= 65536)
    return InvalidArgument("uid and gid must be below 65536");
  for (const auto* list : {&process.argv(), &process.env()}) {
    for (const auto& word : *list) {
      if (word.find('\0') != std::string::npos)
        return InvalidArgument("an argument or variable holds a NUL byte");
    }
  }
  return OkStatus();
}

std::vector<std::string> ExecCandidates(const lydian::Process& process) {
  const std::string& program = process.argv(0);
  if (program.find('/') != std::string::npos) return {program};
  std::string path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  for (const auto& variable : process.env()) {
    if (variable.starts_with("PATH=")) path = variable.substr(5);
  }
  std::vector<std::string> out;
  size_t at = 0;
  while (at <= path.size()) {
    size_t end = std::min(path.find(':', at), path.size());
    std::string dir = path.substr(at, end - at);
    out.push_back((dir.empty() ? "." : dir) + "/" + program);
    at = end + 1;
  }
  return out;
}

Result<StartPlan> MakeStartPlan(const Job& job, const RuntimeOptions& options) {
  StartPlan plan;
  if (job.version() > 1)
    return InvalidArgument("a job of version " + std::to_string(job.version()) + "; this runtime knows 1");
  if (!GoodName(job.container_id())) return InvalidArgument("container id \"" + job.container_id() + "\"");
  RETURN_IF_ERROR(CheckProcess(job.process()));
  const auto& rootfs = job.rootfs();
  plan.lowers.assign(rootfs.lowers().begin(), rootfs.lowers().end());
  if (!rootfs.existing_root().empty()) plan.lowers.insert(plan.lowers.begin(), rootfs.existing_root());
  if (plan.lowers.empty()) return InvalidArgument("the root file system has no layers");
  RETURN_IF_ERROR(CheckLowers(plan.lowers));
  if (!rootfs.writable_dir().empty() && !GoodAbsolute(rootfs.writable_dir())) {
    return InvalidArgument("writable_dir \"" + rootfs.writable_dir() + "\" is not an absolute path");
  }
  plan.writable_dir = rootfs.writable_dir();
  plan.hand_over = rootfs.hand_over();
  if (plan.hand_over && !plan.writable_dir.empty())
    return InvalidArgument("hand_over is for a writable layer of the runtime's own, not for writable_dir");
  plan.quota_bytes = rootfs.quota_bytes() != 0 ? rootfs.quota_bytes() : options.disk_bytes;
  plan.quota_bytes = std::max<uint64_t>(plan.quota_bytes, uint64_t{16} << 20) & ~uint64_t{4095};
  plan.read_only = rootfs.read_only();
  plan.bare = rootfs.bare();
  if (plan.bare && (plan.lowers.size() != 1 || !plan.writable_dir.empty() || plan.hand_over))
    return InvalidArgument("a bare root has one layer and nothing is written to it");
  plan.hostname = job.hostname().empty() ? job.container_id().substr(0, 63) : job.hostname();
  if (!GoodHostname(plan.hostname)) return InvalidArgument("host name \"" + plan.hostname + "\"");
  plan.nat = job.network().mode() == Network::NAT;
  plan.build = job.network().build();
  plan.memory_bytes = job.limits().memory_bytes();
  if (plan.memory_bytes != 0) plan.memory_bytes = std::max<uint64_t>(plan.memory_bytes, uint64_t{8} << 20);
  plan.pids = job.limits().pids() != 0 ? job.limits().pids() : options.pids;
  for (const auto& device : job.devices()) {
    if (!GoodAbsolute(device.path()) || !device.path().starts_with("/dev/")) {
      return InvalidArgument("device \"" + device.path() + "\" is not below /dev");
    }
  }
  AddStandardMounts(&plan);
  RETURN_IF_ERROR(AddMounts(job, &plan));
  return plan;
}

Plan DescribePlan(const StartPlan& plan, const Job& job, const RuntimeOptions& options) {
  Plan out;
  auto add = [&out](const char* name, std::string detail) {
    auto* step = out.add_steps();
    step->set_name(name);
    step->set_detail(std::move(detail));
  };
  add("disk", "at least " + Mebi(options.disk_reserve_bytes) + " free in " + options.state_dir);
  add("network",
      plan.nat ? "user and network namespace with eth0 on " + options.instance + ", NAT, out of the pool"
               : "user and network namespace, lo only");
  add("quota", plan.bare                    ? "none: nothing is written"
               : !plan.writable_dir.empty() ? "kept: " + plan.writable_dir + "/upper"
                                            : "ext4 of " + Mebi(plan.quota_bytes) + " on a loop device" +
                                                  (plan.hand_over ? ", handed over" : ""));
  add("cgroup",
      options.instance + "/" + job.container_id() + ": memory " +
          (plan.memory_bytes == 0 ? "what is left" : Mebi(plan.memory_bytes)) + ", cpu " +
          (job.limits().milli_cpu() == 0 ? "no ceiling" : std::to_string(job.limits().milli_cpu()) + "m") +
          ", pids " + std::to_string(plan.pids));
  std::string lowers;
  for (const auto& lower : plan.lowers) lowers += (lowers.empty() ? "" : " < ") + lower;
  add("overlay", lowers + (plan.read_only ? " (read-only)" : ""));
  for (const auto& mount : plan.mounts) {
    if (mount.kind == MountStep::kBind || mount.kind == MountStep::kTree) add("bind", DescribeMount(mount));
  }
  if (job.api_socket()) add("sockets", std::string("listening at ") + kApiSocket);
  if (job.http_listener()) add("sockets", std::string("listening at ") + kInsideAddress + ":80");
  add("namespaces", "join user, net; new pid, mount, ipc, uts, cgroup, time");
  add("hostname", plan.hostname);
  for (const auto& mount : plan.mounts) add("mount", DescribeMount(mount));
  add("pivot", "the overlay becomes /");
  add("init", options.init_path + " as process 1");
  std::string caps;
  for (const auto& name : os::CapNames(os::ContainerCaps())) caps += (caps.empty() ? "" : " ") + name;
  add("privileges", "no new ones; " + caps + "; seccomp allow-list");
  std::string argv;
  for (const auto& word : job.process().argv()) argv += (argv.empty() ? "" : " ") + word;
  add("exec", "process 2, uid " + std::to_string(job.process().uid()) + ", in " +
                  (job.process().cwd().empty() ? "/" : job.process().cwd()) + ": " + argv);
  return out;
}

}  // namespace lydian::runtime
