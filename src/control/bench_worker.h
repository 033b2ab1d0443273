// For benchmarks of the call engine: a worker that starts every task and answers every lease at once, with a
// result of a chosen size. Everything runs on the engine's strand.
#pragma once

#include <functional>
#include <string>

#include "control/call_engine.h"

namespace lydian::control {

class BenchWorker {
 public:
  // `on_leases` hears how many came.
  BenchWorker(CallEngine* engine, uint64_t epoch, std::string result,
              std::function<void(int)> on_leases = nullptr)
      : registry_(engine->registry()), result_(std::move(result)), on_leases_(std::move(on_leases)) {
    session_ = registry_.Open([this](const ToWorker& message) { Answer(message); }, [](Status) {});
    FromWorker message;
    WorkerHello* hello = message.mutable_hello();
    hello->set_protocol(2);
    hello->set_worker_id("wk-1");
    hello->set_epoch(epoch);
    hello->mutable_capacity()->set_memory_bytes(uint64_t{64} << 30);
    hello->mutable_capacity()->set_milli_cpu(64'000);
    registry_.Deliver(session_, std::move(message));
    FromWorker nothing;
    nothing.mutable_holdings()->set_last(true);
    registry_.Deliver(session_, std::move(nothing));
  }

 private:
  void Answer(const ToWorker& message) {
    FromWorker back;
    if (message.kind_case() == ToWorker::kStartTask) {
      back.mutable_task()->set_task_id(message.start_task().task_id());
      back.mutable_task()->set_state(TaskUpdate::READY);
    } else if (message.kind_case() == ToWorker::kLeases) {
      for (const Lease& lease : message.leases().leases()) {
        Output* output = back.mutable_outputs()->add_outputs();
        output->set_input_id(lease.input_id());
        output->set_attempt(lease.attempt());
        output->set_epoch(lease.epoch());
        output->set_task_id(lease.task_id());
        output->set_status(1);
        output->set_result(result_);
      }
    } else {
      return;
    }
    registry_.Deliver(session_, std::move(back));
    if (on_leases_ && message.leases().leases_size() > 0) on_leases_(message.leases().leases_size());
  }

  WorkerRegistry& registry_;
  const std::string result_;
  const std::function<void(int)> on_leases_;
  uint64_t session_ = 0;
};

}  // namespace lydian::control
