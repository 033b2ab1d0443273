#include "rpc/poller.h"

#include <absl/synchronization/mutex.h>
#include <grpc/support/log.h>
#include <pthread.h>

#include <string_view>
#include <thread>

#include "base/log.h"

namespace lydian::rpc {
namespace {

thread_local bool t_is_poller = false;

// gRPC prints what it thinks of peers' bytes, with the bytes (which may be a token). It goes to our log, for
// debugging, without them.
void LogOfGrpc(gpr_log_func_args* args) {
  const std::string_view message = args->message == nullptr ? "" : args->message;
  LOG_DEBUG("gRPC",
            {{"says", message.substr(0, message.find(" value="))}, {"at", args->file}, {"line", args->line}});
}

void Serve(grpc_completion_queue* queue) {
  pthread_setname_np(pthread_self(), "rpc-poll");
  t_is_poller = true;
  for (;;) {
    const grpc_event event = grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), nullptr);
    if (event.type != GRPC_OP_COMPLETE) continue;  // the queue is never shut down
    static_cast<Waiter*>(event.tag)->Completed(event.success != 0);
  }
}

}  // namespace

grpc_completion_queue* CompletionQueue() {
  static grpc_completion_queue* const queue = [] {
    gpr_set_log_function(LogOfGrpc);
    // Debian builds the library under gRPC with its checks: every lock of gRPC would be entered into a graph
    // of lock orders, for 4 % of a call.
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    grpc_init();
    grpc_completion_queue* made = grpc_completion_queue_create_for_next(nullptr);
    std::thread(Serve, made).detach();
    return made;
  }();
  return queue;
}

bool OnPollerThread() { return t_is_poller; }

void StartBatch(grpc_call* call, const grpc_op* ops, size_t count, Waiter* waiter) {
  const grpc_call_error error = grpc_call_start_batch(call, ops, count, waiter, nullptr);
  if (error == GRPC_CALL_OK) return;
  LOG_ERROR("gRPC refuses a batch", {{"error", grpc_call_error_to_string(error)}});
  CHECK(error == GRPC_CALL_OK);
}

}  // namespace lydian::rpc
