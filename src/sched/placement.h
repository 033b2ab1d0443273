// Which worker a container goes to: a pure function of what the workers have and what is on them.
// Thread-safety: no state. Errors: none; nullopt = nowhere now.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lydian::sched {

constexpr uint32_t kDefaultMilliCpu = 125;
constexpr uint64_t kDefaultMemoryBytes = uint64_t{128} << 20;
// Requests of CPU may add up to this many times of what a machine has: most containers wait most of the time,
// and CPU, unlike memory, is shared without harm.
constexpr uint32_t kCpuOvercommit = 4;
// Containers of a worker, however little they ask for: each takes one of its 1,024 ranges of user ids, and
// builds and those that are going take some too. Of these a workspace has a part.
constexpr uint32_t kMostContainers = 900;
constexpr uint32_t kMostContainersOfWorkspace = 675;

struct Request {
  uint32_t milli_cpu = kDefaultMilliCpu;
  uint64_t memory_bytes = kDefaultMemoryBytes;
  size_t workspace = 0;  // whose container it is: any small number that stands for it
};

struct WorkerView {
  std::string id;
  uint32_t milli_cpu = 0;  // what it has
  uint64_t memory_bytes = 0;
  uint64_t milli_cpu_used = 0;  // requests of what is on it, starting ones too
  uint64_t memory_used = 0;
  uint32_t containers = 0;
  struct OfWorkspace {
    uint64_t memory_used = 0, milli_cpu_used = 0;
    uint32_t containers = 0;
    // Not ready yet. Those of one workspace, which may never become ready, don't keep another's from
    // starting.
    uint32_t starting = 0;
  };
  std::vector<OfWorkspace> workspaces;  // by number
  bool refuses = false;                 // disk low, or its connection is broken
  // There is more than one workspace: each may ask for three quarters, so that none can take all.
  bool shared = false;

  uint64_t most_memory() const { return shared ? memory_bytes / 4 * 3 : memory_bytes; }  // of one workspace
  uint64_t most_milli_cpu() const {
    return shared ? uint64_t{milli_cpu} * kCpuOvercommit / 4 * 3 : uint64_t{milli_cpu} * kCpuOvercommit;
  }

  OfWorkspace of(size_t workspace) const {
    return workspace < workspaces.size() ? workspaces[workspace] : OfWorkspace{};
  }
  // Of one workspace. Starting a container is CPU alone (some 300 ms of it): more at once than there are
  // cores makes each of them later, and by then the first may have emptied the queue.
  uint32_t starting_limit() const { return milli_cpu / 1000 < 2 ? 2 : milli_cpu / 1000; }
};

bool Fits(const WorkerView& worker, const Request& request);
// Could it ever run there, were the worker empty?
bool CouldFit(const WorkerView& worker, const Request& request);

// The index of the worker that is left with the least free memory (packing: whole machines stay free for
// large requests). `beyond` places even where there is no room (on the emptiest), for work that others wait
// on; never where it could not fit at all.
std::optional<size_t> Place(const std::vector<WorkerView>& workers, const Request& request,
                            bool beyond = false);
// There is such a container on the worker; `starting`: it is not ready, and may yet become so.
void Count(WorkerView& worker, const Request& request, bool starting);
// It has gone, and was ready.
void Uncount(WorkerView& worker, const Request& request);

}  // namespace lydian::sched
