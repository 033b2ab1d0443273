// What one caller, function or workspace may ask of the engine, and that its neighbours don't feel it.
#include <fstream>

#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class LimitsTest : public EngineTest {
 protected:
  static FunctionInfo FunctionOf(const std::string& id, const std::string& workspace) {
    FunctionInfo info = Function(id);
    info.workspace_id = workspace;
    info.name = id;
    info.app_id = "ap-of-" + workspace;
    return info;
  }
  void Add(const std::string& id, const std::string& workspace) {
    engine_->PutFunction(FunctionOf(id, workspace), false);
    engine_->ActivateApp("ap-of-" + workspace);
  }
  Result<CreatedCall> MapOf(const std::string& function, const std::string& workspace) {
    NewCall map;
    map.scope = {workspace, ""};
    map.function_id = function;
    map.call_type = kCallMap;
    return Create(map);
  }
  Status PutSome(const std::string& function, const std::string& workspace, const std::string& call,
                 uint32_t from, uint32_t count, size_t bytes = 1) {
    std::vector<NewInput> inputs;
    for (uint32_t i = from; i < from + count; ++i) inputs.push_back({i, std::string(bytes, 'x'), ""});
    std::promise<Status> promise;
    engine_->PutInputs({workspace, ""}, call, function, std::move(inputs),
                       [&](Result<std::vector<PutInput>> put) { promise.set_value(put.status()); });
    return promise.get_future().get();
  }
  // A generator's call, and the task that works on it.
  std::pair<std::string, std::string> Generator() {
    auto worker = Connect();
    NewCall generator = CallOf("x");
    generator.invocation_type = kSyncLegacy;
    std::string call = Create(generator)->call_id;
    auto task = worker->WaitStart();
    EXPECT_TRUE(task);
    worker->Ready(task->task_id());
    EXPECT_TRUE(worker->WaitLease());
    return {call, task->task_id()};
  }
  Result<DataChunks> Next(const std::string& call, uint64_t behind) {
    std::promise<Result<DataChunks>> got;
    auto asked = engine_->NextChunks(Scope(), call, behind,
                                     [&](Result<DataChunks> chunks) { got.set_value(std::move(chunks)); });
    return got.get_future().get();
  }
  static uint64_t Resident() {
    std::ifstream statm("/proc/self/statm");
    uint64_t pages = 0, resident = 0;
    statm >> pages >> resident;
    return resident * 4096;
  }
};

TEST_F(LimitsTest, AHugeRequestIsRefusedBeforeItIsSearched) {
  Begin();
  std::string call = MapOf("fu-1", "ac-1")->call_id;
  auto before = std::chrono::steady_clock::now();
  Status status = PutSome("fu-1", "ac-1", call, 0, 400'000);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("400000 inputs; it may bring 10000"), std::string::npos) << status;
  EXPECT_LT(std::chrono::steady_clock::now() - before, 1s);
  NewCall huge = CallOf("");
  huge.call_type = kCallMap;
  huge.inputs.resize(400'000);
  EXPECT_EQ(Create(huge).status().code(), Code::kInvalidArgument);
  EXPECT_TRUE(PutSome("fu-1", "ac-1", call, 0, 10'000).ok());
}

TEST_F(LimitsTest, ARefusedPutLeavesNothingBehind) {
  EngineOptions options = Options();
  options.max_queued_inputs = 40;
  Begin(Function(), options);
  std::string call = MapOf("fu-1", "ac-1")->call_id;
  EXPECT_EQ(PutSome("fu-1", "ac-1", call, 0, 11).code(), Code::kResourceExhausted);
  EXPECT_EQ(PutSome("fu-1", "ac-1", call, 50'000'001, 1).code(), Code::kInvalidArgument);
  auto worker = Connect();
  worker->Serve([](const Lease& lease) { return lease.input(); });
  ASSERT_TRUE(PutSome("fu-1", "ac-1", call, 0, 10).ok());
  for (int64_t idx : {0, 9}) {  // they are fresh, although they were named before
    OutputsQuery query = QueryOf(call);
    query.start_idx = query.end_idx = static_cast<int32_t>(idx);
    EXPECT_EQ(Outputs(query)->outputs.size(), 1u) << idx;
  }
}

TEST_F(LimitsTest, AFarIndexCostsWhatANearOneCosts) {
  Begin();
  Status status;
  uint64_t before = Resident();
  for (int i = 0; i < 200 && status.ok(); ++i) {
    NewCall map = CallOf("x");
    map.call_type = kCallMap;
    map.inputs[0].idx = 50'000'000;
    status = Create(map).status();
  }
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_LT(Resident(), before + (uint64_t{64} << 20));
  Restart();
  EXPECT_LT(Resident(), before + (uint64_t{64} << 20));
}

TEST_F(LimitsTest, WhatIsFullIsOnlyItsOwnersShare) {
  EngineOptions options = Options();
  options.max_queued_inputs = 40;
  Begin(Function(), options);
  Add("fu-2", "ac-1");
  Add("fu-3", "ac-1");
  Add("fu-other", "ac-2");
  std::string first = MapOf("fu-1", "ac-1")->call_id, second = MapOf("fu-2", "ac-1")->call_id,
              third = MapOf("fu-3", "ac-1")->call_id, other = MapOf("fu-other", "ac-2")->call_id;
  ASSERT_TRUE(PutSome("fu-1", "ac-1", first, 0, 10).ok());
  Status full = PutSome("fu-1", "ac-1", first, 10, 1);
  EXPECT_EQ(full.code(), Code::kResourceExhausted);
  EXPECT_NE(full.message().find("of function f are queued (10, 0 MiB)"), std::string::npos) << full;
  ASSERT_TRUE(PutSome("fu-2", "ac-1", second, 0, 10).ok()) << "another function of the workspace has room";
  full = PutSome("fu-3", "ac-1", third, 0, 1);
  EXPECT_EQ(full.code(), Code::kResourceExhausted);
  EXPECT_NE(full.message().find("of this workspace"), std::string::npos) << full;
  EXPECT_TRUE(PutSome("fu-other", "ac-2", other, 0, 10).ok()) << "so has another workspace";
  Restart();
  EXPECT_EQ(PutSome("fu-3", "ac-1", third, 0, 1).code(), Code::kResourceExhausted) << "counted again";
  ASSERT_TRUE(Cancel(first).ok());
  ASSERT_TRUE(Poll(first).ok());
  // The call may answer before its last input has left the count: whoever is refused tries again, as clients
  // do.
  bool room = false;
  for (int i = 0; i < 2000 && !room; ++i) room = PutSome("fu-3", "ac-1", third, 0, 10).ok();
  EXPECT_TRUE(room) << "what is done makes room";
}

TEST_F(LimitsTest, BytesCountAsInputsDo) {
  EngineOptions options = Options();
  options.max_queued_bytes = 4000;
  Begin(Function(), options);
  Add("fu-other", "ac-2");
  std::string call = MapOf("fu-1", "ac-1")->call_id, other = MapOf("fu-other", "ac-2")->call_id;
  EXPECT_EQ(PutSome("fu-1", "ac-1", call, 0, 1, 1001).code(), Code::kResourceExhausted);
  EXPECT_TRUE(PutSome("fu-1", "ac-1", call, 0, 1, 1000).ok());
  EXPECT_EQ(PutSome("fu-1", "ac-1", call, 1, 1, 1).code(), Code::kResourceExhausted);
  EXPECT_TRUE(PutSome("fu-other", "ac-2", other, 0, 1, 1000).ok());
}

TEST_F(LimitsTest, EveryWorkspaceHasALittleOfItsOwn) {
  EngineOptions options = Options();
  options.max_queued_inputs = 400;
  Begin(Function(), options);
  for (const char* workspace : {"ac-a", "ac-b"}) {
    for (const char* name : {"1", "2"}) {
      std::string function = std::string("fu-") + workspace + name;
      Add(function, workspace);
      ASSERT_TRUE(PutSome(function, workspace, MapOf(function, workspace)->call_id, 0, 100).ok());
    }
  }
  std::string call = MapOf("fu-1", "ac-1")->call_id;
  EXPECT_TRUE(PutSome("fu-1", "ac-1", call, 0, 4).ok()) << "all is full, by others";
  EXPECT_EQ(PutSome("fu-1", "ac-1", call, 4, 1).code(), Code::kResourceExhausted);
}

TEST_F(LimitsTest, GeneratorDataIsBoundedAndReadingItMakesRoom) {
  EngineOptions options = Options();
  options.max_chunk_bytes = (uint64_t{160} << 20) + 8192;  // half of it a workspace's
  Begin(Function(), options);
  const auto [call, task] = Generator();
  const std::string chunk(size_t{8} << 20, 'c');
  for (uint64_t i = 1; i <= 10; ++i) ASSERT_TRUE(PutChunks(call, task, {{i, chunk}}).ok()) << i;
  Status full = PutChunks(call, task, {{11, chunk}});
  EXPECT_EQ(full.code(), Code::kResourceExhausted);
  EXPECT_NE(full.message().find("hold 80 MiB that nobody has read"), std::string::npos) << full;
  // The same chunk once more (a retry of the generator) takes the place of the first.
  auto chunks = Next(call, 9);
  ASSERT_TRUE(chunks.ok());
  EXPECT_EQ(chunks->chunks[0].first, 10u);
  EXPECT_TRUE(PutChunks(call, task, {{11, chunk}}).ok()) << "the first ones have been read";
}

TEST_F(LimitsTest, GeneratorDataCountsBeforeItIsInTheJournal) {
  EngineOptions options = Options();
  options.max_chunk_bytes = (uint64_t{160} << 20) + 8192;  // half of it a workspace's
  Begin(Function(), options);
  const auto [call, task] = Generator();
  std::vector<std::future<Status>> put;
  for (uint64_t i = 1; i <= 40; ++i) {
    auto answered = std::make_shared<std::promise<Status>>();
    put.push_back(answered->get_future());
    engine_->PutChunks(Scope(), call, task, {{i, std::string(size_t{8} << 20, 'c')}},
                       [answered](Status status) { answered->set_value(std::move(status)); });
  }
  size_t taken = 0;
  for (auto& answer : put) taken += answer.get().ok();
  EXPECT_EQ(taken, 10u);
}

TEST_F(LimitsTest, WhatAGeneratorsReaderHasIsNotReadBackAfterARestart) {
  EngineOptions options = Options();
  options.max_chunk_bytes = uint64_t{80} << 20;
  Begin(Function(), options);
  const auto [call, task] = Generator();
  const std::string chunk(size_t{4} << 20, 'c');
  uint64_t last = 0;
  for (; last < 60; ++last) {
    ASSERT_TRUE(PutChunks(call, task, {{last + 1, chunk}}).ok()) << last;
    auto read = Next(call, last);
    ASSERT_TRUE(read.ok());
    ASSERT_EQ(read->chunks[0].first, last + 1);
  }
  const uint64_t before = Resident();
  Restart();
  EXPECT_LT(Resident(), before + (uint64_t{40} << 20)) << "240 MiB have gone through";
  EXPECT_TRUE(PutChunks(call, "", {{last + 1, chunk}}).ok()) << "its reader is not back yet";
  EXPECT_EQ(Next(call, last)->chunks[0].first, last + 1);
}

TEST_F(LimitsTest, EmptyDataOfGeneratorsCostsToo) {
  EngineOptions options = Options();
  options.max_chunk_bytes = 20'000;
  Begin(Function(), options);
  const auto [call, task] = Generator();
  std::vector<std::pair<uint64_t, std::string>> chunks;
  for (uint64_t i = 1; i <= 100; ++i) chunks.emplace_back(i, "");
  EXPECT_EQ(PutChunks(call, task, chunks).code(), Code::kResourceExhausted);
  chunks.resize(40);
  EXPECT_TRUE(PutChunks(call, task, chunks).ok());
}

TEST_F(LimitsTest, ResultsThatAreTooManyAreReadFromTheJournal) {
  EngineOptions options = Options();
  options.max_result_bytes = 10'000;
  Begin(Function(), options);
  auto worker = Connect();
  std::vector<std::string> calls;
  std::string task;
  for (int i = 0; i < 8; ++i) {
    NewCall spawn = CallOf("x");
    spawn.invocation_type = kAsync;
    calls.push_back(Create(spawn)->call_id);
    if (i == 0) {
      auto started = worker->WaitStart();
      ASSERT_TRUE(started);
      worker->Ready(started->task_id());
    }
    auto lease = worker->WaitLease();
    ASSERT_TRUE(lease);
    worker->Succeed(*lease, std::string(4000, static_cast<char>('a' + i)));
    ASSERT_TRUE(worker->WaitAck(lease->input_id()));
  }
  for (int twice = 0; twice < 2; ++twice) {
    for (int i = 0; i < 8; ++i) {
      auto page = Poll(calls[static_cast<size_t>(i)]);
      ASSERT_TRUE(page.ok()) << page.status();
      ASSERT_EQ(page->outputs.size(), 1u);
      ASSERT_NE(page->outputs[0].result, nullptr);
      EXPECT_EQ(*page->outputs[0].result, std::string(4000, static_cast<char>('a' + i)));
    }
    Restart();
  }
}

// More is acknowledged than is kept, and what is older is still being read: then a call goes in the moment in
// which its output is fetched.
TEST_F(LimitsTest, ACallMayBeDroppedByTheQuestionThatItsOutputAnswers) {
  Begin();
  FakeWorker* worker = Connect();
  // Its output is delivered to a question that waits for it, which clears it.
  const auto fetch = [&](const std::string& call, const Lease& lease, const std::string& result) {
    OutputsQuery query = QueryOf(call);
    query.clear_on_success = true;
    std::promise<Result<OutputsPage>> promise;
    auto asked =
        engine_->GetOutputs(query, [&](Result<OutputsPage> page) { promise.set_value(std::move(page)); });
    worker->Succeed(lease, result);
    return promise.get_future().get();
  };
  const std::string generator = Map("x");
  const std::string task = worker->WaitStart()->task_id();
  worker->Ready(task);
  const Lease first = *worker->WaitLease();
  ASSERT_TRUE(PutChunks(generator, task, {{1, "chunk"}}).ok());
  ASSERT_TRUE(Next(generator, 0).ok());
  ASSERT_TRUE(fetch(generator, first, std::string(size_t{65} << 20, 'r')).ok());
  for (int i = 0; i < 3; ++i) {
    const std::string call = Map("x");
    auto page = fetch(call, *worker->WaitLease(), "ok");
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_EQ(page->outputs.size(), 1u);
    EXPECT_EQ(Poll(call).status().code(), Code::kNotFound);
  }
}

TEST_F(LimitsTest, AParentOfAnotherWorkspaceIsNoParent) {
  Begin();
  Add("fu-other", "ac-2");
  std::string call = Map("x");
  auto graph = [&](const std::string& workspace, const std::string& of) {
    std::promise<Result<CallGraph>> promise;
    engine_->GetCallGraph({workspace, ""}, of, [&](Result<CallGraph> got) { promise.set_value(got); });
    return promise.get_future().get();
  };
  auto own = graph("ac-1", call);
  ASSERT_TRUE(own.ok());
  ASSERT_EQ(own->inputs.size(), 1u);
  NewCall child = CallOf("y");
  child.scope = {"ac-2", ""};
  child.function_id = "fu-other";
  child.parent_input_id = own->inputs[0].input_id;
  ASSERT_TRUE(Create(child).ok());
  EXPECT_EQ(graph("ac-1", call)->calls.size(), 1u) << "another workspace's call hangs in the graph";
  child = CallOf("z");
  child.parent_input_id = own->inputs[0].input_id;
  ASSERT_TRUE(Create(child).ok());
  EXPECT_EQ(graph("ac-1", call)->calls.size(), 2u);
}

TEST_F(LimitsTest, StartsOfOneWorkspaceDontHoldUpAnother) {
  Begin();
  Add("fu-other", "ac-2");
  FakeHello hello = Hello();
  hello.hello.mutable_capacity()->set_milli_cpu(2000);
  auto worker = Connect(hello);
  std::vector<std::string> calls;
  for (int i = 0; i < 5; ++i) calls.push_back(Map("x"));
  ASSERT_TRUE(worker->WaitStart());
  ASSERT_TRUE(worker->WaitStart());
  EXPECT_FALSE(worker->WaitStart(50ms)) << "as many at once as there are cores";
  NewCall call = CallOf("y");
  call.scope = {"ac-2", ""};
  call.function_id = "fu-other";
  ASSERT_TRUE(Create(call).ok());
  auto task = worker->WaitStart();
  ASSERT_TRUE(task) << "two containers that don't become ready hold up another workspace";
  EXPECT_EQ(task->function_id(), "fu-other");
}

TEST_F(LimitsTest, CancelledStartsGiveTheirPlacesBackAtOnce) {
  Begin();
  engine_->PutFunction(Function("fu-2"), false);
  FakeHello hello = Hello();
  hello.hello.mutable_capacity()->set_milli_cpu(2000);
  auto worker = Connect(hello);
  std::string first = Map("x"), second = Map("x");
  ASSERT_TRUE(worker->WaitStart());
  ASSERT_TRUE(worker->WaitStart());
  NewCall call = CallOf("y");
  call.function_id = "fu-2";
  ASSERT_TRUE(Create(call).ok());
  EXPECT_FALSE(worker->WaitStart(50ms));
  ASSERT_TRUE(Cancel(first, /*terminate=*/true).ok());
  auto stop = worker->WaitStop();
  ASSERT_TRUE(stop) << "nobody needs the second container any more";
  EXPECT_EQ(stop->mode(), StopTask::KILL);
  EXPECT_FALSE(worker->WaitStop(50ms)) << "the other one is for the other call";
  auto task = worker->WaitStart();
  ASSERT_TRUE(task);
  EXPECT_EQ(task->function_id(), "fu-2");
}

TEST_F(LimitsTest, AWorkspaceHasAShareOfAWorkerOnceThereAreSeveral) {
  std::atomic<size_t> workspaces{1};
  FunctionInfo info = Function();
  info.limits.set_milli_cpu_request(30'000);
  Begin(info);
  engine_->SetWorkspaceCount([&] { return workspaces.load(); });
  auto worker = Connect();
  std::string call = Map("x");
  ASSERT_TRUE(worker->WaitStart()) << "by itself it may have nearly all";
  workspaces = 2;  // no function of the other is known yet
  info = Function("fu-2");
  info.limits.set_milli_cpu_request(30'000);
  engine_->PutFunction(info, false);
  NewCall refused = CallOf("y");
  refused.function_id = "fu-2";
  auto page = Poll(Create(refused)->call_id);
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_NE(page->outputs[0].text.find("of one workspace, while there are several"), std::string::npos)
      << page->outputs[0].text;
}

TEST_F(LimitsTest, WhatIsCancelledLeavesTheBufferItsContainers) {
  FunctionInfo info = Function();
  info.buffer_containers = 1;
  Begin(info);
  auto worker = Connect();
  std::string first = Map("x");
  ASSERT_TRUE(worker->WaitStart());
  ASSERT_TRUE(worker->WaitStart()) << "the buffer";
  std::string second = Map("y");
  ASSERT_TRUE(worker->WaitStart());
  ASSERT_TRUE(Cancel(second, /*terminate=*/true).ok());
  ASSERT_TRUE(worker->WaitStop());
  EXPECT_FALSE(worker->WaitStop(50ms)) << "the first call and the buffer keep theirs";
}

}  // namespace
}  // namespace lydian::control
