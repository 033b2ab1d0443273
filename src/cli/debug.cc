#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "cli/admin_client.h"
#include "cli/commands.h"
#include "cli/verbs.h"
#include "lydian/admin.pb.h"
#include "spawner/client.h"

namespace lydian::cli {
namespace {

constexpr char kDefaultPath[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

Result<Job> MakeJob(const RunOptions& options) {
  Job job;
  job.set_version(1);
  job.set_container_id(NewId("ct"));
  if (!options.rootfs.empty()) {
    char path[PATH_MAX];
    if (::realpath(options.rootfs.c_str(), path) == nullptr) return ErrnoStatus("finding " + options.rootfs);
    job.mutable_rootfs()->set_existing_root(path);
  }
  job.mutable_rootfs()->set_quota_bytes(options.disk_bytes);
  for (const std::string& arg : options.command) job.mutable_process()->add_argv(arg);
  if (options.image.empty()) {
    for (const char* variable : {kDefaultPath, "HOME=/root", "LANG=C.UTF-8", "TZ=UTC"})
      job.mutable_process()->add_env(variable);
  }
  for (const std::string& variable : options.env) {
    if (variable.find('=') == std::string::npos)
      return InvalidArgument("--env wants NAME=VALUE: " + variable);
    job.mutable_process()->add_env(variable);
  }
  job.mutable_process()->set_cwd(options.workdir.empty() && options.image.empty() ? "/root"
                                                                                  : options.workdir);
  job.mutable_limits()->set_memory_bytes(options.memory_bytes);
  job.mutable_limits()->set_milli_cpu(static_cast<uint32_t>(options.cpus * 1000));
  job.mutable_limits()->set_pids(options.pids);
  job.mutable_network()->set_mode(options.network == "none" ? Network::NONE : Network::NAT);
  job.set_hostname("lydian");
  return job;
}

void PrintPlan(const Plan& plan) {
  int number = 0;
  for (const Step& step : plan.steps())
    std::printf("%3d  %-16s %s\n", ++number, step.name().c_str(), step.detail().c_str());
}

void PrintTiming(const RunTiming& timing) {
  for (const Phase& phase : timing.phases()) {
    std::fprintf(stderr, "%-20s %9.3f ms\n", phase.name().c_str(), static_cast<double>(phase.nanos()) / 1e6);
  }
  std::fprintf(stderr, "%-20s %9.3f ms\n%-20s %9.3f ms\n", "ready to exec",
               static_cast<double>(timing.ready_nanos()) / 1e6, "exit reported",
               static_cast<double>(timing.exit_nanos()) / 1e6);
}

int ExitCodeOf(int wait_status) {
  if (WIFEXITED(wait_status)) return WEXITSTATUS(wait_status);
  std::fprintf(stderr, "lydian: killed by signal %d (%s)\n", WTERMSIG(wait_status),
               ::strsignal(WTERMSIG(wait_status)));
  return 128 + WTERMSIG(wait_status);
}

// Over the spawner's own socket: for measurements with nothing prepared.
Status DrainPools(const StatePaths& paths) {
  ASSIGN_OR_RETURN(auto client, spawner::Client::Connect(paths.spawner_socket(), {}));
  std::promise<Status> done;
  client->DrainPools([&](Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

}  // namespace

int DebugRun(const std::string& state, const RunOptions& options) {
  BlockStopSignals();
  auto job = MakeJob(options);
  if (!job.ok()) return Fail(job.status());
  auto paths = FindState(state);
  if (!paths.ok()) return Fail(paths.status());
  auto client = AdminClient::Connect(*paths, kWorkerAdmin);
  if (!client.ok()) return Fail(client.status());
  if (options.drain_pools) {
    if (Status status = DrainPools(*paths); !status.ok()) return Fail(status);
  }
  RunRequest request;
  *request.mutable_job() = std::move(*job);
  request.set_image(options.image);
  request.set_client_runtime(options.client_runtime);
  int code = -1;
  Status status = client->Stream("Run", request.SerializeAsString(), [&](const std::string& bytes) -> Status {
    RunEvent event;
    if (!event.ParseFromString(bytes)) return Internal("the worker's events can't be read");
    switch (event.kind_case()) {
      case RunEvent::kStdoutData:
        return WriteAll(1, event.stdout_data());
      case RunEvent::kStderrData:
        return WriteAll(2, event.stderr_data());
      case RunEvent::kStatus:
        code = ExitCodeOf(event.status());
        break;
      case RunEvent::kTiming:
        if (options.timing) PrintTiming(event.timing());
        break;
      case RunEvent::kPlan:
        PrintPlan(event.plan());
        break;
      case RunEvent::KIND_NOT_SET:
        break;
    }
    return OkStatus();
  });
  if (code >= 0) return code;
  if (status.code() == Code::kCancelled) return 130;
  return Fail(status.ok() ? Internal("the worker has told no exit status") : status);
}

int DebugJob(const std::string& state, const RunOptions& options) {
  auto job = MakeJob(options);
  if (!job.ok()) return Fail(job.status());
  auto paths = FindState(state);
  if (!paths.ok()) return Fail(paths.status());
  auto client = spawner::Client::Connect(paths->spawner_socket(), {});
  if (!client.ok()) return Fail(client.status());
  std::promise<Result<Plan>> promise;
  (*client)->MakePlan(std::move(*job), [&](Result<Plan> plan) { promise.set_value(std::move(plan)); });
  auto plan = promise.get_future().get();
  if (!plan.ok()) return Fail(plan.status());
  PrintPlan(*plan);
  return kExitOk;
}

}  // namespace lydian::cli
