#include "build/step_runner.h"

#include <sys/stat.h>

#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"
#include "build/stage_steps.h"
#include "os/loop.h"

namespace lydian::build {
namespace {

// Files and folders that a container is given, where the image may have none to mount them on.
constexpr const char* kMountPoints[] = {"/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/etc/mtab"};
constexpr const char* kFolders[] = {"/run", "/etc", "/dev", "/proc", "/sys", "/tmp", "/root"};

void Assign(std::map<std::string, std::string>& env, const std::vector<std::string>& entries) {
  for (const auto& entry : entries) {
    size_t equals = entry.find('=');
    if (equals != std::string::npos) env[entry.substr(0, equals)] = entry.substr(equals + 1);
  }
}

// A file of ours, for this step alone, as kBorrowedDir/<name>.
Status Lend(Job& job, const std::string& dir, const std::string& name, std::string_view content, int mode) {
  RETURN_IF_ERROR(WriteFileAtomic(dir + "/" + name, content, mode));
  Mount* mount = job.add_mounts();
  mount->set_kind(Mount::BIND);
  mount->set_source(dir + "/" + name);
  mount->set_target(std::string(kBorrowedDir) + "/" + name);
  mount->set_read_only(true);
  mount->set_idmap(true);
  return OkStatus();
}

// What a step wrote, until it is copied or thrown away: nothing of it is worth a write to the disk.
class Written {
 public:
  Written() = default;
  ~Written() {
    if (layer.valid()) os::AbandonWrites(layer.get());
  }
  Written(const Written&) = delete;
  Written& operator=(const Written&) = delete;

  UniqueFd layer;
};

}  // namespace

HostSettings StepRunner::Settings(const StepCommand& command) const {
  const bool all = options_.lend_host_settings || !command.own_dir.empty();
  return FindHostSettings(all ? Lending::kAll : Lending::kAuthorities);
}

Status StepRunner::SetLimits(const StepCommand& command, Job& job) const {
  Limits* limits = job.mutable_limits();
  const bool ours = !command.own_dir.empty();
  const uint64_t asked = command.limits.memory_limit_bytes();
  limits->set_memory_bytes(asked != 0 || ours ? asked : options_.memory_bytes);
  limits->set_memory_request_bytes(command.limits.memory_request_bytes());
  limits->set_milli_cpu(command.limits.milli_cpu_limit());
  // A build's weight is a whole core's: people wait for it.
  const uint32_t weight = command.limits.milli_cpu_request();
  limits->set_milli_cpu_request(weight != 0 ? weight : 1000);
  limits->set_pids(command.limits.pids());
  return OkStatus();
}

Result<Job> StepRunner::MakeJob(const StepCommand& command, const std::string& lent_dir,
                                CancelToken* cancel) {
  StageOwner owner;
  owner.set_home("/root");
  if (!command.user.empty()) {
    ASSIGN_OR_RETURN(owner, FindOwner(*stage_, command.layer_ids, command.user, cancel));
  }
  const HostSettings host = Settings(command);
  // What the image says about an index or a proxy wins over the host; the host's authorities are needed in
  // any case.
  std::map<std::string, std::string> env = {{"HOME", owner.home()}, {"HOSTNAME", "build"}};
  for (const auto& [key, value] : host.env) env[key] = value;
  Assign(env, command.env);
  for (const auto& [key, value] : command.secrets) env[key] = value;
  const std::string bundle = std::string(kBorrowedDir) + "/ca.crt";
  for (const auto& [key, value] : host.env)
    if (value == bundle) env[key] = value;

  Job job;
  for (const auto& id : command.layer_ids) {
    ASSIGN_OR_RETURN(image::LayerInfo info, layers_->Find(id));
    job.mutable_rootfs()->add_lowers(info.path);
  }
  job.mutable_rootfs()->set_writable_dir(command.own_dir);
  job.mutable_rootfs()->set_hand_over(command.transaction != nullptr);
  job.mutable_rootfs()->set_quota_bytes(command.limits.disk_bytes());
  for (const auto& mount : host.mounts) *job.add_mounts() = mount;
  for (const auto& mount : command.mounts) *job.add_mounts() = mount;
  Process* process = job.mutable_process();
  for (const auto& word : command.argv) process->add_argv(word);
  if (!command.script.empty()) {
    RETURN_IF_ERROR(Lend(job, lent_dir, "script", command.script, 0755));
    process->clear_argv();
    process->add_argv(std::string(kBorrowedDir) + "/script");
  }
  // `apt-get update` without a network ends well by default, and the empty lists would stay in a layer for
  // ever.
  RETURN_IF_ERROR(Lend(job, lent_dir, "apt.conf", "APT::Update::Error-Mode \"any\";\n", 0644));
  env.emplace("APT_CONFIG", std::string(kBorrowedDir) + "/apt.conf");
  for (const auto& [key, value] : env) process->add_env(key + "=" + value);
  process->set_cwd(command.workdir);
  process->set_uid(owner.uid());
  process->set_gid(owner.gid());
  job.set_hostname("build");
  job.mutable_network()->set_mode(command.no_network ? Network::NONE : Network::NAT);
  job.mutable_network()->set_build(true);
  RETURN_IF_ERROR(SetLimits(command, job));
  return job;
}

Result<RunResult> StepRunner::Run(const StepCommand& command, const LogSink& log, CancelToken* cancel) {
  ASSIGN_OR_RETURN(auto pin, layers_->Pin(command.layer_ids));
  const std::string lent_dir = options_.scratch_dir + "/lent-" + RandomHex(8);
  RETURN_IF_ERROR(MakeDirs(lent_dir, 0755));
  std::shared_ptr<void> remove(nullptr, [lent_dir](void*) { (void)RemoveTree(lent_dir); });
  ASSIGN_OR_RETURN(Job job, MakeJob(command, lent_dir, cancel));
  Written written;
  ASSIGN_OR_RETURN(RunResult result, containers_->Run(std::move(job), log, cancel, nullptr, &written.layer));
  if (!command.own_dir.empty()) {
    ASSIGN_OR_RETURN(image::Tree upper, image::Tree::Open(command.own_dir + "/upper"));
    RETURN_IF_ERROR(CleanUpper(*layers_, command.layer_ids, upper));
  }
  // Nothing of a step that failed is kept.
  if (!written.layer.valid() || !result.ok()) return result;
  auto check = [cancel] { return cancel ? cancel->Check() : OkStatus(); };
  RETURN_IF_ERROR(command.transaction->Take(written.layer.get(), check).With("keeping what the step wrote"));
  ASSIGN_OR_RETURN(image::Tree upper, command.transaction->Upper());
  RETURN_IF_ERROR(CleanUpper(*layers_, command.layer_ids, upper));
  return result;
}

Status CleanUpper(image::LayerStore& layers, const std::vector<std::string>& below,
                  const image::Tree& upper) {
  RETURN_IF_ERROR(upper.Remove(kBorrowedDir));
  for (const char* path : kMountPoints) {
    auto info = upper.Stat(path);
    if (info.ok() && S_ISREG(info->st_mode) && info->st_size == 0 && !layers.Stat(below, path).ok())
      RETURN_IF_ERROR(upper.Remove(path));
  }
  for (const char* path : kFolders) {
    auto info = upper.Stat(path);
    if (!info.ok() || !S_ISDIR(info->st_mode)) continue;
    auto old = layers.Stat(below, path);
    // A folder that says nothing new. One that is not empty stays.
    const bool same = old.ok() && old->st_mode == info->st_mode && old->st_uid == info->st_uid &&
                      old->st_gid == info->st_gid;
    if (same || (!old.ok() && std::string(path) != "/root" && std::string(path) != "/etc"))
      upper.RemoveEmptyFolder(path);
  }
  return OkStatus();
}

Result<bool> EmptyUpper(const image::LayerTransaction& transaction) {
  ASSIGN_OR_RETURN(image::Tree upper, transaction.Upper());
  return upper.Empty();
}

}  // namespace lydian::build
