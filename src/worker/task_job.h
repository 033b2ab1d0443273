// From a TaskSpec to the job of its container: environment, command, limits, mounts. Pure but for JobPython,
// which looks into layers. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lydian/job.pb.h"
#include "lydian/worker.pb.h"

namespace lydian::worker {

using EnvMap = std::map<std::string, std::string>;

inline constexpr char kArgumentsPath[] = "/__modal/.container-arguments/data.bin";
inline constexpr char kLauncherPath[] = "/__modal/.bin/launcher.py";
inline constexpr char kGuestSocket[] = "/run/modal.sock";

// What the process of any task of this image is executed with: defaults, the image's ENV, PYTHONPATH,
// MODAL_IS_REMOTE.
EnvMap BaseEnv(const ImageSpec& image);
// The whole environment of the task's process.
EnvMap TaskEnv(const TaskSpec& spec);
// Whether the environment must be there at exec (docs/formats/launcher.md).
bool NeedsPlainStart(const TaskSpec& spec);

struct TaskJob {
  Job job;
  bool plain = false;
  std::string identity;  // frame for the control fd; empty when plain
};

struct TaskJobOptions {
  std::string container_id;
  std::vector<std::string> lowers;  // bottom first
  std::string arguments_file;       // on the host
  std::string python;               // "python" or "python3"
};
TaskJob MakeTaskJob(const TaskSpec& spec, const TaskJobOptions& options);

// "python" if a folder of the image's PATH holds one, else "python3". `has`: whether the image has a file or
// link of that path.
std::string FindPython(const ImageSpec& image, const std::function<bool(const std::string&)>& has);

// Of Job.owner_data.
std::string TaskOwner(const std::string& task_id);       // "task:ta-..."
std::string OwnerTaskId(const std::string& owner_data);  // "" if it is not a task's

// The client's dependencies are mounted for builders after 2024.10 (older images carry them).
bool NeedsDependencies(const std::string& builder_version);

}  // namespace lydian::worker
