#include "rpc/channel.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

#include "rpc/byte_buffer.h"
#include "rpc/grpc_process.h"

namespace lydian::rpc {
namespace {

// gRPC keeps one pool of connections per process and target; a channel argument that differs makes a
// channel's own.
grpc::ChannelArguments Arguments() {
  static std::atomic<int> count{0};
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 64 << 10);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetString(GRPC_ARG_SERVICE_CONFIG, "{}");
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt("lydian.channel", count.fetch_add(1));
  return arguments;
}

std::chrono::system_clock::time_point ToSystem(SteadyTime deadline) {
  const auto left = deadline - std::chrono::steady_clock::now();
  return std::chrono::system_clock::now() +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(left);
}

Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return {};
  const int code = status.error_code();
  return {code >= 1 && code <= 16 ? static_cast<Code>(code) : Code::kUnknown, status.error_message()};
}

// The call and gRPC's reactor for it. gRPC holds it (through self_) until OnDone.
class CallImpl final : public ClientCall, public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit CallImpl(ClientCallbacks callbacks) : callbacks_(std::move(callbacks)) {}

  void Begin(grpc::GenericStub& stub, const std::string& method, std::shared_ptr<CallImpl> self) {
    self_ = std::move(self);
    stub.PrepareBidiStreamingCall(&context_, method, {}, this);
    AddHold();  // for writes from outside; given back when reading has ended
    StartRead(&incoming_);
    StartCall();
  }
  grpc::ClientContext& context() { return context_; }

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
    {
      std::lock_guard lock(mutex_);
      hold_reading_ = hold;
      if (hold || !read_waits_) return;
      read_waits_ = false;
    }
    incoming_.Clear();
    StartRead(&incoming_);  // the hold keeps the call until reading has ended
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
    context_.TryCancel();
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) {
      Task drained;
      {
        std::lock_guard lock(mutex_);
        ended_ = true;
        buffered_ = 0;
        queue_.clear();
        drained.swap(on_drained_);
      }
      if (drained) drained();
      RemoveHold();
      return;
    }
    if (callbacks_.on_message) {
      std::string message;
      message.reserve(incoming_.Length());
      std::vector<grpc::Slice> slices;
      if (incoming_.Dump(&slices).ok()) {
        for (const grpc::Slice& slice : slices) message.append(View(slice));
      }
      callbacks_.on_message(std::move(message));
    }
    {
      std::lock_guard lock(mutex_);
      if (hold_reading_) {
        read_waits_ = true;
        return;
      }
    }
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
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
  }

  // The operations begin under the mutex, so that none begins once reading has ended and the hold may be
  // gone. Reactions run on gRPC's own threads, never inside the call that begins an operation.
  void Pump() {
    std::lock_guard lock(mutex_);
    if (write_in_flight_ || ended_ || writes_done_sent_) return;
    if (queue_.empty()) {
      if (!half_closed_) return;
      writes_done_sent_ = true;
      return StartWritesDone();
    }
    std::string message = std::move(queue_.front());
    queue_.pop_front();
    in_flight_bytes_ = message.size();
    outgoing_ = ToByteBuffer(std::move(message));
    write_in_flight_ = true;
    if (queue_.empty() && half_closed_) {
      writes_done_sent_ = true;
      StartWriteLast(&outgoing_, {});
    } else {
      StartWrite(&outgoing_);
    }
  }

  void OnDone(const grpc::Status& status) override {
    Metadata trailers;
    for (const auto& [name, value] : context_.GetServerTrailingMetadata()) {
      trailers.emplace_back(std::string(name.data(), name.size()), std::string(value.data(), value.size()));
    }
    ClientCallbacks callbacks = std::move(callbacks_);
    callbacks_ = {};
    if (callbacks.on_done) callbacks.on_done(FromGrpc(status), std::move(trailers));
    callbacks = {};
    std::shared_ptr<CallImpl> self = std::move(self_);
  }

  ClientCallbacks callbacks_;
  grpc::ClientContext context_;
  std::shared_ptr<CallImpl> self_;
  grpc::ByteBuffer incoming_, outgoing_;
  mutable std::mutex mutex_;  // guards all below
  std::deque<std::string> queue_;
  size_t buffered_ = 0, in_flight_bytes_ = 0, drain_limit_ = 0;
  Task on_drained_;
  bool ended_ = false, half_closed_ = false, write_in_flight_ = false, writes_done_sent_ = false;
  bool hold_reading_ = false, read_waits_ = false;
};

class ChannelImpl final : public Channel {
 public:
  explicit ChannelImpl(const std::string& target)
      : stub_(grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), Arguments())) {}

  std::shared_ptr<ClientCall> Start(std::string_view full_method, const Metadata& metadata,
                                    ClientCallbacks callbacks, SteadyTime deadline) override {
    auto call = std::make_shared<CallImpl>(std::move(callbacks));
    for (const auto& [name, value] : metadata) call->context().AddMetadata(name, value);
    if (deadline != SteadyTime::max()) call->context().set_deadline(ToSystem(deadline));
    call->Begin(stub_, std::string(full_method), call);
    return call;
  }

 private:
  grpc::GenericStub stub_;
};

}  // namespace

std::unique_ptr<Channel> Channel::Create(const std::string& target) {
  HoldGrpc();
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
