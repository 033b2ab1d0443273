// Inputs that wait in the journal alone: every test with a queue in memory that holds next to nothing.
#include <malloc.h>

#include <random>

#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class StoredTest : public EngineTest {
 protected:
  void BeginWith(size_t ready, size_t idle_calls = 0) {
    EngineOptions options = Options();
    options.max_ready_inputs = ready;
    options.max_idle_calls = idle_calls;
    Begin(Function(), options);
  }
  static std::string ResultOf(const Lease& lease) { return "result of " + lease.input_id(); }
  std::string Spawn(const std::string& payload) {
    NewCall spawn = CallOf(payload);
    spawn.invocation_type = kAsync;
    auto created = Create(spawn);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? created->call_id : "";
  }
  std::string MapOf(uint32_t inputs) {
    NewCall map;
    map.scope = Scope();
    map.function_id = "fu-1";
    map.call_type = kCallMap;
    map.invocation_type = kAsync;
    std::string call = Create(map)->call_id;
    Extend(call, 0, inputs);
    return call;
  }
  void Extend(const std::string& call, uint32_t from, uint32_t to) {
    for (; from < to; from += 500) {
      std::vector<NewInput> some;
      for (uint32_t i = from; i < std::min(from + 500, to); ++i) some.push_back({i, std::to_string(i), ""});
      EXPECT_TRUE(Put(call, some).ok());
    }
  }
  Result<CallInfo> Info(const std::string& call) {
    std::promise<Result<CallInfo>> promise;
    engine_->GetCallInfo(Scope(), call, [&](Result<CallInfo> info) { promise.set_value(std::move(info)); });
    return promise.get_future().get();
  }
  void WaitEnded(const std::string& call) {
    const auto late = std::chrono::steady_clock::now() + 60s;
    while (true) {
      auto info = Info(call);
      ASSERT_TRUE(info.ok()) << info.status();
      if (info->pending == 0) return;
      ASSERT_LT(std::chrono::steady_clock::now(), late) << info->pending << " inputs never end";
      std::this_thread::yield();
    }
  }
  // By idx, what came of each input: 1 success, ...
  std::map<uint32_t, int32_t> StatusesOf(const std::string& call) {
    std::map<uint32_t, int32_t> all;
    OutputsQuery query = QueryOf(call);
    query.start_idx.reset(), query.end_idx.reset();
    query.timeout = Millis(0);
    while (true) {
      auto page = Outputs(query);
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok() || page->outputs.empty()) return all;
      for (const OutputView& output : page->outputs) {
        EXPECT_TRUE(all.emplace(output.idx, output.status).second) << "two results of input " << output.idx;
      }
      query.last_entry_id = page->last_entry_id;
    }
  }
  // Of the heap. 0: the allocator (a sanitizer's) doesn't tell.
  static size_t InUse() {
    const auto info = ::mallinfo2();
    return info.uordblks + info.hblkhd;
  }
  FunctionStats Stats() {
    std::promise<FunctionStats> promise;
    engine_->Stats("fu-1", [&](FunctionStats stats) { promise.set_value(stats); });
    return promise.get_future().get();
  }
};

TEST_F(StoredTest, AMapThatIsLongerThanTheQueueRunsInOrder) {
  BeginWith(8);
  FakeWorker* worker = Connect();
  const std::string call = MapOf(2'500);
  EXPECT_EQ(Stats().queued, 2'500u);
  auto task = worker->WaitStart();
  ASSERT_TRUE(task);
  worker->Ready(task->task_id());
  for (uint32_t idx = 0; idx < 2'500; ++idx) {
    auto lease = worker->WaitLease();
    ASSERT_TRUE(lease) << "input " << idx << " never came";
    ASSERT_EQ(lease->idx(), idx);
    ASSERT_EQ(lease->input(), std::to_string(idx));
    worker->Succeed(*lease, "ok");
  }
  WaitEnded(call);
  EXPECT_EQ(Info(call)->succeeded, 2'500u);
  EXPECT_EQ(StatusesOf(call).size(), 2'500u);
  EXPECT_EQ(Stats().queued, 0u);
}

TEST_F(StoredTest, SpawnedCallsThatWaitAreFound) {
  BeginWith(2);
  std::vector<std::string> calls;
  for (int i = 0; i < 50; ++i) calls.push_back(Spawn("x"));
  for (const std::string& call : calls) {
    auto info = Info(call);
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->pending, 1u);
    EXPECT_EQ(info->total, 1u);
  }
  std::promise<Result<std::vector<CallInfo>>> listed;
  engine_->ListCalls(Scope(), "fu-1",
                     [&](Result<std::vector<CallInfo>> all) { listed.set_value(std::move(all)); });
  auto list = listed.get_future().get();
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->size(), 50u);
  for (const CallInfo& info : *list) EXPECT_EQ(info.pending, 1u);
  // Somebody waits for one of them meanwhile.
  std::promise<Result<OutputsPage>> last;
  auto asked = engine_->GetOutputs(QueryOf(calls.back()),
                                   [&](Result<OutputsPage> page) { last.set_value(std::move(page)); });
  Connect()->Serve(ResultOf);
  auto page = last.get_future().get();
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->outputs.size(), 1u);
  for (const std::string& call : calls) {
    WaitEnded(call);
    EXPECT_EQ(StatusesOf(call), (std::map<uint32_t, int32_t>{{0, 1}}));
  }
}

TEST_F(StoredTest, AMapIsCancelledWhereverItsInputsWait) {
  BeginWith(10, 10);
  const std::string before = Spawn("before");
  const std::string call = MapOf(5'000);
  const std::string behind = Spawn("behind");
  ASSERT_TRUE(Cancel(call).ok());
  WaitEnded(call);
  EXPECT_EQ(Info(call)->cancelled, 5'000u);
  EXPECT_EQ(StatusesOf(call).size(), 5'000u);
  EXPECT_EQ(Stats().queued, 2u);
  Connect()->Serve(ResultOf);
  WaitEnded(before);
  WaitEnded(behind);
  EXPECT_EQ(StatusesOf(behind).at(0), 1);
  Extend(call, 5'000, 5'010);  // what comes late is cancelled, too
  WaitEnded(call);
  EXPECT_EQ(Info(call)->cancelled, 5'010u);
}

TEST_F(StoredTest, ASpawnedCallIsCancelledWhileItWaits) {
  BeginWith(1);
  std::vector<std::string> calls;
  for (int i = 0; i < 20; ++i) calls.push_back(Spawn("x"));
  for (int i = 0; i < 20; i += 2) ASSERT_TRUE(Cancel(calls[static_cast<size_t>(i)]).ok());
  for (int i = 0; i < 20; i += 2) WaitEnded(calls[static_cast<size_t>(i)]);
  EXPECT_EQ(Stats().queued, 10u);
  Connect()->Serve(ResultOf);
  for (int i = 0; i < 20; ++i) {
    WaitEnded(calls[static_cast<size_t>(i)]);
    EXPECT_EQ(StatusesOf(calls[static_cast<size_t>(i)]).at(0), i % 2 == 0 ? 3 : 1);
  }
}

TEST_F(StoredTest, AStoppedAppEndsWhatWaits) {
  BeginWith(4);
  const std::string map = MapOf(3'000);
  const std::string spawned = Spawn("x");
  engine_->StopApp("ap-1", "it was stopped by its owner", 0, nullptr);
  WaitEnded(map);
  WaitEnded(spawned);
  EXPECT_EQ(Info(map)->cancelled, 3'000u);
  auto page = Poll(spawned);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->outputs.at(0).text, "it was stopped by its owner");
}

TEST_F(StoredTest, AFunctionThatCanNotStartFailsAllThatWaits) {
  BeginWith(4);
  FakeWorker* worker = Connect();
  const std::string map = MapOf(2'000);
  auto task = worker->WaitStart();
  ASSERT_TRUE(task);
  TaskUpdate update;
  update.set_task_id(task->task_id());
  update.set_state(TaskUpdate::INIT_FAILED);
  update.set_result("no module named nothing");
  worker->Send(update);
  WaitEnded(map);
  const auto statuses = StatusesOf(map);
  EXPECT_EQ(statuses.size(), 2'000u);
  for (const auto& [idx, status] : statuses)
    EXPECT_EQ(status, static_cast<int32_t>(ResultStatus::kInitFailure));
}

TEST_F(StoredTest, WhatWaitsSurvivesAKill) {
  BeginWith(4);
  const std::string map = MapOf(1'500), cancelled = MapOf(1'200);
  std::vector<std::string> calls;
  for (int i = 0; i < 40; ++i) calls.push_back(Spawn("x"));
  ASSERT_TRUE(Cancel(cancelled).ok());
  Restart();
  EXPECT_EQ(Info(calls[7])->pending, 1u);
  Restart();
  Extend(map, 1'490, 1'510);
  Connect()->Serve(ResultOf);
  for (const std::string& call : calls) WaitEnded(call);
  WaitEnded(map);
  WaitEnded(cancelled);
  EXPECT_EQ(Info(map)->succeeded, 1'510u);
  EXPECT_EQ(StatusesOf(map).size(), 1'510u);
  EXPECT_EQ(Info(cancelled)->cancelled, 1'200u);
  for (const std::string& call : calls) EXPECT_EQ(StatusesOf(call).size(), 1u);
  EXPECT_EQ(Stats().queued, 0u);
}

// Its bytes count, not only how many they are.
TEST_F(StoredTest, LargeInputsWaitInTheJournal) {
  EngineOptions options = Options();
  options.max_ready_bytes = 1;
  Begin(Function(), options);
  std::vector<std::string> calls;
  for (int i = 0; i < 10; ++i) calls.push_back(Spawn(std::string(400'000, 'x')));
  const size_t before = InUse();
  for (int i = 10; i < 40; ++i) calls.push_back(Spawn(std::string(400'000, static_cast<char>('a' + i % 26))));
  if (before > 0) {
    EXPECT_LT(InUse() - before, size_t{6} << 20) << "12 MB of payloads are in memory";
  }
  std::mutex mutex;
  std::map<std::string, std::string> first;
  Connect()->Serve([&](const Lease& lease) {
    std::lock_guard lock(mutex);
    first[lease.function_call_id()] = lease.input().substr(0, 1) + std::to_string(lease.input().size());
    return std::string("ok");
  });
  for (const std::string& call : calls) WaitEnded(call);
  for (size_t i = 10; i < calls.size(); ++i)
    EXPECT_EQ(first[calls[i]], std::string(1, static_cast<char>('a' + i % 26)) + "400000");
}

// From a seed: calls are made, extended, cancelled, asked for, control is killed; at the end every input has
// ended once.
TEST_F(StoredTest, WhateverHappensEveryInputEndsOnce) {
  for (const uint32_t seed : {1u, 2u, 3u, 4u, 5u, 6u}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
    BeginWith(1 + below(20), below(3));
    uint64_t epoch = seed * 1000;
    FakeWorker* worker = nullptr;
    std::map<std::string, uint32_t> sizes;  // by call
    std::set<std::string> cancelled;
    std::vector<std::string> calls;
    for (int step = 0; step < 120; ++step) {
      const std::string some = calls.empty() ? "" : calls[below(static_cast<uint32_t>(calls.size()))];
      switch (below(8)) {
        case 0:
        case 1:
        case 2:
          calls.push_back(Spawn("s"));
          sizes[calls.back()] = 1;
          break;
        case 3: {
          const uint32_t inputs = 1 + below(200);
          calls.push_back(MapOf(inputs));
          sizes[calls.back()] = inputs;
          break;
        }
        case 4:
          if (some.empty() || below(2) == 0) break;
          ASSERT_TRUE(Cancel(some).ok());
          cancelled.insert(some);
          break;
        case 5:
          if (!some.empty()) {
            OutputsQuery query = QueryOf(some);
            query.timeout = Millis(below(2));
            ASSERT_TRUE(Outputs(query).ok());
          }
          break;
        case 6:
          if (below(6) == 0) {
            Restart();
            worker = nullptr;
          }
          break;
        default:
          if (worker == nullptr) {
            worker = Connect(Hello(++epoch));
            worker->Serve(ResultOf);
          }
      }
    }
    if (worker == nullptr) Connect(Hello(++epoch))->Serve(ResultOf);
    for (const auto& [call, inputs] : sizes) {
      WaitEnded(call);
      const auto statuses = StatusesOf(call);
      EXPECT_EQ(statuses.size(), inputs);
      for (const auto& [idx, status] : statuses)
        EXPECT_TRUE(status == 1 || (status == 3 && cancelled.contains(call))) << idx << ": " << status;
    }
    EXPECT_EQ(Stats().queued, 0u);
    Kill();
    for (const char* name : {"/calls.db", "/calls.db-wal", "/calls.db-shm"})
      std::filesystem::remove(dir_ + name);
  }
}

// A call that waits costs the entry of its input, not what a call in memory does (1.5 KB).
TEST_F(StoredTest, QueuedCallsWeighLittle) {
  BeginWith(100, 100);
  const auto spawn = [&](size_t count) {
    std::atomic<size_t> left{count};
    std::promise<void> all;
    NewCall call = CallOf(std::string(200, 'x'));
    call.invocation_type = kAsync;
    for (size_t i = 0; i < count; ++i) {
      engine_->CreateCall(call, [&](const Result<CreatedCall>& created) {
        EXPECT_TRUE(created.ok()) << created.status();
        if (--left == 0) all.set_value();
      });
    }
    all.get_future().wait();
  };
  for (int i = 0; i < 3; ++i)
    spawn(20'000);  // what is there once and for all, the database's cache above all
  const size_t before = InUse();
  if (before == 0) GTEST_SKIP() << "this allocator doesn't tell what is in use";
  spawn(20'000);
  EXPECT_LT(static_cast<double>(InUse()) - static_cast<double>(before), 20'000 * 400) << "bytes";
  EXPECT_EQ(Stats().queued, 80'000u);
}

}  // namespace
}  // namespace lydian::control
