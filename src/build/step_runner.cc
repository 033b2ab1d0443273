#include "build/step_runner.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "build/host_settings.h"
#include "build/tree_copy.h"
#include "image/stage.h"

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

}  // namespace

Result<std::vector<std::string>> StepRunner::Paths(const std::vector<std::string>& layer_ids) {
  std::vector<std::string> paths;
  for (const auto& id : layer_ids) {
    ASSIGN_OR_RETURN(image::LayerInfo info, layers_->Find(id));
    paths.push_back(info.path);
  }
  return paths;
}

Result<RunResult> StepRunner::Run(const StepCommand& command, const LogSink& log, CancelToken* cancel) {
  ASSIGN_OR_RETURN(auto pin, layers_->Pin(command.layer_ids));
  ASSIGN_OR_RETURN(auto lowers, Paths(command.layer_ids));
  Owner owner;
  if (!command.user.empty()) {
    ASSIGN_OR_RETURN(OverlayView view, OverlayView::ReadOnly(lowers));
    ASSIGN_OR_RETURN(owner, ResolveOwner(view, command.user));
  }
  HostSettings host = FindHostSettings();
  // What the image says about an index or a proxy wins over the host; the host's authorities are needed in
  // any case.
  std::map<std::string, std::string> env = {{"HOME", owner.home}, {"HOSTNAME", "build"}};
  for (const auto& [key, value] : host.env) env[key] = value;
  Assign(env, command.env);
  for (const auto& [key, value] : command.secrets) env[key] = value;
  std::string bundle = std::string(kBorrowedDir) + "/ca.crt";
  for (const auto& [key, value] : host.env)
    if (value == bundle) env[key] = value;

  Job job;
  for (const auto& path : lowers) job.mutable_rootfs()->add_lowers(path);
  job.mutable_rootfs()->set_writable_dir(command.writable_dir);
  for (const auto& mount : host.mounts) *job.add_mounts() = mount;
  for (const auto& mount : command.mounts) *job.add_mounts() = mount;
  Process* process = job.mutable_process();
  for (const auto& word : command.argv) process->add_argv(word);
  if (!command.script.empty()) {
    RETURN_IF_ERROR(Lend(job, command.writable_dir, "script", command.script, 0755));
    process->clear_argv();
    process->add_argv(std::string(kBorrowedDir) + "/script");
  }
  // `apt-get update` without a network ends well by default, and the empty lists would stay in a layer for
  // ever.
  RETURN_IF_ERROR(Lend(job, command.writable_dir, "apt.conf", "APT::Update::Error-Mode \"any\";\n", 0644));
  env.emplace("APT_CONFIG", std::string(kBorrowedDir) + "/apt.conf");
  for (const auto& [key, value] : env) process->add_env(key + "=" + value);
  process->set_cwd(command.workdir);
  process->set_uid(owner.uid);
  process->set_gid(owner.gid);
  job.set_hostname("build");
  job.mutable_network()->set_mode(command.no_network ? Network::NONE : Network::NAT);
  job.mutable_network()->set_build(true);
  job.mutable_limits()->set_memory_bytes(command.limits.memory_limit_bytes());
  job.mutable_limits()->set_memory_request_bytes(command.limits.memory_request_bytes());
  job.mutable_limits()->set_milli_cpu(command.limits.milli_cpu_limit());
  // A build's weight is a whole core's: people wait for it.
  job.mutable_limits()->set_milli_cpu_request(
      command.limits.milli_cpu_request() != 0 ? command.limits.milli_cpu_request() : 1000);
  job.mutable_limits()->set_pids(command.limits.pids());
  ASSIGN_OR_RETURN(RunResult result, containers_->Run(std::move(job), log, cancel));
  for (const char* name : {"/script", "/apt.conf"}) ::unlink((command.writable_dir + name).c_str());
  RETURN_IF_ERROR(CleanUpper(lowers, command.writable_dir));
  return result;
}

Status CleanUpper(const std::vector<std::string>& lowers, const std::string& transaction_dir) {
  std::string upper = transaction_dir + "/upper";
  RETURN_IF_ERROR(RemoveTree(upper + kBorrowedDir));
  ASSIGN_OR_RETURN(OverlayView below, OverlayView::ReadOnly(lowers));
  for (const char* path : kMountPoints) {
    struct stat st;
    if (::lstat((upper + path).c_str(), &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0 &&
        !below.Stat(path).ok())
      ::unlink((upper + path).c_str());
  }
  for (const char* path : kFolders) {
    struct stat st;
    if (::lstat((upper + path).c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) continue;
    auto old = below.Stat(path);
    // A folder that says nothing new. One that is not empty stays: rmdir refuses it.
    bool same =
        old.ok() && old->st_mode == st.st_mode && old->st_uid == st.st_uid && old->st_gid == st.st_gid;
    if (same || (!old.ok() && std::string(path) != "/root" && std::string(path) != "/etc"))
      ::rmdir((upper + path).c_str());
  }
  return OkStatus();
}

bool EmptyUpper(const std::string& transaction_dir) {
  std::error_code error;
  return std::filesystem::is_empty(transaction_dir + "/upper", error) && !error;
}

}  // namespace lydian::build
