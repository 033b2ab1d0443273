#include "sched/autoscaler.h"

#include <gtest/gtest.h>

namespace lydian::sched {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr int64_t kSecond = 1'000'000'000;

WorkerView Machine(uint64_t memory_mib = 4096, uint32_t milli_cpu = 8000) {
  WorkerView worker;
  worker.id = "wk-1";
  worker.memory_bytes = memory_mib * kMiB;
  worker.milli_cpu = milli_cpu;
  return worker;
}

FunctionLoad Function(const std::string& id, uint64_t queued) {
  FunctionLoad function;
  function.id = id;
  function.active = true;
  function.queued = queued;
  function.oldest_queued = 1;
  function.scaledown_window = 60 * kSecond;
  return function;
}

TaskLoad Task(const std::string& id, uint32_t inputs, int64_t idle_since = 0) {
  TaskLoad task;
  task.id = id;
  task.inputs = inputs;
  task.idle_since = idle_since;
  return task;
}

View Of(std::vector<FunctionLoad> functions, WorkerView worker = Machine()) {
  View view;
  view.now = 1000 * kSecond;
  view.workers = {worker};
  for (const FunctionLoad& function : functions) {
    for (const TaskLoad& task : function.tasks)
      Count(view.workers[task.worker], function.request, task.starting);
  }
  view.functions = std::move(functions);
  return view;
}

TEST(Wanted, FollowsTheFormula) {
  FunctionLoad f = Function("f", 0);
  EXPECT_EQ(Wanted(f), 0u);
  f.queued = 9, f.running = 1, f.target_slots = 4;
  EXPECT_EQ(Wanted(f), 3u);
  f.buffer_containers = 2;
  EXPECT_EQ(Wanted(f), 5u);
  f.max_containers = 4;
  EXPECT_EQ(Wanted(f), 4u);
  f.queued = f.running = 0;
  EXPECT_EQ(Wanted(f), 0u);
  f.min_containers = 2;
  EXPECT_EQ(Wanted(f), 2u);
  f.active = false;
  EXPECT_EQ(Wanted(f), 0u);
}

TEST(MakePlan, StartsWhatIsMissing) {
  FunctionLoad f = Function("f", 3);
  f.running = 1;
  f.tasks = {Task("ta-1", 1)};
  Plan plan = MakePlan(Of({f}));
  EXPECT_EQ(plan.starts.size(), 3u);
  EXPECT_TRUE(plan.drain.empty());
}

TEST(MakePlan, StartsOnlySoManyAtOnce) {
  Plan plan = MakePlan(Of({Function("f", 500)}, Machine(65536, 4000)));
  EXPECT_EQ(plan.starts.size(), 4u);
}

TEST(MakePlan, StaysWithinMemory) {
  FunctionLoad f = Function("f", 10);
  f.request.memory_bytes = 1024 * kMiB;
  EXPECT_EQ(MakePlan(Of({f})).starts.size(), 4u);
}

TEST(MakePlan, DrainsWhenTheWindowIsOver) {
  FunctionLoad f = Function("f", 0);
  f.tasks = {Task("ta-old", 0, 900 * kSecond), Task("ta-new", 0, 990 * kSecond), Task("ta-busy", 1)};
  f.running = 1;
  Plan plan = MakePlan(Of({f}));
  EXPECT_EQ(plan.drain, std::vector<std::string>{"ta-old"});
  EXPECT_EQ(plan.again_at, 1050 * kSecond);
}

TEST(MakePlan, KeepsTheMinimum) {
  FunctionLoad f = Function("f", 0);
  f.min_containers = 1;
  f.tasks = {Task("ta-1", 0, 0), Task("ta-2", 0, 1)};
  EXPECT_EQ(MakePlan(Of({f})).drain, std::vector<std::string>{"ta-1"});
}

TEST(MakePlan, OldestWorkFirst) {
  FunctionLoad late = Function("late", 1), early = Function("early", 1);
  late.oldest_queued = 50, early.oldest_queued = 10;
  Plan plan = MakePlan(Of({late, early}, Machine(128)));
  ASSERT_EQ(plan.starts.size(), 1u);
  EXPECT_EQ(plan.starts[0].function, 1u);
}

TEST(MakePlan, ACallerThatWaitsDoesNotBlockItsCallee) {
  FunctionLoad caller = Function("caller", 0), callee = Function("callee", 1);
  caller.request.memory_bytes = callee.request.memory_bytes = 4096 * kMiB;
  caller.running = 1;
  caller.tasks = {Task("ta-1", 1)};
  caller.tasks[0].blocked = true;
  Plan plan = MakePlan(Of({caller, callee}));
  ASSERT_EQ(plan.starts.size(), 1u);
  EXPECT_EQ(plan.starts[0].function, 1u);
}

TEST(MakePlan, RecursionGoesOnWhenEveryContainerIsBlocked) {
  FunctionLoad f = Function("f", 1);
  f.request.memory_bytes = 4096 * kMiB;
  f.running = 1;
  f.tasks = {Task("ta-1", 1)};
  EXPECT_TRUE(MakePlan(Of({f})).starts.empty());  // it works, and will take the next
  f.tasks[0].blocked = true;
  EXPECT_EQ(MakePlan(Of({f})).starts.size(), 1u);
  f.max_containers = 1;  // the user's own limit holds
  EXPECT_TRUE(MakePlan(Of({f})).starts.empty());
}

TEST(MakePlan, IdleContainersOfOthersMakeRoomFirst) {
  FunctionLoad idle = Function("idle", 0), f = Function("f", 1);
  idle.request.memory_bytes = f.request.memory_bytes = 4096 * kMiB;
  idle.tasks = {Task("ta-idle", 0, 999 * kSecond)};
  Plan plan = MakePlan(Of({idle, f}));
  EXPECT_TRUE(plan.starts.empty());
  EXPECT_EQ(plan.drain, std::vector<std::string>{"ta-idle"});
  View next = Of({idle, f});
  next.functions[0].tasks.clear();
  next.draining = true;
  EXPECT_TRUE(MakePlan(next).starts.empty());  // waits for the room that comes
}

TEST(MakePlan, SaysWhatCanNeverRun) {
  FunctionLoad f = Function("f", 1);
  f.request.memory_bytes = 99'999 * kMiB;
  Plan plan = MakePlan(Of({f}));
  EXPECT_TRUE(plan.starts.empty());
  EXPECT_EQ(plan.impossible, std::vector<size_t>{0});
  View none;
  none.functions = {f};
  EXPECT_TRUE(MakePlan(none).impossible.empty());
}

TEST(MakePlan, StartsNothingForAQueueThatIsSoonEmpty) {
  FunctionLoad f = Function("f", 100);
  f.running = 1;
  f.run_time = kSecond / 500;
  f.start_time = kSecond / 2;
  f.tasks = {Task("ta-1", 1)};
  f.tasks[0].begun = 1000 * kSecond - 1'000'000;
  Plan plan = MakePlan(Of({f}));
  EXPECT_TRUE(plan.starts.empty());  // 200 ms of work
  // Looked at again when its input turns out to be a long one.
  EXPECT_GT(plan.again_at, 1000 * kSecond);
  EXPECT_LT(plan.again_at, 1000 * kSecond + kSecond / 50);
  f.tasks[0].begun = 999 * kSecond;
  EXPECT_GT(MakePlan(Of({f})).starts.size(), 0u);
  f.tasks[0].begun = 1000 * kSecond;
  f.queued = 600;  // 1.2 s, of which the one that is there does 0.5 s until another is ready
  EXPECT_EQ(MakePlan(Of({f})).starts.size(), 2u);
  f.queued = 100'000;  // but no-ops are bound by CPU: one a core
  EXPECT_EQ(MakePlan(Of({f}, Machine(4096, 4000))).starts.size(), 3u);
  f.queued = 600;
  f.tasks[0].blocked = true;  // it waits for a call of its own
  EXPECT_EQ(MakePlan(Of({f})).starts.size(), 8u);
}

TEST(MakePlan, WaitsOutABackOff) {
  FunctionLoad f = Function("f", 1);
  f.not_before = 1001 * kSecond;
  Plan plan = MakePlan(Of({f}));
  EXPECT_TRUE(plan.starts.empty());
  EXPECT_EQ(plan.again_at, 1001 * kSecond);
}

TEST(Place, PacksAndNeverUsesAWorkerThatRefuses) {
  std::vector<WorkerView> workers = {Machine(), Machine(), Machine()};
  workers[1].memory_used = 1024 * kMiB;
  workers[2].memory_used = 2048 * kMiB;
  workers[2].refuses = true;
  EXPECT_EQ(Place(workers, Request()), 1u);
  EXPECT_EQ(Place(workers, {125, 4000 * kMiB}), 0u);
  EXPECT_EQ(Place(workers, {125, 5000 * kMiB}, true), std::nullopt);
}

TEST(Place, AWorkspaceLeavesOthersAQuarter) {
  std::vector<WorkerView> workers = {Machine(4096, 2000)};
  const Request all_cpu = {8000, kMiB, 0}, most_memory = {125, 3000 * kMiB, 0}, others = {125, 128 * kMiB, 1};
  EXPECT_TRUE(Place(workers, all_cpu)) << "by itself it may have all";
  workers[0].shared = true;
  EXPECT_FALSE(CouldFit(workers[0], all_cpu));
  ASSERT_TRUE(Place(workers, most_memory));
  Count(workers[0], most_memory, false);
  EXPECT_FALSE(Place(workers, {125, 128 * kMiB, 0}));
  EXPECT_TRUE(Place(workers, others));
}

TEST(Plan, StartsOfOneWorkspaceDontHoldUpAnother) {
  TaskLoad never = Task("a1", 0), neither = Task("a2", 0);
  never.starting = neither.starting = true;
  FunctionLoad stuck = Function("stuck", 9);
  stuck.tasks = {never, neither};
  FunctionLoad same = Function("same", 1), other = Function("other", 9);
  other.request.workspace = 3;
  Plan plan = MakePlan(Of({stuck, same, other}, Machine(4096, 2000)));
  ASSERT_EQ(plan.starts.size(), 2u);
  for (const Start& start : plan.starts) EXPECT_EQ(start.function, 2u);  // its own two at once, and no more
}

TEST(Place, LeavesRangesOfIdsToOthersHoweverLittleItsContainersAskFor) {
  std::vector<WorkerView> workers = {Machine(1'000'000, 1'000'000)};
  const Request tiny = {1, uint64_t{1} << 20, 0}, others = {1, uint64_t{1} << 20, 1};
  uint32_t count = 0;
  for (; Place(workers, tiny) && count < 2000; ++count) Count(workers[0], tiny, false);
  EXPECT_EQ(count, kMostContainersOfWorkspace);
  EXPECT_TRUE(Place(workers, others));
  EXPECT_TRUE(Place(workers, tiny, true)) << "others wait for it";
  for (; Place(workers, others, true) && count < 2000; ++count) Count(workers[0], others, false);
  EXPECT_EQ(count, kMostContainers);
  Uncount(workers[0], tiny);
  EXPECT_TRUE(Place(workers, others));
}

}  // namespace
}  // namespace lydian::sched
