#include "worker/task_job.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

namespace lydian::worker {
namespace {

constexpr char kDefaultPath[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

void ApplyImageEnv(const ImageConfig& config, EnvMap* env) {
  for (const std::string& entry : config.env()) {
    const size_t equals = entry.find('=');
    if (equals == std::string::npos || equals == 0) continue;
    (*env)[entry.substr(0, equals)] = entry.substr(equals + 1);
  }
}

void SetPythonPath(EnvMap* env) {
  std::string& path = (*env)["PYTHONPATH"];
  path = path.empty() ? "/root:/pkg" : "/root:/pkg:" + path;
}

// Libraries that start a thread a core would use the machine's number, not what was asked for.
void SetThreadCounts(const TaskLimits& limits, EnvMap* env) {
  const uint32_t milli = std::max(limits.milli_cpu_request(), limits.milli_cpu_limit());
  if (milli == 0 || limits.keep_thread_counts()) return;
  const std::string count = std::to_string(std::max<uint32_t>(1, (milli + 999) / 1000));
  for (const char* name : {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"})
    env->emplace(name, count);
}

EnvMap DefaultEnv() {
  return {{"PATH", kDefaultPath}, {"HOME", "/root"}, {"LANG", "C.UTF-8"}, {"TZ", "UTC"}};
}

std::string Cwd(const ImageSpec& image) {
  return image.config().workdir().empty() ? "/root" : image.config().workdir();
}

std::string IdentityFrame(const EnvMap& env, const std::string& cwd) {
  const nlohmann::json identity = {
      {"version", 1}, {"env", env}, {"cwd", cwd}, {"argv", nlohmann::json::array()}};
  // A value that isn't UTF-8 can't come by protobuf strings; "replace" keeps dump from throwing all the same.
  const std::string text = identity.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const auto size = static_cast<uint32_t>(text.size());
  std::string frame;
  for (int shift = 0; shift < 32; shift += 8) frame.push_back(static_cast<char>(size >> shift & 0xFF));
  return frame + text;
}

}  // namespace

EnvMap BaseEnv(const ImageSpec& image) {
  EnvMap env = DefaultEnv();
  ApplyImageEnv(image.config(), &env);
  SetPythonPath(&env);
  env["MODAL_IS_REMOTE"] = "1";
  return env;
}

EnvMap TaskEnv(const TaskSpec& spec) {
  EnvMap env = DefaultEnv();
  ApplyImageEnv(spec.image().config(), &env);
  for (const auto& [name, value] : spec.env()) {
    if (!name.empty() && name.find('=') == std::string::npos && name.find('\0') == std::string::npos &&
        value.find('\0') == std::string::npos) {
      env[name] = value;
    }
  }
  SetThreadCounts(spec.limits(), &env);
  SetPythonPath(&env);
  env["MODAL_SERVER_URL"] = std::string("unix://localhost") + kGuestSocket;
  env["MODAL_CONTAINER_ARGUMENTS_PATH"] = kArgumentsPath;
  env["MODAL_IS_REMOTE"] = "1";
  env["MODAL_TASK_ID"] = spec.task_id();
  env["MODAL_IMAGE_ID"] = spec.image().image_id();
  env["MODAL_ENVIRONMENT"] = spec.environment_name();
  env["MODAL_DISABLE_API_PROXY"] = "1";
  env["MODAL_CLOUD_PROVIDER"] = "CLOUD_PROVIDER_UNSPECIFIED";
  env["MODAL_REGION"] = "local";
  return env;
}

bool NeedsPlainStart(const TaskSpec& spec) {
  static constexpr std::array<std::string_view, 5> kNames = {"PATH", "HOME", "LANG", "LANGUAGE", "TZ"};
  static constexpr std::array<std::string_view, 12> kPrefixes = {
      "LD_",      "LC_",        "PYTHON", "MODAL_",      "MALLOC_",   "GLIBC_", "PROTOCOL_BUFFERS_",
      "AIOHTTP_", "MULTIDICT_", "YARL_",  "FROZENLIST_", "PROPCACHE_"};
  if (spec.image().config().entrypoint_size() > 0) return true;
  for (const auto& [name, value] : spec.env()) {
    if (std::find(kNames.begin(), kNames.end(), name) != kNames.end()) return true;
    for (std::string_view prefix : kPrefixes) {
      if (name.starts_with(prefix)) return true;
    }
  }
  return false;
}

TaskJob MakeTaskJob(const TaskSpec& spec, const TaskJobOptions& options) {
  TaskJob made;
  made.plain = NeedsPlainStart(spec);
  const EnvMap task_env = TaskEnv(spec);
  const std::string cwd = Cwd(spec.image());

  Job& job = made.job;
  job.set_version(1);
  job.set_container_id(options.container_id);
  for (const std::string& lower : options.lowers) job.mutable_rootfs()->add_lowers(lower);
  job.mutable_rootfs()->set_hand_over(spec.commit_layer());
  job.mutable_rootfs()->set_quota_bytes(spec.limits().disk_bytes());
  Mount* arguments = job.add_mounts();
  arguments->set_kind(Mount::BIND);
  arguments->set_source(options.arguments_file);
  arguments->set_target(kArgumentsPath);
  arguments->set_read_only(true);

  Process* process = job.mutable_process();
  process->set_cwd(cwd);
  process->set_stdio(Process::PIPES);
  process->set_control_fd(!made.plain);
  for (const std::string& word : spec.image().config().entrypoint()) process->add_argv(word);
  for (const char* word : {options.python.c_str(), "-u", "-R"}) process->add_argv(word);
  if (made.plain) {
    process->add_argv("-m");
    process->add_argv("modal._container_entrypoint");
  } else {
    process->add_argv(kLauncherPath);
    made.identity = IdentityFrame(task_env, cwd);
  }
  for (const auto& [name, value] : made.plain ? task_env : BaseEnv(spec.image()))
    process->add_env(name + "=" + value);

  Limits* limits = job.mutable_limits();
  limits->set_memory_bytes(spec.limits().memory_limit_bytes());
  limits->set_memory_request_bytes(spec.limits().memory_request_bytes());
  limits->set_milli_cpu(spec.limits().milli_cpu_limit());
  limits->set_milli_cpu_request(spec.limits().milli_cpu_request());
  limits->set_pids(spec.limits().pids());

  job.set_hostname("modal");
  job.set_api_socket(true);
  job.set_http_listener(true);
  job.set_owner_data(TaskOwner(spec.task_id()));
  return made;
}

std::string FindPython(const ImageSpec& image, const std::function<bool(const std::string&)>& has) {
  EnvMap env = DefaultEnv();
  ApplyImageEnv(image.config(), &env);
  const std::string& path = env["PATH"];
  for (size_t from = 0; from <= path.size();) {
    size_t to = path.find(':', from);
    if (to == std::string::npos) to = path.size();
    const std::string folder = path.substr(from, to - from);
    from = to + 1;
    if (folder.empty() || folder[0] != '/' || folder.find("..") != std::string::npos) continue;
    if (has(folder + "/python")) return "python";
  }
  return "python3";
}

std::string TaskOwner(const std::string& task_id) { return "task:" + task_id; }
std::string OwnerTaskId(const std::string& owner_data) {
  return owner_data.starts_with("task:") ? owner_data.substr(5) : std::string();
}

bool NeedsDependencies(const std::string& builder_version) { return builder_version > "2024.10"; }

}  // namespace lydian::worker
