#include "os/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <sstream>

namespace lydian::os {
namespace {

constexpr char kRoot[] = "/sys/fs/cgroup";
constexpr uint32_t kPeriodMicros = 100'000;

bool IsCgroup2(const std::string& path) {
  struct statfs info {};
  return ::statfs(path.c_str(), &info) == 0 && info.f_type == CGROUP2_SUPER_MAGIC;
}

Status MakeGroup(const std::string& path) {
  if (::mkdir(path.c_str(), 0755) == 0 || errno == EEXIST) return OkStatus();
  return ErrnoStatus("creating control group " + path);
}

Status RemoveGroup(const std::string& path) {
  if (::rmdir(path.c_str()) == 0 || errno == ENOENT) return OkStatus();
  return ErrnoStatus("removing control group " + path);
}

std::vector<std::string> Children(const std::string& path) {
  std::vector<std::string> names;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return names;
  while (struct dirent* entry = ::readdir(dir)) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  ::closedir(dir);
  return names;
}

uint64_t ReadNumber(const std::string& path) {
  auto text = ReadFile(path, 4096);
  return text.ok() ? std::strtoull(text->c_str(), nullptr, 10) : 0;
}

// The value after `key ` in a file of "key value" lines.
uint64_t ReadKey(const std::string& path, std::string_view key) {
  auto text = ReadFile(path, 65536);
  if (!text.ok()) return 0;
  std::istringstream lines(*text);
  std::string name;
  uint64_t value = 0;
  while (lines >> name >> value) {
    if (name == key) return value;
  }
  return 0;
}

Status OpenJoin(const std::string& path, std::vector<UniqueFd>* fds) {
  UniqueFd fd(::open((path + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("opening " + path + "/cgroup.procs");
  fds->push_back(std::move(fd));
  return OkStatus();
}

// SIGKILL to all that is in the group, until it can be removed. Waits on nothing that could stay: 2 s at
// most.
Status KillAndRemove(const std::string& path) {
  for (const auto& child : Children(path)) RETURN_IF_ERROR(KillAndRemove(path + "/" + child));
  for (int round = 0; round < 200; ++round) {
    if (::rmdir(path.c_str()) == 0 || errno == ENOENT) return OkStatus();
    if (errno != EBUSY) return ErrnoStatus("removing control group " + path);
    auto pids = ReadFile(path + "/cgroup.procs", 1 << 20);
    if (pids.ok()) {
      std::istringstream list(*pids);
      pid_t pid;
      while (list >> pid) {
        if (pid > 0 && pid != ::getpid()) ::kill(pid, SIGKILL);
      }
    }
    ::poll(nullptr, 0, 10);  // v1 has no event for "empty"; this path runs only after a spawner was killed
  }
  return ErrnoStatus("removing control group " + path, EBUSY);
}

constexpr char kNoCeiling[] = "-1";

// Microseconds a period.
std::string Quota(uint32_t milli_cpu) {
  return std::to_string(std::max<uint64_t>(1000, uint64_t{milli_cpu} * kPeriodMicros / 1000));
}

uint32_t Shares(uint32_t milli) { return std::clamp<uint32_t>(milli * 1024 / 1000, 2, 262144); }

// --- v1 ---

class CgroupV1 : public Cgroup {
 public:
  CgroupV1(std::string memory, std::string cpu, std::vector<std::string> paths)
      : memory_(std::move(memory)), cpu_(std::move(cpu)), paths_(std::move(paths)) {}

  // Its folders get the last part `name`.
  Status Rename(const std::string& name) {
    for (auto& path : paths_) {
      std::string to = path.substr(0, path.rfind('/') + 1) + name;
      if (::rename(path.c_str(), to.c_str()) != 0) return ErrnoStatus("renaming control group " + path);
      // Two controllers may share a tree.
      for (std::string* own : {&memory_, &cpu_}) {
        if (path == *own) *own = to;
      }
      path = to;
    }
    return OkStatus();
  }

  Status Open() {
    for (const auto& path : paths_) RETURN_IF_ERROR(OpenJoin(path, &join_fds_));
    return OkStatus();
  }
  CgroupMemory Memory() const override {
    return {ReadKey(memory_ + "/memory.oom_control", "oom_kill") > 0,
            ReadNumber(memory_ + "/memory.max_usage_in_bytes"),
            ReadNumber(memory_ + "/memory.usage_in_bytes")};
  }
  Status SetCpu(uint32_t milli_cpu) override {
    return WriteExisting(cpu_ + "/cpu.cfs_quota_us", milli_cpu == 0 ? kNoCeiling : Quota(milli_cpu));
  }
  Status Remove() override {
    Status result;
    for (const auto& path : paths_) {
      if (Status status = RemoveGroup(path); !status.ok()) result = status;
    }
    return result;
  }

 private:
  std::string memory_, cpu_;
  std::vector<std::string> paths_;
};

class TreeV1 : public CgroupTree {
 public:
  TreeV1(std::string name, std::string memory, std::string cpu, std::string pids)
      : name_(std::move(name)),
        memory_(memory + "/" + name_),
        cpu_(cpu + "/" + name_),
        pids_(pids + "/" + name_) {}

  Status Prepare() {
    for (const auto& path : Paths()) RETURN_IF_ERROR(MakeGroup(path));
    // Children account to the parent, or its limit would bind nothing.
    (void)WriteExisting(memory_ + "/memory.use_hierarchy", "1");
    return OkStatus();
  }
  std::string version() const override { return "v1"; }
  Status SetMemoryLimit(uint64_t bytes) override {
    return WriteExisting(memory_ + "/memory.limit_in_bytes", std::to_string(bytes));
  }
  Status SetProcessLimit(uint64_t count) override {
    return WriteExisting(pids_ + "/pids.max", std::to_string(count));
  }

  Result<std::unique_ptr<Cgroup>> Make(const std::string& name, const CgroupLimits& limits) override {
    std::vector<std::string> paths;
    for (const auto& path : Paths()) {
      std::string child = path + "/" + name;
      if (std::find(paths.begin(), paths.end(), child) == paths.end()) paths.push_back(child);
    }
    auto group = std::make_unique<CgroupV1>(memory_ + "/" + name, cpu_ + "/" + name, paths);
    Status status;
    for (const auto& path : paths) {
      if (status.ok()) status = MakeGroup(path);
    }
    if (status.ok()) status = Apply(name, limits);
    if (status.ok()) status = group->Open();
    if (!status.ok()) {
      (void)group->Remove();
      return status;
    }
    return std::unique_ptr<Cgroup>(std::move(group));
  }

  bool renames() const override { return true; }
  Status Assign(Cgroup* group, const std::string& name, const CgroupLimits& limits) override {
    RETURN_IF_ERROR(static_cast<CgroupV1*>(group)->Rename(name));
    return Apply(name, limits);
  }
  std::vector<std::string> List() const override { return Children(memory_); }
  Status Destroy(const std::string& name) override {
    for (const auto& path : Paths()) RETURN_IF_ERROR(KillAndRemove(path + "/" + name));
    return OkStatus();
  }
  Status RemoveParent() override {
    Status result;
    for (const auto& path : Paths()) {
      if (Status status = RemoveGroup(path); !status.ok()) result = status;
    }
    return result;
  }

 private:
  std::array<std::string, 3> Paths() const { return {memory_, cpu_, pids_}; }

  Status Apply(const std::string& name, const CgroupLimits& limits) {
    std::string memory = memory_ + "/" + name, cpu = cpu_ + "/" + name, pids = pids_ + "/" + name;
    if (limits.memory_bytes != 0) {
      RETURN_IF_ERROR(WriteExisting(memory + "/memory.limit_in_bytes", std::to_string(limits.memory_bytes)));
      // Only there with swap accounting; without it, nothing to limit.
      (void)WriteExisting(memory + "/memory.memsw.limit_in_bytes", std::to_string(limits.memory_bytes));
    }
    if (limits.memory_low_bytes != 0) {
      (void)WriteExisting(memory + "/memory.soft_limit_in_bytes", std::to_string(limits.memory_low_bytes));
    }
    RETURN_IF_ERROR(WriteExisting(cpu + "/cpu.shares", std::to_string(Shares(limits.weight_milli_cpu))));
    if (limits.milli_cpu != 0) {
      RETURN_IF_ERROR(WriteExisting(cpu + "/cpu.cfs_quota_us", Quota(limits.milli_cpu)));
    }
    if (limits.pids != 0) RETURN_IF_ERROR(WriteExisting(pids + "/pids.max", std::to_string(limits.pids)));
    return OkStatus();
  }

  std::string name_, memory_, cpu_, pids_;
};

// --- v2 ---

class CgroupV2 : public Cgroup {
 public:
  explicit CgroupV2(std::string path) : path_(std::move(path)) {}

  Status Open() {
    into_fd_.reset(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!into_fd_.valid()) return ErrnoStatus("opening " + path_);
    return OpenJoin(path_, &join_fds_);
  }
  CgroupMemory Memory() const override {
    uint64_t used = ReadNumber(path_ + "/memory.current");
    uint64_t peak = ReadNumber(path_ + "/memory.peak");  // Linux 5.19
    return {ReadKey(path_ + "/memory.events", "oom_kill") > 0, std::max(peak, used), used};
  }
  Status SetCpu(uint32_t milli_cpu) override {
    return WriteExisting(path_ + "/cpu.max",
                         (milli_cpu == 0 ? "max" : Quota(milli_cpu)) + " " + std::to_string(kPeriodMicros));
  }
  Status Remove() override { return RemoveGroup(path_); }

 private:
  std::string path_;
};

class TreeV2 : public CgroupTree {
 public:
  TreeV2(std::string root, const std::string& name) : root_(std::move(root)), path_(root_ + "/" + name) {}

  Status Prepare() {
    constexpr char kControllers[] = "+memory +cpu +pids";
    Status status = WriteExisting(root_ + "/cgroup.subtree_control", kControllers);
    if (status.error() == EBUSY) {
      return FailedPrecondition(root_ + " holds processes, so that its controllers can't be handed down: " +
                                "give Lydian a control group tree whose root is empty");
    }
    RETURN_IF_ERROR(status);
    RETURN_IF_ERROR(MakeGroup(path_));
    return WriteExisting(path_ + "/cgroup.subtree_control", kControllers);
  }
  std::string version() const override { return "v2"; }
  Status SetMemoryLimit(uint64_t bytes) override {
    return WriteExisting(path_ + "/memory.max", std::to_string(bytes));
  }
  Status SetProcessLimit(uint64_t count) override {
    return WriteExisting(path_ + "/pids.max", std::to_string(count));
  }

  Result<std::unique_ptr<Cgroup>> Make(const std::string& name, const CgroupLimits& limits) override {
    std::string path = path_ + "/" + name;
    auto group = std::make_unique<CgroupV2>(path);
    Status status = MakeGroup(path);
    if (status.ok()) status = Apply(path, limits);
    if (status.ok()) status = group->Open();
    if (!status.ok()) {
      (void)group->Remove();
      return status;
    }
    return std::unique_ptr<Cgroup>(std::move(group));
  }

  bool renames() const override { return false; }
  Status Assign(Cgroup*, const std::string&, const CgroupLimits&) override {
    return Unimplemented("control groups v2 can't be renamed");
  }
  std::vector<std::string> List() const override { return Children(path_); }
  Status Destroy(const std::string& name) override {
    std::string path = path_ + "/" + name;
    (void)WriteExisting(path + "/cgroup.kill", "1");  // Linux 5.14; else one by one
    return KillAndRemove(path);
  }
  Status RemoveParent() override { return RemoveGroup(path_); }

 private:
  static Status Apply(const std::string& path, const CgroupLimits& limits) {
    if (limits.memory_bytes != 0) {
      RETURN_IF_ERROR(WriteExisting(path + "/memory.max", std::to_string(limits.memory_bytes)));
      (void)WriteExisting(path + "/memory.swap.max", "0");
    }
    if (limits.memory_low_bytes != 0) {
      (void)WriteExisting(path + "/memory.low", std::to_string(limits.memory_low_bytes));
    }
    // A container that lost one of its processes to the OOM killer is of no use: all or none.
    (void)WriteExisting(path + "/memory.oom.group", "1");
    // Shares 2..262144 onto weights 1..10000, as systemd and the container engines do.
    uint64_t weight = 1 + (uint64_t{Shares(limits.weight_milli_cpu)} - 2) * 9999 / 262142;
    RETURN_IF_ERROR(WriteExisting(path + "/cpu.weight", std::to_string(weight)));
    if (limits.milli_cpu != 0) {
      RETURN_IF_ERROR(
          WriteExisting(path + "/cpu.max", Quota(limits.milli_cpu) + " " + std::to_string(kPeriodMicros)));
    }
    if (limits.pids != 0) RETURN_IF_ERROR(WriteExisting(path + "/pids.max", std::to_string(limits.pids)));
    return OkStatus();
  }

  std::string root_, path_;
};

// The mount point of a v1 controller, which may share a tree with others ("cpu,cpuacct"); "" if there is
// none.
std::string FindV1(std::string_view controller) {
  auto mounts = ReadFile("/proc/self/mounts", 1 << 20);
  if (!mounts.ok()) return "";
  std::istringstream lines(*mounts);
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string source, point, type, options;
    if (!(words >> source >> point >> type >> options) || type != "cgroup") continue;
    if (("," + options + ",").find("," + std::string(controller) + ",") != std::string::npos) return point;
  }
  return "";
}

}  // namespace

Result<std::unique_ptr<CgroupTree>> CgroupTree::Open(const std::string& name) {
  if (IsCgroup2(kRoot)) {
    auto tree = std::make_unique<TreeV2>(kRoot, name);
    RETURN_IF_ERROR(tree->Prepare());
    return std::unique_ptr<CgroupTree>(std::move(tree));
  }
  std::string memory = FindV1("memory"), cpu = FindV1("cpu"), pids = FindV1("pids");
  if (memory.empty() || cpu.empty() || pids.empty()) {
    return FailedPrecondition(
        "no control groups: neither v2 at /sys/fs/cgroup nor the v1 controllers memory, cpu and pids");
  }
  auto tree = std::make_unique<TreeV1>(name, memory, cpu, pids);
  RETURN_IF_ERROR(tree->Prepare());
  return std::unique_ptr<CgroupTree>(std::move(tree));
}

Result<MemoryGroup> MemoryGroup::Open(const std::string& name, uint64_t bytes) {
  const bool v2 = IsCgroup2(kRoot);
  const std::string root = v2 ? kRoot : FindV1("memory");
  if (root.empty()) return FailedPrecondition("no control groups for memory");
  if (v2) RETURN_IF_ERROR(WriteExisting(root + "/cgroup.subtree_control", "+memory"));
  const std::string path = root + "/" + name;
  RETURN_IF_ERROR(MakeGroup(path));
  if (bytes != 0) {
    RETURN_IF_ERROR(
        WriteExisting(path + (v2 ? "/memory.max" : "/memory.limit_in_bytes"), std::to_string(bytes)));
  }
  std::vector<UniqueFd> join;
  RETURN_IF_ERROR(OpenJoin(path, &join));
  return MemoryGroup(root, path, std::move(join[0]));
}

Status MemoryGroup::Remove() { return RemoveGroup(path_); }

Status MemoryGroup::LeaveAndRemove() {
  RETURN_IF_ERROR(WriteExisting(root_ + "/cgroup.procs", "0"));
  return Remove();
}

Result<std::string> DescribeCgroups() {
  if (IsCgroup2(kRoot)) {
    auto controllers = ReadFile(std::string(kRoot) + "/cgroup.controllers", 4096);
    RETURN_IF_ERROR(controllers.status());
    while (!controllers->empty() && controllers->back() == '\n') controllers->pop_back();
    for (const char* needed : {"memory", "cpu", "pids"}) {
      if ((" " + *controllers + " ").find(std::string(" ") + needed + " ") == std::string::npos) {
        return FailedPrecondition("v2 without the controller " + std::string(needed));
      }
    }
    return "v2: " + *controllers;
  }
  std::string found = "v1:";
  for (const char* controller : {"memory", "cpu", "pids"}) {
    if (FindV1(controller).empty())
      return FailedPrecondition("v1 without the controller " + std::string(controller));
    found += std::string(" ") + controller;
  }
  return found;
}

}  // namespace lydian::os
