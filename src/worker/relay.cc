#include "worker/relay.h"

#include <array>
#include <mutex>
#include <optional>

#include "base/ids.h"
#include "base/log.h"
#include "rpc/budget.h"

namespace lydian::worker {
namespace {

// Control's own UNAVAILABLE, with the stream up, is passed on in the end.
constexpr int kMostTriesWhileUp = 100;
// Of a stream whose reader is slow: the producer is held until it has caught up.
constexpr size_t kMostBuffered = 4 << 20;
constexpr size_t kAlwaysHeld = size_t{4} << 10;  // a request so small is taken whatever others hold

constexpr std::array<std::string_view, 10> kForwarded = {
    "x-idempotency-key",     "x-retry-attempt",         "x-throttle-retry-attempt", "x-modal-client-version",
    "x-modal-client-type",   "x-modal-timestamp",       "x-modal-python-version",   "x-modal-auth-token",
    "x-modal-sandbox-token", "x-modal-libmodal-version"};

class RelayCall : public std::enable_shared_from_this<RelayCall> {
 public:
  RelayCall(Link* link, std::string method, RelayKind kind, rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out)
      : link_(link),
        method_(std::move(method)),
        unary_(kind == RelayKind::kUnary),
        ctx_(std::move(ctx)),
        memory_(ctx_->memory()),
        out_(std::move(out)) {
    for (std::string_view name : kForwarded) {
      const std::string_view value = ctx_->header(name);
      if (!value.empty()) metadata_.emplace_back(std::string(name), std::string(value));
    }
    if (ctx_->header("x-idempotency-key").empty() && unary_)
      metadata_.emplace_back("x-idempotency-key", RandomHex(16));
    metadata_.emplace_back("x-lydian-task", ctx_->caller().task_id);
  }

  ~RelayCall() {
    if (request_) memory_->Change(request_->size(), 0);
  }

  Status TakeRequest(std::string_view bytes) {
    if (request_) return InvalidArgument(std::string(ctx_->method()) + " takes one message");
    if (bytes.size() > kAlwaysHeld && memory_->exceeded())
      return ResourceExhausted("more bytes of unfinished calls than there is memory for: try again later");
    request_ = std::string(bytes);
    memory_->Change(0, request_->size());
    return {};
  }

  void Begin() {
    if (!request_)
      return out_->Finish(InvalidArgument(std::string(ctx_->method()) + " came without a message"));
    ctx_->OnCancel([self = shared_from_this()] { self->Cancelled(); });
    Try();
  }

 private:
  void Try() {
    rpc::ClientCallbacks callbacks;
    callbacks.on_message = [self = shared_from_this()](std::string bytes) {
      self->Message(std::move(bytes));
    };
    callbacks.on_done = [self = shared_from_this()](Status status, rpc::Metadata trailers) {
      self->Done(std::move(status), std::move(trailers));
    };
    {
      std::lock_guard lock(mutex_);
      if (cancelled_) return;
    }
    response_.reset();
    auto call = link_->channel().Start(method_, metadata_, std::move(callbacks), ctx_->deadline());
    call->Write(*request_);
    call->WritesDone();
    std::unique_lock lock(mutex_);
    if (cancelled_) {
      lock.unlock();
      call->Cancel();
    } else if (!ended_) {
      call_ = std::move(call);
    }
  }

  void Message(std::string bytes) {
    if (unary_) {
      response_ = std::move(bytes);
      return;
    }
    delivered_ = true;
    if (!out_->Write(std::move(bytes))) return Cancelled();
    if (out_->buffered() < kMostBuffered) return;
    std::shared_ptr<rpc::ClientCall> call;
    {
      std::lock_guard lock(mutex_);
      call = call_;
    }
    if (!call) return;
    call->HoldReading(true);
    out_->OnDrained(kMostBuffered / 2, [call] { call->HoldReading(false); });
  }

  void Done(Status status, rpc::Metadata trailers) {
    {
      std::lock_guard lock(mutex_);
      call_ = nullptr;
      if (cancelled_) return;
    }
    const bool again =
        status.code() == Code::kUnavailable && !delivered_ && (!link_->up() || ++tries_ < kMostTriesWhileUp);
    if (again) return link_->WhenUpAfterPause([self = shared_from_this()] { self->Try(); });
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
    }
    ctx_->OnCancel(nullptr);
    for (const auto& [name, value] : trailers) ctx_->AddTrailer(name, value);
    if (unary_ && status.ok()) {
      if (!response_) return out_->Finish(Internal("control ended " + method_ + " without an answer"));
      out_->Write(std::move(*response_));
    }
    out_->Finish(std::move(status));
  }

  void Cancelled() {
    std::shared_ptr<rpc::ClientCall> call;
    {
      std::lock_guard lock(mutex_);
      if (cancelled_ || ended_) return;
      cancelled_ = true;
      call = std::move(call_);
    }
    if (call) call->Cancel();
    out_->Finish(lydian::Cancelled("the container gave up"));
  }

  Link* link_;
  const std::string method_;
  const bool unary_;
  rpc::Ctx ctx_;
  const std::shared_ptr<rpc::MemoryBudget> memory_;
  std::shared_ptr<rpc::RawStream> out_;
  rpc::Metadata metadata_;
  std::optional<std::string> request_, response_;
  bool delivered_ = false;
  int tries_ = 0;
  std::mutex mutex_;  // guards what follows: the container's end and control's come on different threads
  std::shared_ptr<rpc::ClientCall> call_;
  bool cancelled_ = false, ended_ = false;
};

}  // namespace

rpc::RawReader Relay::Start(std::string_view full_method, rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out) {
  const RelayKind kind = kind_(full_method);
  if (kind == RelayKind::kUnknown) {
    out->Finish(Unimplemented("this server has no method " + std::string(full_method.substr(0, 200))));
    return {[](std::string_view) -> Status { return {}; }, [] {}};
  }
  auto call =
      std::make_shared<RelayCall>(link_, std::string(full_method), kind, std::move(ctx), std::move(out));
  return {[call](std::string_view bytes) { return call->TakeRequest(bytes); }, [call] { call->Begin(); }};
}

}  // namespace lydian::worker
