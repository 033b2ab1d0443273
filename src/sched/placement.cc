#include "sched/placement.h"

namespace lydian::sched {

bool CouldFit(const WorkerView& worker, const Request& request) {
  return request.memory_bytes <= worker.memory_bytes &&
         request.milli_cpu <= uint64_t{worker.milli_cpu} * kCpuOvercommit;
}

bool Fits(const WorkerView& worker, const Request& request) {
  return !worker.refuses && worker.starting_of(request.workspace) < worker.starting_limit() &&
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
    if (workers[i].refuses || !CouldFit(workers[i], request)) continue;
    if (!best || free_memory(i) > free_memory(*best)) best = i;
  }
  return best;
}

void Take(WorkerView& worker, const Request& request) {
  worker.memory_used += request.memory_bytes;
  worker.milli_cpu_used += request.milli_cpu;
  worker.AddStarting(request.workspace);
}

}  // namespace lydian::sched
