#include "rpc/channel.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

#include "base/log.h"
#include "rpc/byte_buffer.h"
#include "rpc/grpc_arguments.h"
#include "rpc/poller.h"

namespace lydian::rpc {
namespace {

grpc_channel* MakeChannel(const std::string& target) {
  CompletionQueue();  // starts gRPC
  static std::atomic<int> count{0};
  std::array arguments = {
      IntegerArgument(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, -1),
      IntegerArgument(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1),
      IntegerArgument(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50),
      IntegerArgument(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50),
      IntegerArgument(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200),
      IntegerArgument(GRPC_ARG_MAX_METADATA_SIZE, 64 << 10),
      IntegerArgument(GRPC_ARG_ENABLE_RETRIES, 0),
      IntegerArgument(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
      IntegerArgument(GRPC_ARG_ENABLE_CHANNELZ, 0),
      StringArgument(GRPC_ARG_SERVICE_CONFIG, "{}"),
      IntegerArgument(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
      // gRPC keeps one pool of connections per process and target; an argument that differs makes a channel's
      // own.
      IntegerArgument("lydian.channel", count.fetch_add(1)),
  };
  const grpc_channel_args args = {arguments.size(), arguments.data()};
  grpc_channel_credentials* insecure = grpc_insecure_credentials_create();
  grpc_channel* channel = grpc_channel_create(target.c_str(), insecure, &args);
  grpc_channel_credentials_release(insecure);
  return channel;
}

gpr_timespec ToGrpc(SteadyTime deadline) {
  if (deadline == SteadyTime::max()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  const auto left = std::chrono::ceil<Millis>(deadline - std::chrono::steady_clock::now());
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(left.count(), GPR_TIMESPAN));
}

// One call. It holds itself (through self_) until gRPC has nothing more to say of it. Operations of gRPC
// begin under the mutex, from any thread; their ends come on the poller's thread, never inside the call that
// begins one.
class CallImpl final : public ClientCall {
 public:
  CallImpl(grpc_call* call, ClientCallbacks callbacks) : call_(call), callbacks_(std::move(callbacks)) {
    grpc_metadata_array_init(&headers_);
    grpc_metadata_array_init(&trailers_);
  }
  ~CallImpl() override {
    grpc_metadata_array_destroy(&headers_);
    grpc_metadata_array_destroy(&trailers_);
    if (call_ != nullptr) grpc_call_unref(call_);
  }

  void Begin(const Metadata& metadata, std::shared_ptr<CallImpl> self) {
    Fields fields;
    for (const auto& [name, value] : metadata) fields.Add(name, value);
    std::array<grpc_op, 2> start{};
    start[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    start[0].data.send_initial_metadata.metadata = fields.data();
    start[0].data.send_initial_metadata.count = fields.size();
    start[1].op = GRPC_OP_RECV_INITIAL_METADATA;
    start[1].data.recv_initial_metadata.recv_initial_metadata = &headers_;
    grpc_op end{};
    end.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    end.data.recv_status_on_client.trailing_metadata = &trailers_;
    end.data.recv_status_on_client.status = &code_;
    end.data.recv_status_on_client.status_details = text_.out();
    std::lock_guard lock(mutex_);
    self_ = std::move(self);
    StartLocked(&end, 1, &on_status_);
    StartLocked(start.data(), start.size(), &on_started_);
    ReadLocked();
  }

  void Write(std::string message) override {
    {
      std::lock_guard lock(mutex_);
      if (ended_ || half_closed_) return;
      buffered_ += message.size();
      queue_.push_back(std::move(message));
    }
    Pump();
  }
  size_t buffered() const override {
    std::lock_guard lock(mutex_);
    return buffered_;
  }
  void OnDrained(size_t limit, Task fn) override {
    {
      std::lock_guard lock(mutex_);
      if (buffered_ >= limit && !ended_) {
        on_drained_.swap(fn);
        drain_limit_ = limit;
        return;
      }
    }
    if (fn) fn();
  }
  void HoldReading(bool hold) override {
    std::lock_guard lock(mutex_);
    hold_reading_ = hold;
    if (hold || !std::exchange(read_waits_, false)) return;
    ReadLocked();
    --pending_;  // what the waiting counted as
  }
  void WritesDone() override {
    {
      std::lock_guard lock(mutex_);
      if (half_closed_) return;
      half_closed_ = true;
    }
    Pump();
  }
  void Cancel() override {
    HoldReading(false);  // or the end would never be read
    std::lock_guard lock(mutex_);
    if (call_ != nullptr) grpc_call_cancel(call_, nullptr);
  }

 private:
  void StartLocked(const grpc_op* ops, size_t count, Waiter* waiter) {
    ++pending_;
    StartBatch(call_, ops, count, waiter);
  }
  void ReadLocked() {
    grpc_op read{};
    read.op = GRPC_OP_RECV_MESSAGE;
    read.data.recv_message.recv_message = incoming_.out();
    StartLocked(&read, 1, &on_read_);
  }

  void ReadDone(bool ok) {
    if (!ok || incoming_.get() == nullptr) {
      Task drained;
      {
        std::lock_guard lock(mutex_);
        ended_ = true;
        buffered_ = 0;
        queue_.clear();
        drained.swap(on_drained_);
      }
      if (drained) drained();
      return Settle();
    }
    if (callbacks_.on_message) {
      const Slice slice = incoming_.Contiguous();
      callbacks_.on_message(std::string(View(slice.get())));
    }
    {
      std::lock_guard lock(mutex_);
      if (hold_reading_) {
        read_waits_ = true;
        ++pending_;  // the call stays until its end has been read
      } else {
        ReadLocked();
      }
    }
    Settle();
  }

  void WriteDone(bool ok) {
    Task drained;
    {
      std::lock_guard lock(mutex_);
      write_in_flight_ = false;
      if (!ended_) buffered_ -= in_flight_bytes_;
      if (!ok) queue_.clear();
      if (on_drained_ && buffered_ < drain_limit_) drained.swap(on_drained_);
    }
    if (drained) drained();
    Pump();
    Settle();
  }

  void Pump() {
    std::lock_guard lock(mutex_);
    if (write_in_flight_ || ended_ || writes_done_sent_) return;
    if (queue_.empty() && !half_closed_) return;
    std::array<grpc_op, 2> ops{};
    size_t count = 0;
    in_flight_bytes_ = 0;
    if (!queue_.empty()) {
      std::string message = std::move(queue_.front());
      queue_.pop_front();
      in_flight_bytes_ = message.size();
      outgoing_ = ByteBuffer(std::move(message));
      ops[count].op = GRPC_OP_SEND_MESSAGE;
      ops[count++].data.send_message.send_message = outgoing_.get();
    }
    if (queue_.empty() && half_closed_) {
      writes_done_sent_ = true;
      ops[count++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    }
    write_in_flight_ = true;
    StartLocked(ops.data(), count, &on_written_);
  }

  void Started(bool /*ok*/) { Settle(); }
  void StatusDone(bool /*ok*/) { Settle(); }

  // After the end of an operation: is it the last one? The reading goes on until the end of the call, so none
  // begins after it.
  void Settle() {
    {
      std::lock_guard lock(mutex_);
      if (--pending_ != 0) return;
    }
    Metadata trailers;
    for (size_t i = 0; i < trailers_.count; ++i) {
      trailers.emplace_back(View(trailers_.metadata[i].key), View(trailers_.metadata[i].value));
    }
    Status status;
    if (code_ != GRPC_STATUS_OK) {
      status = {code_ >= 1 && code_ <= 16 ? static_cast<Code>(code_) : Code::kUnknown,
                std::string(View(text_.get()))};
    }
    std::shared_ptr<CallImpl> self;
    {
      std::lock_guard lock(mutex_);
      self = std::move(self_);
      grpc_call_unref(std::exchange(call_, nullptr));
    }
    ClientCallbacks callbacks = std::move(callbacks_);
    callbacks_ = {};
    if (callbacks.on_done) callbacks.on_done(std::move(status), std::move(trailers));
  }

  grpc_call* call_;  // while operations are pending
  ClientCallbacks callbacks_;
  ByteBuffer incoming_, outgoing_;
  grpc_metadata_array headers_, trailers_;  // these three are written by gRPC
  grpc_status_code code_ = GRPC_STATUS_UNKNOWN;
  Slice text_;
  MemberWaiter<CallImpl, &CallImpl::Started> on_started_{this};
  MemberWaiter<CallImpl, &CallImpl::ReadDone> on_read_{this};
  MemberWaiter<CallImpl, &CallImpl::WriteDone> on_written_{this};
  MemberWaiter<CallImpl, &CallImpl::StatusDone> on_status_{this};

  mutable std::mutex mutex_;  // guards all below, and the beginning of operations
  std::shared_ptr<CallImpl> self_;
  int pending_ = 0;  // operations begun and not ended
  std::deque<std::string> queue_;
  size_t buffered_ = 0, in_flight_bytes_ = 0, drain_limit_ = 0;
  Task on_drained_;
  bool ended_ = false, half_closed_ = false, write_in_flight_ = false, writes_done_sent_ = false;
  bool hold_reading_ = false, read_waits_ = false;
};

class ChannelImpl final : public Channel {
 public:
  explicit ChannelImpl(const std::string& target) : channel_(MakeChannel(target)) {}
  ~ChannelImpl() override { grpc_channel_destroy(channel_); }

  std::shared_ptr<ClientCall> Start(std::string_view full_method, const Metadata& metadata,
                                    ClientCallbacks callbacks, SteadyTime deadline) override {
    const Slice method{full_method};
    auto call = std::make_shared<CallImpl>(
        grpc_channel_create_call(channel_, nullptr, GRPC_PROPAGATE_DEFAULTS, CompletionQueue(), method.get(),
                                 nullptr, ToGrpc(deadline), nullptr),
        std::move(callbacks));
    call->Begin(metadata, call);
    return call;
  }

 private:
  grpc_channel* const channel_;
};

}  // namespace

std::unique_ptr<Channel> Channel::Create(const std::string& target) {
  return std::make_unique<ChannelImpl>(target);
}

Result<std::string> Channel::CallBlocking(std::string_view full_method, const std::string& request,
                                          const Metadata& metadata, Millis timeout) {
  struct State {
    std::mutex mutex;  // guards the rest
    std::condition_variable changed;
    std::optional<std::string> message;
    std::optional<Status> status;
  };
  CHECK(!OnPollerThread());  // it would wait for itself
  auto state = std::make_shared<State>();
  ClientCallbacks callbacks;
  callbacks.on_message = [state](std::string message) {
    std::lock_guard lock(state->mutex);
    state->message = std::move(message);
  };
  callbacks.on_done = [state](Status status, Metadata) {
    std::lock_guard lock(state->mutex);
    state->status = std::move(status);
    state->changed.notify_all();
  };
  auto call = Start(full_method, metadata, std::move(callbacks), std::chrono::steady_clock::now() + timeout);
  call->Write(request);
  call->WritesDone();
  std::unique_lock lock(state->mutex);
  state->changed.wait(lock, [&] { return state->status.has_value(); });
  if (!state->status->ok()) return *state->status;
  if (!state->message) return Internal("the call was answered without a message");
  return std::move(*state->message);
}

}  // namespace lydian::rpc
