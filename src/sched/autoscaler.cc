#include "sched/autoscaler.h"

#include <algorithm>
#include <cmath>

namespace lydian::sched {
namespace {

// What the client's runtime spends in a container on an input that does nothing (measured: 1.9-2.2 ms).
constexpr double kInputCpuNanos = 2e6;

bool Busy(const TaskLoad& task) { return task.starting || task.inputs > 0; }

// Waiting inputs, and nothing that could take them unless something new starts.
bool Stuck(const FunctionLoad& function, size_t started) {
  if (function.queued == 0 || started > 0) return false;
  return std::all_of(function.tasks.begin(), function.tasks.end(),
                     [](const TaskLoad& task) { return !task.starting && task.inputs > 0 && task.blocked; });
}

// Idle containers beyond what is wanted, whose window is over.
void ScaleDown(const FunctionLoad& function, uint64_t wanted, int64_t now, Plan& plan) {
  if (function.tasks.size() <= wanted) return;
  std::vector<const TaskLoad*> idle;
  for (const TaskLoad& task : function.tasks) {
    if (!Busy(task)) idle.push_back(&task);
  }
  std::sort(idle.begin(), idle.end(),
            [](const TaskLoad* a, const TaskLoad* b) { return a->idle_since < b->idle_since; });
  size_t surplus = function.tasks.size() - wanted;
  for (size_t i = 0; i < idle.size() && i < surplus; ++i) {
    int64_t due = idle[i]->idle_since + function.scaledown_window;
    if (due <= now) {
      plan.drain.push_back(idle[i]->id);
    } else {
      plan.again_at = std::min(plan.again_at, due);
    }
  }
}

// How many more containers the queue is worth: the work that is left when the first of them would be ready,
// in portions of a start's time. Without a container that works on the queue there is nothing to compare
// with.
uint64_t Worthwhile(const FunctionLoad& function, const View& view, Plan& plan) {
  int64_t now = view.now;
  int64_t ready = 0, youngest = INT64_MAX;
  for (const TaskLoad& task : function.tasks) {
    if (task.starting || task.blocked) continue;
    ++ready;
    youngest = std::min(youngest, task.inputs == 0 ? 0 : now - task.begun);
  }
  if (ready == 0 || function.queued == 0) return UINT64_MAX;
  // The average, unless all of them have been at theirs for longer.
  double run = static_cast<double>(std::max(function.run_time, youngest));
  if (function.run_time == 0 && youngest < function.start_time)
    run = static_cast<double>(function.start_time);
  double slots = std::max<uint32_t>(function.target_slots, 1);
  double start = static_cast<double>(std::max<int64_t>(function.start_time, 1'000'000));
  double queued = static_cast<double>(function.queued);
  double left = queued * run / slots - start * static_cast<double>(ready);
  if (left > 0) {
    // Each input costs its container some CPU of its own: with short ones, more containers than that leaves
    // room for only take turns.
    double milli_cpu = 0;
    for (const WorkerView& worker : view.workers) milli_cpu += worker.milli_cpu;
    double useful =
        std::max(1.0, milli_cpu / 1000 * run / kInputCpuNanos) - static_cast<double>(function.tasks.size());
    double worth = std::min(std::ceil(left / start), std::ceil(useful));
    return worth <= 0 ? 0 : static_cast<uint64_t>(worth);
  }
  // It changes when they turn out to be slow.
  auto turn = static_cast<int64_t>(start * static_cast<double>(ready) * slots / queued);
  plan.again_at = std::min(plan.again_at, now - youngest + turn + 1'000'000);
  return 0;
}

// Takes idle containers of other functions (beyond their min) until the request would fit somewhere; longest
// idle first.
bool MakeRoom(View& view, size_t for_function, Plan& plan) {
  struct Candidate {
    size_t function;
    const TaskLoad* task;
  };
  std::vector<Candidate> candidates;
  for (size_t f = 0; f < view.functions.size(); ++f) {
    const FunctionLoad& function = view.functions[f];
    if (f == for_function || function.tasks.size() <= function.min_containers) continue;
    size_t spare = function.tasks.size() - function.min_containers;
    for (const TaskLoad& task : function.tasks) {
      if (spare == 0) break;
      if (Busy(task) || std::find(plan.drain.begin(), plan.drain.end(), task.id) != plan.drain.end())
        continue;
      candidates.push_back({f, &task});
      --spare;
    }
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.task->idle_since < b.task->idle_since; });
  const Request& request = view.functions[for_function].request;
  std::vector<WorkerView> trial = view.workers;
  std::vector<std::string> taken;
  for (const Candidate& candidate : candidates) {
    WorkerView& worker = trial[candidate.task->worker];
    Uncount(worker, view.functions[candidate.function].request);
    taken.push_back(candidate.task->id);
    if (!Fits(worker, request)) continue;
    plan.drain.insert(plan.drain.end(), taken.begin(), taken.end());
    return true;
  }
  return false;
}

}  // namespace

uint64_t Wanted(const FunctionLoad& function) {
  if (!function.active) return 0;
  uint64_t inputs = function.queued + function.running;
  uint64_t slots = std::max<uint32_t>(function.target_slots, 1);
  uint64_t wanted = (inputs + slots - 1) / slots;
  if (inputs > 0) wanted += function.buffer_containers;
  wanted = std::max<uint64_t>(wanted, function.min_containers);
  if (function.max_containers > 0) wanted = std::min<uint64_t>(wanted, function.max_containers);
  return wanted;
}

Plan MakePlan(View view) {
  Plan plan;
  std::vector<size_t> order;
  for (size_t f = 0; f < view.functions.size(); ++f) {
    const FunctionLoad& function = view.functions[f];
    uint64_t wanted = Wanted(function);
    if (function.active) ScaleDown(function, wanted, view.now, plan);
    if (wanted > function.tasks.size()) order.push_back(f);
  }
  if (view.workers.empty()) return plan;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    auto key = [&](size_t f) {
      return view.functions[f].queued > 0 ? view.functions[f].oldest_queued : INT64_MAX;
    };
    return key(a) < key(b);
  });
  bool room_comes = view.draining || !plan.drain.empty();
  // Without a blocked caller what runs will end and make room; with one, the wait could be for ourselves.
  bool callers_wait =
      std::any_of(view.functions.begin(), view.functions.end(), [](const FunctionLoad& function) {
        return std::any_of(function.tasks.begin(), function.tasks.end(),
                           [](const TaskLoad& task) { return task.blocked; });
      });
  for (size_t f : order) {
    const FunctionLoad& function = view.functions[f];
    if (std::none_of(view.workers.begin(), view.workers.end(),
                     [&](const WorkerView& worker) { return CouldFit(worker, function.request); })) {
      plan.impossible.push_back(f);
      continue;
    }
    if (function.not_before > view.now) {
      plan.again_at = std::min(plan.again_at, function.not_before);
      continue;
    }
    uint64_t missing = Wanted(function) - function.tasks.size();
    uint64_t short_of_min =
        function.min_containers > function.tasks.size() ? function.min_containers - function.tasks.size() : 0;
    if (function.buffer_containers == 0)
      missing = std::min(missing, std::max(Worthwhile(function, view, plan), short_of_min));
    size_t started = 0;
    while (started < missing) {
      auto worker = Place(view.workers, function.request);
      if (!worker && Stuck(function, started)) {
        if (MakeRoom(view, f, plan)) {
          room_comes = true;
        } else if (!room_comes && callers_wait) {
          worker = Place(view.workers, function.request, true);
        }
      }
      if (!worker) break;
      Count(view.workers[*worker], function.request, /*starting=*/true);
      plan.starts.push_back({f, *worker});
      ++started;
    }
  }
  return plan;
}

}  // namespace lydian::sched
