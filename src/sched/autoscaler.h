// How many containers each function should have, and which go: a pure function of a view. The call engine
// makes the view when something changed, carries out the plan, and asks again at `again_at`; there is no
// clock and no state here.
//
//   wanted = ceil((queued + running inputs) / target slots) + buffer while there is work, within min and max
//
// What would be ready only when those that are there have emptied the queue is not started: for short inputs
// the formula alone would start a container for each of them, and spend the machine on that.
//
// Functions with the oldest waiting input come first. When a machine is full, idle containers of others make
// room first; and callers never wait for themselves: while some container is blocked on a call, a function
// with waiting inputs whose containers are all blocked too (or which has none) gets one more, beyond what the
// machine has.
//
// Thread-safety: no state.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sched/placement.h"

namespace lydian::sched {

// Times are nanoseconds of one clock that never goes back.
struct TaskLoad {
  std::string id;
  size_t worker = 0;       // index into View::workers
  bool starting = false;   // not ready yet
  uint32_t inputs = 0;     // that it holds
  bool blocked = false;    // each input that it holds waits for a call that it made
  int64_t idle_since = 0;  // with no inputs
  int64_t begun = 0;       // since when it works on the input that it works on
};

struct FunctionLoad {
  std::string id;
  bool active = false;  // its app runs; otherwise only its end is looked after
  uint64_t queued = 0, running = 0;
  int64_t oldest_queued = 0;
  uint32_t target_slots = 1;
  uint32_t min_containers = 0, max_containers = 0 /* 0 = no limit */, buffer_containers = 0;
  int64_t scaledown_window = 0;
  int64_t not_before = 0;            // no start before (back-off)
  int64_t run_time = 0;              // of an input, on average; 0 = not known
  int64_t start_time = 700'000'000;  // of a container, until it takes its first input
  Request request;
  std::vector<TaskLoad> tasks;  // alive; without those that are on their way out
};

struct View {
  int64_t now = 0;
  std::vector<WorkerView> workers;
  std::vector<FunctionLoad> functions;
  bool draining = false;  // some task is on its way out: room will come
};

struct Start {
  size_t function;  // index into View::functions
  size_t worker;
};

struct Plan {
  std::vector<Start> starts;
  std::vector<std::string> drain;  // task ids
  std::vector<size_t>
      impossible;  // functions whose request no worker could ever hold (only with workers there)
  int64_t again_at = INT64_MAX;  // when the plan may change without an event
};

uint64_t Wanted(const FunctionLoad& function);
Plan MakePlan(View view);

}  // namespace lydian::sched
