#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "base/log.h"
#include "bin/daemons.h"
#include "runtime/plan.h"
#include "worker/worker.h"

namespace lydian::bin {
namespace {

constexpr char kUnixPrefix[] = "unix:";

// Downloads, wheels and base images, shared by every state on this machine; LYDIAN_CACHE chooses another
// folder, "" none.
std::string CacheDir() {
  const char* chosen = std::getenv("LYDIAN_CACHE");
  return chosen != nullptr ? chosen : "/var/cache/lydian";
}

Status Serve(const DaemonArgs& args) {
  worker::WorkerOptions options;
  options.state_dir = args.state_dir;
  options.instance = args.instance;
  if (!args.link_target.starts_with(kUnixPrefix)) {
    return Unimplemented("a worker can only join a control on its own machine yet, not " + args.link_target);
  }
  options.control_socket = args.link_target.substr(sizeof kUnixPrefix - 1);
  options.spawner_socket = args.spawner_socket;
  options.cache_dir = CacheDir();
  // As the runtime has it, so that no more is promised than containers can have.
  options.memory_reserve_bytes = args.memory_reserve_bytes != 0
                                     ? args.memory_reserve_bytes
                                     : runtime::DefaultMemoryReserve(runtime::TotalMemory());
  options.lend_host_settings = args.lend_host_settings;
  options.step_timeout_s = args.step_timeout_s;
  options.build_timeout_s = args.build_timeout_s;
  UniqueFd admin;
  if (args.fd("admin") >= 0) {
    ASSIGN_OR_RETURN(admin, Duplicate(args.fd("admin")));
  }
  ASSIGN_OR_RETURN(auto worker, worker::Worker::Start(std::move(options), std::move(admin)));
  args.NotifyReady();
  LOG_INFO("serving", {{"instance", args.instance}});
  args.WaitForStop();
  worker->Stop();
  return OkStatus();
}

}  // namespace

int WorkerMain(const DaemonArgs& args) {
  Status status = Serve(args);
  if (!status.ok()) LOG_ERROR("the worker ends", {{"error", status}});
  return status.ok() ? 0 : 1;
}

}  // namespace lydian::bin
