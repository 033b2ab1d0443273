// Inputs a second through the call engine, journalled: put, leased, finished, delivered; with a worker that
// answers at once. Run it on the disk that counts: TMPDIR=/var/lib build/src/control/control_bench
#include <benchmark/benchmark.h>

#include <atomic>
#include <filesystem>
#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "control/bench_worker.h"

namespace lydian::control {
namespace {

class Specs : public TaskSpecSource {
 public:
  Result<TaskSpec> MakeTaskSpec(const std::string&) override { return TaskSpec(); }
};

struct Bench {
  std::string dir = std::filesystem::temp_directory_path() / ("lydian-bench-" + RandomHex(6));
  Specs specs;
  std::unique_ptr<LogStore> logs;
  std::unique_ptr<CallEngine> engine;
  std::unique_ptr<BenchWorker> worker;

  explicit Bench(uint32_t containers) {
    if (!MakeDirs(dir).ok()) abort();
    logs = std::move(*OpenLogStore(dir + "/logs.db"));
    EngineOptions options;
    options.journal_path = dir + "/calls.db";
    options.logs = logs.get();
    engine = std::move(*CallEngine::Open(options));
    engine->SetTaskSpecSource(&specs);
    FunctionInfo info;
    info.function_id = "fu-1";
    info.app_id = "ap-1";
    info.workspace_id = "ac-1";
    info.name = "f";
    info.min_containers = info.max_containers = containers;
    engine->PutFunction(info, false);
    engine->ActivateApp("ap-1");
    worker = std::make_unique<BenchWorker>(
        engine.get(), 1, "a result of some size, about as large as that of a small function is");
  }
  ~Bench() {
    engine.reset();
    logs.reset();
    Status removed = RemoveTree(dir);
    if (!removed.ok()) abort();
  }
};

// A map of `range(0)` inputs, put in requests of 49 as the client does.
void MapThroughEngine(benchmark::State& state) {
  Bench bench(16);
  const auto total = static_cast<uint32_t>(state.range(0));
  const std::string payload(200, 'p');
  for (auto _ : state) {
    NewCall map;
    map.scope.workspace_id = "ac-1";
    map.function_id = "fu-1";
    map.call_type = kCallMap;
    std::promise<std::string> created;
    bench.engine->CreateCall(map, [&](Result<CreatedCall> call) { created.set_value(call->call_id); });
    std::string call = created.get_future().get();
    std::atomic<uint32_t> put{0};
    for (uint32_t from = 0; from < total; from += 49) {
      std::vector<NewInput> inputs;
      for (uint32_t i = from; i < std::min(from + 49, total); ++i) inputs.push_back({i, payload, ""});
      bench.engine->PutInputs(map.scope, call, "fu-1", std::move(inputs),
                              [&](Result<std::vector<PutInput>> done) {
                                if (!done.ok()) abort();
                                put += static_cast<uint32_t>(done->size());
                              });
    }
    std::string cursor = "0-0";
    for (uint32_t seen = 0; seen < total;) {
      OutputsQuery query;
      query.scope = map.scope;
      query.call_id = call;
      query.timeout = Millis(5000);
      query.last_entry_id = cursor;
      std::promise<OutputsPage> page;
      auto asked =
          bench.engine->GetOutputs(query, [&](Result<OutputsPage> got) { page.set_value(std::move(*got)); });
      OutputsPage got = page.get_future().get();
      seen += static_cast<uint32_t>(got.outputs.size());
      cursor = got.last_entry_id;
    }
  }
  state.SetItemsProcessed(state.iterations() * total);
}
BENCHMARK(MapThroughEngine)
    ->Arg(20'000)
    ->UseRealTime()
    ->MeasureProcessCPUTime()
    ->Unit(benchmark::kMillisecond);

// One call after the other, as `.remote()` does.
void CallThroughEngine(benchmark::State& state) {
  Bench bench(1);
  NewCall call;
  call.scope.workspace_id = "ac-1";
  call.function_id = "fu-1";
  call.inputs.push_back({0, std::string(200, 'p'), ""});
  for (auto _ : state) {
    std::promise<OutputsPage> page;
    std::shared_ptr<void> asked;
    bench.engine->CreateCall(call, [&](Result<CreatedCall> created) {
      OutputsQuery query;
      query.scope = call.scope;
      query.call_id = created->call_id;
      query.timeout = Millis(5000);
      query.clear_on_success = true;
      query.start_idx = query.end_idx = 0;
      asked =
          bench.engine->GetOutputs(query, [&](Result<OutputsPage> got) { page.set_value(std::move(*got)); });
    });
    if (page.get_future().get().outputs.size() != 1) abort();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(CallThroughEngine)->UseRealTime()->MeasureProcessCPUTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lydian::control
