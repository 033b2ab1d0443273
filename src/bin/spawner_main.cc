#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "bin/build_destinations.h"
#include "bin/daemons.h"
#include "runtime/runtime.h"
#include "spawner/server.h"

namespace lydian::bin {
namespace {

Status Serve(const DaemonArgs& args) {
  runtime::RuntimeOptions options;
  options.state_dir = args.state_dir;
  options.instance = args.instance;
  options.init_path = args.init_path;
  options.address_range = args.address_range;
  options.memory_reserve_bytes = args.memory_reserve_bytes;
  options.disk_bytes = args.disk_bytes;
  options.pids = args.pids;
  options.denied_networks = args.denied_networks;
  options.deny_private = args.deny_private;
  options.build_destinations = BuildDestinations();
  ASSIGN_OR_RETURN(auto runtime, runtime::Runtime::Create(std::move(options)));
  if (Status status = runtime->CleanLeftovers(); !status.ok()) {
    LOG_WARN("what an earlier spawner left was not all removed", {{"error", status}});
  }
  spawner::ServerOptions server_options;
  ASSIGN_OR_RETURN(server_options.listener, Duplicate(args.fd("spawner")));
  server_options.instance = args.instance;
  server_options.peer_uid = ::geteuid();
  ASSIGN_OR_RETURN(auto server, spawner::Server::Create(std::move(server_options), std::move(runtime)));
  args.NotifyReady();
  LOG_INFO("serving", {{"instance", args.instance}});
  return server->Run();
}

}  // namespace

int SpawnerMain(const DaemonArgs& args) {
  Status status = Serve(args);
  if (!status.ok()) LOG_ERROR("the spawner ends", {{"error", status}});
  return status.ok() ? 0 : 1;
}

}  // namespace lydian::bin
