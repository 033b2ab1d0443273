// What Start is going to do, as a value: checked, defaults filled in, printable. Making one touches nothing
// of the machine. Thread-safety: pure functions. Errors: INVALID_ARGUMENT with the field of the job.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "lydian/job.pb.h"
#include "runtime/runtime.h"

namespace lydian::runtime {

// One thing that is put into the container's tree, in order, after the root file system.
struct MountStep {
  enum Kind {
    kFileSystem,  // a new instance of `source`, made inside the container's namespaces
    kBind,        // a folder or file of the host, made outside and moved in
    kTree,        // layers as a tree beside the container's own, made outside and moved in
    kOwn,         // a part of the container's own tmpfs: "dev", "etc/hosts"
    kSelf,        // a path inside, over itself: to make it read-only
    kMask,        // an empty read-only folder or /dev/null over something that nobody needs to see
  };
  Kind kind = kFileSystem;
  std::string source, target;        // target: absolute, inside
  std::vector<std::string> options;  // "key=value"
  uint64_t attributes = 0;           // MOUNT_ATTR_*
  bool optional = false;             // a target that isn't there is left out
  bool idmap = false;
  std::vector<std::string> lowers;  // kTree, bottom first
  std::string writable_dir;         // kTree; "" = read-only
};

struct StartPlan {
  std::vector<std::string> lowers;  // bottom first
  std::string writable_dir;         // "" = a quota image
  bool hand_over = false;           // the quota image outlives the container
  uint64_t quota_bytes = 0;
  bool read_only = false;
  bool bare = false;  // the one lower is the root, without an overlay
  std::vector<MountStep> mounts;
  std::string hostname;
  bool nat = true;
  bool build = false;
  uint64_t memory_bytes = 0;
  uint32_t pids = 0;
};

Result<StartPlan> MakeStartPlan(const Job& job, const RuntimeOptions& options);
// The same for a process: absent fields filled in, bad ones refused.
Status CheckProcess(const lydian::Process& process);
// Where `argv[0]` may lie: itself if it has a slash, else one path for each folder of PATH in `env`.
std::vector<std::string> ExecCandidates(const lydian::Process& process);
Plan DescribePlan(const StartPlan& plan, const Job& job, const RuntimeOptions& options);
// What is kept from containers when nothing is configured: 1/8 of the memory, between 512 MiB and 4 GiB.
uint64_t DefaultMemoryReserve(uint64_t total_bytes);
// What our own processes may have of the reserve (0 = the default one); the rest of it is the host's.
uint64_t DaemonMemory(uint64_t reserve_bytes, uint64_t total_bytes);
// The control group that they are in.
inline std::string DaemonGroup(const std::string& instance) { return "lydian-" + instance + "-daemons"; }
// The machine's memory.
uint64_t TotalMemory();

inline constexpr char kApiSocket[] = "/run/modal.sock";
inline constexpr char kNameserver[] = "169.254.77.53";
inline constexpr char kInsideAddress[] = "169.254.77.1";

}  // namespace lydian::runtime
