#include "sched/placement.h"

#include <algorithm>

namespace lydian::sched {

bool CouldFit(const WorkerView& worker, const Request& request) {
  return request.memory_bytes <= worker.most_memory() && request.milli_cpu <= worker.most_milli_cpu();
}

bool Fits(const WorkerView& worker, const Request& request) {
  const WorkerView::OfWorkspace own = worker.of(request.workspace);
  return !worker.refuses && worker.containers < kMostContainers &&
         own.containers < kMostContainersOfWorkspace && own.starting < worker.starting_limit() &&
         own.memory_used + request.memory_bytes <= worker.most_memory() &&
         own.milli_cpu_used + request.milli_cpu <= worker.most_milli_cpu() &&
         worker.memory_used + request.memory_bytes <= worker.memory_bytes &&
         worker.milli_cpu_used + request.milli_cpu <= uint64_t{worker.milli_cpu} * kCpuOvercommit;
}

std::optional<size_t> Place(const std::vector<WorkerView>& workers, const Request& request, bool beyond) {
  std::optional<size_t> best;
  auto free_memory = [&](size_t i) {
    return static_cast<int64_t>(workers[i].memory_bytes) - static_cast<int64_t>(workers[i].memory_used);
  };
  for (size_t i = 0; i < workers.size(); ++i) {
    if (!Fits(workers[i], request)) continue;
    if (!best || free_memory(i) < free_memory(*best)) best = i;
  }
  if (best || !beyond) return best;
  for (size_t i = 0; i < workers.size(); ++i) {
    if (workers[i].refuses || workers[i].containers >= kMostContainers || !CouldFit(workers[i], request))
      continue;
    if (!best || free_memory(i) > free_memory(*best)) best = i;
  }
  return best;
}

void Count(WorkerView& worker, const Request& request, bool starting) {
  worker.memory_used += request.memory_bytes;
  worker.milli_cpu_used += request.milli_cpu;
  ++worker.containers;
  if (request.workspace >= worker.workspaces.size()) worker.workspaces.resize(request.workspace + 1);
  WorkerView::OfWorkspace& own = worker.workspaces[request.workspace];
  own.memory_used += request.memory_bytes;
  own.milli_cpu_used += request.milli_cpu;
  ++own.containers;
  if (starting) ++own.starting;
}

void Uncount(WorkerView& worker, const Request& request) {
  const auto take = [](auto& from, uint64_t amount) { from -= std::min<uint64_t>(from, amount); };
  take(worker.memory_used, request.memory_bytes);
  take(worker.milli_cpu_used, request.milli_cpu);
  take(worker.containers, 1);
  if (request.workspace >= worker.workspaces.size()) return;
  WorkerView::OfWorkspace& own = worker.workspaces[request.workspace];
  take(own.memory_used, request.memory_bytes);
  take(own.milli_cpu_used, request.milli_cpu);
  take(own.containers, 1);
}

}  // namespace lydian::sched
