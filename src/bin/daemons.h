// What a daemon (control, worker, spawner) is started with, and their main functions.
//
// RunDaemon has done for each, before its main runs: taken the lock of its role, named the process, set
// close-on-exec on its sockets, blocked SIGTERM and SIGINT (for WaitForStop), ignored SIGPIPE, and sent
// logging to stderr, which is <state>/log/<role>.log.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lydian::bin {

struct DaemonArgs {
  std::string role;
  // Its own folder. control: a fixed path at which <state>/control is bound in its mount namespace (it may
  // not walk there from the root). worker and spawner: <state>/worker.
  std::string state_dir;
  std::string instance;        // "ly3f2a1b"
  std::string url;             // what clients use: "http://127.0.0.1:7070"
  std::string link_target;     // worker: where control is, "unix:/.../link.sock"
  std::string spawner_socket;  // worker
  std::string init_path;       // worker and spawner: the static lydian-init
  std::string address_range;   // empty: one that is free is chosen
  uint64_t memory_reserve_bytes = 0;
  uint64_t disk_bytes = uint64_t{20} << 30;
  uint32_t pids = 4096;
  bool lend_host_settings = false;  // worker: these three are the builder's
  uint32_t step_timeout_s = 3600;
  uint32_t build_timeout_s = 4 * 3600;
  std::vector<std::string> denied_networks;
  bool deny_private = false;
  uint64_t queued_inputs = 8'000'000;  // control: unfinished inputs of all, and the bytes of their arguments
  uint64_t queued_bytes = uint64_t{32} << 30;
  uint64_t list_stopped_s = 3600;                // control: how long a list of apps shows a stopped one
  uint64_t app_log_bytes = uint64_t{256} << 20;  // control: of one app or build, and of all
  uint64_t log_bytes = uint64_t{4} << 30;
  uint32_t log_age_s = 30 * 86'400;
  uint32_t keep_files_s = 86'400;  // control: what nobody refers to any more (control/collector.h)
  uint32_t keep_images_s = 14 * 86'400;
  uint32_t keep_apps_s = 30 * 86'400;

  // Inherited sockets that listen. control: "api", "link", "admin". worker: "admin". spawner: "spawner", and
  // the others' under other names, only kept. Never to be closed: a later `up` takes them from here.
  std::map<std::string, int> fds;
  int fd(const std::string& name) const;  // -1 if there is none

  // Once, when the daemon serves: `up` waits for it.
  void NotifyReady() const;
  // Until SIGTERM or SIGINT.
  void WaitForStop() const;
};

// Parts of the memory that the daemons' control group has (runtime::DaemonMemory), in bytes: together with
// the worker's for calls less than all of it.
struct MemoryShares {
  uint64_t calls = 0;    // of control and of the worker each: others' bytes, as calls hold them
  uint64_t queued = 0;   // control's three: inputs that wait in memory,
  uint64_t chunks = 0;   // generators' data,
  uint64_t results = 0;  // results
};
MemoryShares SharesOfMemory(const DaemonArgs& args);

// Each returns the process's exit code.
int ControlMain(const DaemonArgs& args);
int WorkerMain(const DaemonArgs& args);
int SpawnerMain(const DaemonArgs& args);

// `lydian internal ROLE ...`: argv as LaunchDaemon (launch.h) has made it, from the role on.
int RunDaemon(int argc, char** argv);

}  // namespace lydian::bin
