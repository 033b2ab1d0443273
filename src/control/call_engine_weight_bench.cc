// What a million calls weigh: resident memory while they wait, when they have ended, and after a restart of
// the engine in either state, which is timed. `control_bench --benchmark_filter=Weight`; minutes.
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>

#include "base/fd.h"
#include "base/ids.h"
#include "control/bench_worker.h"

namespace lydian::control {
namespace {

double ResidentMiB() {
  ::malloc_trim(0);
  std::ifstream statm("/proc/self/statm");
  uint64_t all = 0, resident = 0;
  statm >> all >> resident;
  return static_cast<double>(resident * 4096) / (1 << 20);
}

class Specs : public TaskSpecSource {
 public:
  Result<TaskSpec> MakeTaskSpec(const std::string&) override { return TaskSpec(); }
};

class Weight {
 public:
  Weight() {
    if (!MakeDirs(dir_).ok()) abort();
    logs_ = std::move(*OpenLogStore(dir_ + "/logs.db"));
  }
  ~Weight() {
    Close();
    logs_.reset();
    if (!RemoveTree(dir_).ok()) abort();
  }
  void Open() {
    EngineOptions options;
    options.journal_path = dir_ + "/calls.db";
    options.logs = logs_.get();
    options.max_result_bytes = uint64_t{256} << 20;
    engine_ = std::move(*CallEngine::Open(options));
    engine_->SetTaskSpecSource(&specs_);
    FunctionInfo info;
    info.function_id = "fu-1", info.app_id = "ap-1", info.workspace_id = "ac-1", info.name = "f";
    info.min_containers = info.max_containers = 16;
    engine_->PutFunction(info, false);
    engine_->ActivateApp("ap-1");
  }
  void Close() { engine_.reset(); }

  // `calls` calls as of `.spawn`, with an input of 200 bytes each.
  void Spawn(size_t calls) {
    std::mutex mutex;
    std::condition_variable changed;
    size_t open = 0;
    for (size_t i = 0; i < calls; ++i) {
      NewCall call;
      call.scope.workspace_id = "ac-1";
      call.function_id = "fu-1";
      call.invocation_type = kAsync;
      call.idempotency_key = "tk-1/" + RandomHex(16);
      call.inputs.push_back({0, std::string(200, 'p'), ""});
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return open < 1000; });
      ++open;
      lock.unlock();
      engine_->CreateCall(std::move(call), [&](Result<CreatedCall> created) {
        if (!created.ok()) abort();
        std::lock_guard done(mutex);
        --open;
        changed.notify_all();
      });
    }
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return open == 0; });
  }

  // Until all have ended, with results of 1 KB.
  void Run(size_t calls) {
    std::promise<void> all;
    size_t ended = 0;
    worker_ = std::make_unique<BenchWorker>(engine_.get(), ++epoch_, std::string(1000, 'r'), [&](int leases) {
      ended += static_cast<size_t>(leases);
      if (ended == calls) all.set_value();
    });
    all.get_future().wait();
    std::promise<void> settled;  // the last outputs are in the journal
    engine_->TaskById("ta-none", [&](Result<TaskView>) { settled.set_value(); });
    settled.get_future().wait();
  }

 private:
  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-weight-" + RandomHex(6));
  Specs specs_;
  std::unique_ptr<LogStore> logs_;
  std::unique_ptr<CallEngine> engine_;
  std::unique_ptr<BenchWorker> worker_;
  uint64_t epoch_ = 0;
};

double Seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void WeightOfCalls(benchmark::State& state) {
  const auto calls = static_cast<size_t>(state.range(0));
  for (auto _ : state) {
    const double idle = ResidentMiB();
    Weight weight;
    weight.Open();
    weight.Spawn(calls);
    state.counters["queued_MiB"] = ResidentMiB() - idle;
    weight.Close();
    state.counters["restart_queued_s"] = Seconds([&] { weight.Open(); });
    state.counters["queued_again_MiB"] = ResidentMiB() - idle;
    weight.Run(calls);
    state.counters["ended_MiB"] = ResidentMiB() - idle;
    weight.Close();
    state.counters["restart_ended_s"] = Seconds([&] { weight.Open(); });
    state.counters["ended_again_MiB"] = ResidentMiB() - idle;
  }
}
BENCHMARK(WeightOfCalls)->Arg(1'000'000)->Iterations(1)->Unit(benchmark::kSecond);

}  // namespace
}  // namespace lydian::control
