// The one thread of the process that serves gRPC, and gRPC's completion queue that it empties. Private to the
// module.
//
// gRPC's C core, not its C++ callback interface: that one starts two threads at least, which hand the epoll
// set to each other over a futex for every event (some twenty hand-overs a warm call, most of a server's
// CPU). Here the thread that reads a message also runs its handler and writes the answer.
//
// Thread-safety: all functions.
#pragma once

#include <grpc/grpc.h>

namespace lydian::rpc {

// Waits for an operation of gRPC. Alive until Completed has been called.
class Waiter {
 public:
  // On the poller's thread, once for every operation begun with this as its tag.
  virtual void Completed(bool ok) = 0;

 protected:
  ~Waiter() = default;
};

// A waiter that calls a member function.
template <typename T, void (T::*kFunction)(bool ok)>
class MemberWaiter final : public Waiter {
 public:
  explicit MemberWaiter(T* object) : object_(object) {}
  void Completed(bool ok) override { (object_->*kFunction)(ok); }

 private:
  T* const object_;
};

// Starts gRPC and the thread at first use; both stay for the life of the process.
grpc_completion_queue* CompletionQueue();

// Whether this is the poller's thread: there nothing may wait for an answer of gRPC.
bool OnPollerThread();

// Begins a batch; `waiter` is told its end. Never fails: a batch that gRPC refuses is an error of ours.
void StartBatch(grpc_call* call, const grpc_op* ops, size_t count, Waiter* waiter);

}  // namespace lydian::rpc
