// Ended calls that are in the journal alone, and work that grows with a call.
#include <malloc.h>

#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

class RestTest : public EngineTest {
 protected:
  void BeginWith(size_t idle_calls, uint64_t result_bytes = uint64_t{1} << 20) {
    EngineOptions options = Options();
    options.max_idle_calls = idle_calls;
    options.max_result_bytes = result_bytes;
    Begin(Function(), options);
  }
  static std::string ResultOf(const Lease& lease) { return "result of " + lease.input_id(); }
  std::string Spawn(const std::string& payload, const std::string& key = "") {
    NewCall spawn = CallOf(payload);
    spawn.invocation_type = kAsync;
    spawn.idempotency_key = key;
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
    for (uint32_t from = 0; from < inputs; from += 500) {
      std::vector<NewInput> some;
      for (uint32_t i = from; i < std::min(from + 500, inputs); ++i) some.push_back({i, "x", ""});
      EXPECT_TRUE(Put(call, some).ok());
    }
    return call;
  }
  void WaitEnded(const std::string& call) {
    while (true) {
      auto info = Info(call);
      ASSERT_TRUE(info.ok()) << info.status();
      if (info->pending == 0) return;
      std::this_thread::yield();
    }
  }
  Result<CallInfo> Info(const std::string& call) {
    std::promise<Result<CallInfo>> promise;
    engine_->GetCallInfo(Scope(), call, [&](Result<CallInfo> info) { promise.set_value(std::move(info)); });
    return promise.get_future().get();
  }
  Result<std::vector<CallInfo>> List() {
    std::promise<Result<std::vector<CallInfo>>> promise;
    engine_->ListCalls(Scope(), "fu-1",
                       [&](Result<std::vector<CallInfo>> list) { promise.set_value(std::move(list)); });
    return promise.get_future().get();
  }
  void ExpectResults(const std::vector<std::string>& calls) {
    for (const std::string& call : calls) {
      auto page = Poll(call);
      ASSERT_TRUE(page.ok()) << page.status();
      ASSERT_EQ(page->outputs.size(), 1u);
      ASSERT_NE(page->outputs[0].result, nullptr);
      EXPECT_EQ(*page->outputs[0].result, "result of " + page->outputs[0].input_id);
    }
  }
};

TEST_F(RestTest, ManyEndedCallsAreFoundAgainAlsoAfterARestart) {
  BeginWith(2);
  Connect()->Serve(ResultOf);
  std::vector<std::string> calls;
  for (int i = 0; i < 20; ++i) {
    calls.push_back(Spawn("x", "key " + std::to_string(i)));
    WaitEnded(calls.back());
  }
  ExpectResults(calls);
  ExpectResults(calls);
  EXPECT_EQ(Info(calls[0])->succeeded, 1u);
  auto list = List();
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->size(), 20u);
  for (const CallInfo& info : *list) {
    EXPECT_EQ(info.succeeded, 1u);
    EXPECT_EQ(info.total, 1u);
    EXPECT_EQ(info.pending, 0u);
  }
  Restart();
  Connect()->Serve(ResultOf);
  ExpectResults(calls);
  EXPECT_EQ(Spawn("x", "key 3"), calls[3]) << "a repeated request runs again";
  EXPECT_EQ(List()->size(), 20u);
}

TEST_F(RestTest, AMapThatRestsTakesMoreInputs) {
  BeginWith(0);
  Connect()->Serve(ResultOf);
  const std::string call = MapOf(10);
  WaitEnded(call);
  ASSERT_TRUE(Put(call, {{3, "again", ""}, {10, "x", ""}}).ok());
  WaitEnded(call);
  EXPECT_EQ(Info(call)->succeeded, 11u);
  EXPECT_EQ(Info(call)->total, 11u) << "input 3 was put twice";
  Restart();
  auto worker = Connect();
  worker->Serve(ResultOf);
  ASSERT_TRUE(Put(call, {{11, "x", ""}}).ok());
  WaitEnded(call);
  OutputsQuery query = QueryOf(call);
  query.start_idx.reset();
  auto page = Outputs(query);
  ASSERT_TRUE(page.ok()) << page.status();
  std::set<uint32_t> got;
  for (const OutputView& output : page->outputs) {
    EXPECT_EQ(*output.result, "result of " + output.input_id);
    got.insert(output.idx);
  }
  EXPECT_EQ(got.size(), 12u);
}

// That a call rests is on its way into a journal that has much to write when its next input comes: what is
// put then outlives a kill.
TEST_F(RestTest, WhatIsPutWhileACallGoesToRestIsNotLost) {
  BeginWith(0);
  for (uint64_t round = 1; round <= 5; ++round) {
    FakeWorker* worker = Connect(Hello(round));
    worker->Serve(ResultOf);
    std::atomic<bool> over{false};
    std::thread writer([&] {
      while (!over) Map(std::string(size_t{8} << 20, 'x'));
    });
    const std::string call = MapOf(0);
    OutputsQuery query = QueryOf(call);
    query.start_idx.reset();
    query.max_values = 1;
    uint32_t idx = 0;
    for (; idx < 4; ++idx) {
      EXPECT_TRUE(Put(call, {{idx, "x", ""}}).ok());
      auto page = Outputs(query);
      EXPECT_TRUE(page.ok()) << page.status();
      if (page.ok()) query.last_entry_id = page->last_entry_id;
    }
    worker->StopServing();
    EXPECT_TRUE(Put(call, {{idx, "x", ""}}).ok());
    over = true;
    writer.join();
    Restart();
    ASSERT_EQ(Info(call)->pending, 1u) << "an input that was acknowledged is gone";
  }
}

TEST_F(RestTest, OnlyTheOwnerFindsACallThatRests) {
  BeginWith(0);
  Connect()->Serve(ResultOf);
  const std::string call = Spawn("x");
  WaitEnded(call);
  OutputsQuery query = QueryOf(call);
  query.scope.workspace_id = "ac-2";
  EXPECT_EQ(Outputs(query).status().code(), Code::kNotFound);
  query = QueryOf(call);
  query.call_id[5] ^= 1;  // the number is right, the rest isn't
  EXPECT_EQ(Outputs(query).status().code(), Code::kNotFound);
  ExpectResults({call});
}

TEST_F(RestTest, AnAnswerNobodyWaitsForHoldsNoCall) {
  BeginWith(0);
  Connect()->Serve(ResultOf);
  const std::string call = Spawn("x");
  WaitEnded(call);
  for (int i = 0; i < 50; ++i) {
    auto asked = engine_->GetOutputs(QueryOf(call), [](Result<OutputsPage>) {});
    asked.reset();
  }
  ExpectResults({call});
}

// A page of the journal at a time: none is lost or doubled, whatever is in memory.
TEST_F(RestTest, AMapIsReadWholeWithHardlyAnyOfItInMemory) {
  BeginWith(0, 2000);
  Connect()->Serve(ResultOf);
  const std::string call = MapOf(3000);
  std::set<uint32_t> got;
  OutputsQuery query = QueryOf(call);
  query.start_idx.reset();
  while (got.size() < 3000) {
    auto page = Outputs(query);
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_NE(page->last_entry_id, query.last_entry_id);
    for (const OutputView& output : page->outputs) {
      EXPECT_TRUE(got.insert(output.idx).second);
      EXPECT_EQ(*output.result, "result of " + output.input_id);
    }
    query.last_entry_id = page->last_entry_id;
  }
  query = QueryOf(call);
  query.start_idx = 1234, query.end_idx = 1240;
  EXPECT_EQ(Outputs(query)->outputs.size(), 7u);
}

// Cancelling, too, takes turns with others: who asks when it has begun is answered before it is over.
TEST_F(RestTest, ALargeCallIsCancelledInSlices) {
  BeginWith(10);
  const std::string call = MapOf(20'000);
  std::promise<Result<CallInfo>> meanwhile;
  engine_->CancelCall(Scope(), call, false, [&](const Status& status) {
    EXPECT_TRUE(status.ok()) << status;
    engine_->GetCallInfo(Scope(), call, [&](Result<CallInfo> info) { meanwhile.set_value(std::move(info)); });
  });
  EXPECT_GT(meanwhile.get_future().get()->pending, 0u) << "all of it was done before anybody else had a turn";
  WaitEnded(call);
  EXPECT_EQ(Info(call)->cancelled, 20'000u);
}

// Ended calls cost a part of what they take while they wait.
TEST_F(RestTest, EndedCallsLeaveTheMemory) {
  BeginWith(100);
  FakeWorker* worker = Connect();
  const auto in_use = [] {
    const auto info = ::mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const auto spawn = [&](size_t count) {
    std::vector<std::string> calls;
    for (size_t i = 0; i < count; ++i) calls.push_back(Map("x"));
    return calls;
  };
  const size_t before = in_use();
  std::vector<std::string> calls = spawn(10'000);
  const size_t queued = in_use() - before;
  if (queued == 0) GTEST_SKIP() << "this allocator (a sanitizer's) doesn't tell what is in use";
  worker->Serve(ResultOf);
  for (const std::string& call : calls) WaitEnded(call);
  const size_t once = in_use();  // what is there once and for all, too
  for (const std::string& call : spawn(10'000)) WaitEnded(call);
  const size_t twice = in_use();
  EXPECT_LT(twice, once + queued / 3) << "another 10,000 ended calls stay in memory";
}

}  // namespace
}  // namespace lydian::control
