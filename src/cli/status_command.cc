#include <unistd.h>

#include <cstdio>
#include <map>

#include "cli/admin_client.h"
#include "cli/commands.h"
#include "cli/lock_file.h"
#include "cli/verbs.h"
#include "lydian/admin.pb.h"

namespace lydian::cli {
namespace {

constexpr Millis kTimeout(2000);

void AddProcesses(const StatePaths& paths, StatusResponse* status) {
  for (const char* role : {"up", "control", "worker", "spawner"}) {
    auto holder = ReadHolder(paths.lock(role));
    if (!holder.ok() || !*holder) continue;
    ProcessInfo* process = status->add_processes();
    process->set_role(role);
    process->set_pid((*holder)->pid);
    if (!(*holder)->listen.empty()) status->add_listeners((*holder)->listen);
  }
}

Result<StatusResponse> Ask(const StatePaths& paths, const char* service) {
  ASSIGN_OR_RETURN(AdminClient client, AdminClient::Connect(paths, service));
  return client.Call<StatusRequest, StatusResponse>("Status", {}, kTimeout);
}

// control knows what tasks are for, the worker where they run.
void MergeTasks(const StatusResponse& worker, StatusResponse* all) {
  std::map<std::string, TaskInfo*> known;
  for (TaskInfo& task : *all->mutable_tasks()) known[task.task_id()] = &task;
  for (const TaskInfo& task : worker.tasks()) {
    auto found = known.find(task.task_id());
    if (found == known.end()) {
      *all->add_tasks() = task;
      continue;
    }
    TaskInfo* mine = found->second;
    if (!task.container_id().empty()) mine->set_container_id(task.container_id());
    if (task.pid() != 0) mine->set_pid(task.pid());
    if (!task.ip().empty()) mine->set_ip(task.ip());
    if (mine->state().empty()) mine->set_state(task.state());
    if (mine->started_at() == 0) mine->set_started_at(task.started_at());
  }
}

StatusResponse Collect(const StatePaths& paths, std::string* notes) {
  StatusResponse all;
  if (auto control = Ask(paths, kControlAdmin); control.ok()) {
    all = std::move(*control);
  } else {
    *notes += control.status().message() + "\n";
  }
  all.clear_processes();
  google::protobuf::RepeatedPtrField<std::string> listeners;
  listeners.Swap(all.mutable_listeners());
  AddProcesses(paths, &all);
  // The others are sockets of our own; the address that people know comes first.
  for (const std::string& listener : listeners) {
    if (listener.starts_with("unix")) all.add_listeners(listener);
  }
  if (auto worker = Ask(paths, kWorkerAdmin); worker.ok()) {
    MergeTasks(*worker, &all);
    if (all.images().empty()) *all.mutable_images() = worker->images();
    all.set_disk_low(all.disk_low() || worker->disk_low());
    if (all.workers().empty()) *all.mutable_workers() = worker->workers();
  } else {
    *notes += worker.status().message() + "\n";
  }
  if (all.version().empty()) all.set_version(LYDIAN_VERSION);
  return all;
}

void PrintTable(const StatusResponse& status) {
  std::printf("Lydian %s\n\nPROCESS    PID\n", status.version().c_str());
  for (const ProcessInfo& process : status.processes())
    std::printf("%-10s %d\n", process.role().c_str(), process.pid());
  for (const std::string& listener : status.listeners()) std::printf("listens on %s\n", listener.c_str());
  if (status.disk_low()) std::printf("The disk is nearly full: nothing new is started.\n");
  if (!status.apps().empty()) std::printf("\n%-28s %-24s %-12s %s\n", "APP", "NAME", "STATE", "TASKS");
  for (const AppInfo& app : status.apps()) {
    std::printf("%-28s %-24s %-12s %u\n", app.app_id().c_str(), app.name().c_str(), app.state().c_str(),
                app.tasks());
  }
  if (!status.tasks().empty())
    std::printf("\n%-32s %-20s %-10s %-8s %s\n", "TASK", "FUNCTION", "STATE", "PID", "CONTAINER");
  for (const TaskInfo& task : status.tasks()) {
    std::printf("%-32s %-20s %-10s %-8d %s\n", task.task_id().c_str(), task.function_name().c_str(),
                task.state().c_str(), task.pid(), task.container_id().c_str());
  }
  if (!status.queues().empty())
    std::printf("\n%-28s %-20s %-8s %s\n", "QUEUE", "FUNCTION", "WAITING", "RUNNING");
  for (const QueueInfo& queue : status.queues()) {
    std::printf("%-28s %-20s %-8u %u\n", queue.function_id().c_str(), queue.function_name().c_str(),
                queue.queued(), queue.running());
  }
  if (!status.images().empty()) std::printf("\n%-28s %-12s %s\n", "IMAGE", "STATE", "LAYERS");
  for (const ImageInfo& image : status.images()) {
    std::printf("%-28s %-12s %u\n", image.image_id().c_str(), image.state().c_str(), image.layers());
  }
}

}  // namespace

int ShowStatus(const std::string& state, bool json) {
  auto paths = FindState(state);
  if (!paths.ok()) return Fail(paths.status());
  if (::access(paths->worker_dir().c_str(), X_OK) != 0 && errno == EACCES) {
    return Fail(PermissionDenied("`lydian status` needs to be run as root"));
  }
  std::string notes;
  StatusResponse status = Collect(*paths, &notes);
  if (json) {
    if (const int failed = PrintJson(status); failed != kExitOk) return failed;
  } else if (!status.processes().empty()) {
    PrintTable(status);
  }
  if (status.processes().empty()) return Fail(Unavailable("Lydian is not up: start it with `lydian up`"));
  if (status.processes(0).role() != "up")
    notes += "up does not run, and nobody restarts the others if they die: `lydian up` takes over\n";
  if (!notes.empty()) std::fprintf(stderr, "%s", notes.c_str());
  return kExitOk;
}

}  // namespace lydian::cli
