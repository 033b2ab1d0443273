// From a Job to a running container. Lives in the spawner: single-threaded, never blocks for long, no RPC, no
// images. Plan, then execute: MakePlan says what Start is going to do. A failure names the step and the errno
// and leaves nothing behind. Not thread-safe. docs/formats/job.md.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "lydian/job.pb.h"

namespace lydian::runtime {

struct RuntimeOptions {
  std::string state_dir;  // <state>/worker
  std::string instance;   // "ly3f2a1b"
  std::string init_path;  // the static lydian-init
  std::string address_range =
      "10.77.0.0/16";  // of this instance's bridge; a range that is taken is refused by name
  uint64_t memory_reserve_bytes =
      0;  // what containers together never touch; 0 = a default from the machine's size
  uint64_t disk_bytes = uint64_t{20} << 30;
  uint32_t pids = 4096;
  uint32_t network_pool = 4;                        // ready {user, network} namespace pairs
  uint32_t quota_pool = 4;                          // ready writable layers
  uint64_t disk_reserve_bytes = uint64_t{2} << 30;  // below it, starts are refused with "no space left"
  std::vector<std::string> denied_networks;         // IPv4, as in 10.1.0.0/16: reached by no container
  bool deny_private = false;                        // nor 10/8, 172.16/12, 192.168/16, 100.64/10, 198.18/15
  // "10.1.2.3:3128": what containers of builds (Network.build) reach all the same, by TCP: an index or proxy
  // that the host's package settings name.
  std::vector<std::string> build_destinations;
};

// A process that runs in a container, as its parent sees it.
struct Process {
  int pid = 0;  // in the host's pid namespace
  UniqueFd pidfd;
  std::map<std::string, UniqueFd> fds;  // our ends: "stdin", "stdout", "stderr", "control"
};

struct Container {
  Job job;
  int init_pid = 0;
  UniqueFd init_pidfd;
  Process main;
  UniqueFd api_listener, http_listener, netns;
  UniqueFd writable;  // of RootFs.hand_over
  std::string upper, ip;
  std::vector<Phase> phases;
  struct Held;  // namespaces, cgroup, network pair, quota image: freed by Remove
  std::shared_ptr<Held> held;
};

struct MemoryUse {
  bool oom_killed = false;
  uint64_t peak_bytes = 0, limit_bytes = 0;
};

// A failed step for the wire: Status plus the step's name.
struct StepError {
  std::string step;
  Status status;
};

class Runtime {
 public:
  static Result<std::unique_ptr<Runtime>> Create(RuntimeOptions options);
  virtual ~Runtime() = default;

  virtual Result<Plan> MakePlan(const Job& job) = 0;
  // `stdio`: three fds for Stdio INHERIT, else empty. On failure `error->step` says where.
  virtual Result<std::unique_ptr<Container>> Start(const Job& job, std::vector<UniqueFd> stdio,
                                                   StepError* error) = 0;
  // A further process, cloned in from outside.
  virtual Result<Process> Exec(Container& container, const lydian::Process& process,
                               std::vector<UniqueFd> stdio, StepError* error) = 0;
  virtual Status KillAll(Container& container) = 0;
  virtual MemoryUse Memory(Container& container) = 0;
  // After its main process has ended and was reaped: kills what is left, waits for init (bounded), frees
  // everything.
  virtual Status Remove(std::unique_ptr<Container> container) = 0;

  // One unit of pool filling, some milliseconds at most; false when the pools are full. For the loop's idle
  // time.
  virtual bool Refill() = 0;
  virtual void DrainPools() = 0;
  // To be watched for input, -1 = nothing: somebody changed what keeps containers apart. OnEvent looks, and
  // mends it.
  virtual int event_fd() const { return -1; }
  virtual void OnEvent() {}
  // At start: removes cgroups, veths, mounts and folders of containers that no longer run (a spawner that was
  // killed).
  virtual Status CleanLeftovers() = 0;
};

// Bridge, firewall table and control groups of an instance that does not run (any more); puts IPv4 forwarding
// back if the instance turned it on. For removing Lydian from a machine; a Runtime that ends without
// containers does the first part itself.
Status RemoveInstance(const RuntimeOptions& options);

// What `lydian doctor` and tests ask: each kernel feature or right, whether it is here, what it is for, what
// is used instead.
struct Feature {
  std::string name, what_for, found, instead;
  bool ok = false, required = false;
};
std::vector<Feature> ProbeFeatures(const RuntimeOptions& options);

}  // namespace lydian::runtime
