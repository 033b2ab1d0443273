#include "rpc/call.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/log.h"
#include "rpc/deadlines.h"
#include "rpc/loop.h"
#include "rpc/wire.h"

namespace lydian::rpc {
namespace {

constexpr size_t kMostBuffered = size_t{256} << 20;  // of a stream that its client doesn't read

SteadyTime DeadlineOf(const Headers& headers) {
  const auto timeout = ParseTimeout(headers.Get("grpc-timeout"));
  return timeout ? std::chrono::steady_clock::now() + *timeout : SteadyTime::max();
}

// One call, from its stream's to our side. The stream holds it until it is over; handlers hold it as long as
// they like.
//
// States: open; finished_ (how it ends is known: answered, or its client is gone).
class Call final : public Context,
                   public Receiver,
                   public StreamListener,
                   public std::enable_shared_from_this<Call> {
 public:
  Call(std::shared_ptr<CallHost> host, std::shared_ptr<H2Stream> stream, Headers headers)
      : host_(std::move(host)),
        stream_(std::move(stream)),
        headers_(std::move(headers)),
        full_method_(headers_.Get(":path")),
        deadline_(DeadlineOf(headers_)),
        started_(std::chrono::steady_clock::now()) {}

  void Begin() {
    Router::Impl& router = host_->router->impl();
    method_ = router.Find(full_method_);
    const bool relayed = method_ == nullptr && router.fallback != nullptr;
    if (method_ == nullptr) method_ = relayed ? &router.relayed : &router.unknown;
    method_->metrics.at_work.fetch_add(1, std::memory_order_relaxed);
    Guarded([&] { Dispatch(relayed); });
  }

  void Dispatch(bool relayed) {
    if (Status status = Admit(relayed); !status.ok()) return End(std::move(status));
    if (const std::string_view text = headers_.Get("grpc-timeout"); !text.empty() && !ParseTimeout(text)) {
      return End(Internal("grpc-timeout \"" + std::string(text.substr(0, 100)) +
                          "\" is none: up to eight digits and a unit, which is H, M, S, m, u or n"));
    }
    if (deadline_ != SteadyTime::max()) {
      std::lock_guard lock(mutex_);  // the timer may run before it is noted down
      timer_ = Deadlines().PostAt(deadline_, [weak = weak_from_this()] {
        if (auto call = weak.lock())
          call->Over(DeadlineExceeded("the deadline of the call has passed"), /*gone=*/false);
      });
    }
    if (relayed || method_->bidi) BeginStream(relayed ? &host_->router->impl().fallback : nullptr);
  }

  // StreamListener.
  void OnMessage(std::string message) override {
    Guarded([&] { HandleMessage(message); });
  }
  void OnBadMessage(Status why) override {
    const bool large = why.code() == Code::kResourceExhausted;
    Abort(Status(large ? method_->entry.options.too_large : why.code(),
                 std::string(method()) + ": " + std::string(why.message())));
  }
  void OnEnd(const Headers& /*trailers*/) override {
    Guarded([&] { HandleEnd(); });
  }
  void OnBroken(Status /*why*/) override {
    Guarded([&] { Over(Cancelled("the client went away"), /*gone=*/true); });
    ForgetReader();
  }
  void OnClosed() override {
    if (!is_stream_) return;
    if (Loop::Get().OnThread()) return ForgetReader();
    Loop::Get().Post([self = shared_from_this()] { self->ForgetReader(); });
  }

  // Context.
  std::string_view method() const override { return MethodName(full_method_); }
  std::string_view header(std::string_view name) const override { return headers_.Get(name); }
  const Caller& caller() const override { return caller_; }
  SteadyTime deadline() const override { return deadline_; }
  std::shared_ptr<MemoryBudget> memory() const override { return stream_->memory(); }
  bool cancelled() const override { return given_up_.load(std::memory_order_acquire); }

  void OnCancel(Task fn) override {
    {
      std::lock_guard lock(mutex_);
      if (!given_up_.load(std::memory_order_relaxed)) {
        if (!answered_) on_cancel_.swap(fn);
        return;  // what was there before goes after the lock
      }
    }
    if (fn) fn();
  }

  void AddTrailer(std::string_view name, std::string_view value) override {
    std::lock_guard lock(mutex_);
    if (!finished_) trailers_.Add(name, value);
  }

  // Receiver: the answer of a call that was joined, or of this one.
  void Answer(const Result<std::string>& answer) override { EndUnary(answer); }

  void GiveUp() override {
    Task fn;
    {
      std::lock_guard lock(mutex_);
      if (answered_) return;
      given_up_.store(true, std::memory_order_release);
      fn.swap(on_cancel_);
    }
    if (fn) fn();
  }

  // The handler's answer to a unary call.
  void Reply(Result<std::string> answer) {
    if (entry_) {
      host_->router->impl().idempotency.Complete(entry_, answer);
    } else {
      EndUnary(std::move(answer));
    }
  }

  void Dropped() {
    {
      std::lock_guard lock(mutex_);
      if (answered_) return;
    }
    if (!cancelled()) {
      LOG_ERROR("a call was dropped by its handler without an answer", {{"method", full_method_}});
    }
    Status status =
        cancelled()
            ? Unavailable("nobody waited for this call any more")
            : Internal(std::string(method()) + " was not answered: an error in Lydian, which it has logged");
    if (method_->unary) {
      Reply(std::move(status));
    } else {
      End(std::move(status));
    }
  }

  // The stream's side.
  bool Write(std::string message) {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return false;
    }
    const size_t size = message.size();
    const std::optional<size_t> waiting = stream_->Write(std::move(message));
    if (!waiting) return false;
    wrote_.store(true, std::memory_order_relaxed);
    method_->metrics.bytes_out.fetch_add(size, std::memory_order_relaxed);
    if (*waiting <= kMostBuffered || *waiting == size) return true;
    Abort(ResourceExhausted("the stream's client has not taken what was sent: more than 256 MiB wait"),
          /*drop_unsent=*/true);
    return false;
  }

  // Decides how the call ends, unless that is decided.
  void End(Status status, bool drop_unsent = false) {
    Task cancel;  // destroyed outside the lock
    Fields trailers;
    {
      std::lock_guard lock(mutex_);
      cancel.swap(on_cancel_);
      answered_ = true;
      if (std::exchange(finished_, true)) return;
      trailers = std::exchange(trailers_, {});
    }
    Finish(status, std::move(trailers), drop_unsent);
  }

  // Ends the call against its handler, which hears of it as if the client had gone: on the loop's thread,
  // since the handler may be in the middle of a Write.
  void Abort(Status status, bool drop_unsent = false) {
    {
      std::lock_guard lock(mutex_);
      if (!answered_) {
        given_up_.store(true, std::memory_order_release);
        if (on_cancel_) Loop::Get().Post(std::exchange(on_cancel_, nullptr));
      }
    }
    End(std::move(status), drop_unsent);
  }

  H2Stream& stream() { return *stream_; }
  const std::shared_ptr<CallHost>& host() const { return host_; }

 private:
  // Handlers throw nothing. Should one do so all the same, the call gets an answer and the loop lives on: of
  // a handler's own parsing and copying nothing is left. What runs on a strand meanwhile (Strand::Run)
  // doesn't come here: its exceptions end the process.
  template <typename Fn>
  void Guarded(Fn fn) {
    try {
      fn();
    } catch (const std::exception& e) {
      LOG_ERROR("a handler threw an exception", {{"method", full_method_}, {"error", e.what()}});
      Abort(Internal(std::string(method()) + " failed: an error in Lydian, which it has logged"),
            /*drop_unsent=*/true);
    }
  }

  Status Admit(bool relayed) {
    if (const Router::Impl& router = host_->router->impl(); method_ == &router.unknown) {
      if (router.unknown_text) return Unimplemented(router.unknown_text(full_method_));
      return Unimplemented("Lydian does not implement " + std::string(method()) + " yet (" +
                           full_method_.substr(std::min<size_t>(1, full_method_.size())) + ")");
    }
    const MethodOptions& options = method_->entry.options;
    if (host_->authenticator) {
      auto caller = host_->authenticator->Authenticate(
          [this](std::string_view name) { return headers_.Get(name); }, method(), options);
      if (!caller.ok()) return caller.status();
      caller_ = std::move(caller).value();
    }
    if (!host_->authenticator || caller_.kind != Caller::Kind::kAnonymous) stream_->Authenticated();
    caller_.unix_socket = host_->unix_socket;
    return relayed ? Status() : CheckScope(caller_, options, method());
  }

  Ctx context() { return shared_from_this(); }
  void BeginStream(const Router::Fallback* fallback);
  void HandleOne(std::string_view request);
  void HandleUnary(std::string_view request);

  void HandleMessage(const std::string& message) {
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
    }
    method_->metrics.bytes_in.fetch_add(message.size(), std::memory_order_relaxed);
    if (message.size() > method_->entry.options.max_request_bytes) {
      const MethodOptions& options = method_->entry.options;
      return Abort(Status(options.too_large,
                          std::string(method()) + ": a message of " + std::to_string(message.size()) +
                              " bytes is over the limit of " + std::to_string(options.max_request_bytes)));
    }
    if (method_->unary || method_->server_stream) {
      if (!std::exchange(has_request_, true)) HandleOne(message);
      return;
    }
    if (Status status = reader_.on_message ? reader_.on_message(message) : Status(); !status.ok())
      Abort(std::move(status));
  }

  void HandleEnd() {  // the client has half-closed
    if (method_->unary || method_->server_stream) {
      if (has_request_) return;
      return End(InvalidArgument(std::string(method()) + " needs a request message, and none came"));
    }
    {
      std::lock_guard lock(mutex_);
      if (finished_) return;
    }
    if (reader_.on_end) reader_.on_end();
  }

  // The client is gone or the server stops (`gone`: nothing can be sent any more), or the deadline has
  // passed.
  void Over(Status status, bool gone) {
    std::shared_ptr<IdempotencyStore::Entry> entry;
    Fields trailers;
    {
      std::lock_guard lock(mutex_);
      if (std::exchange(finished_, true)) return;
      entry = entry_;
      trailers = std::exchange(trailers_, {});
    }
    if (gone) {
      Count(Code::kCancelled);
    } else {
      Finish(status, std::move(trailers), /*drop_unsent=*/true);
    }
    if (entry) {
      host_->router->impl().idempotency.Leave(entry);
    } else {
      GiveUp();
    }
  }

  void EndUnary(Result<std::string> answer) {
    if (!answer.ok()) return End(answer.status());
    Task cancel;  // destroyed outside the lock
    Fields trailers;
    {
      std::lock_guard lock(mutex_);
      cancel.swap(on_cancel_);
      answered_ = true;
      if (std::exchange(finished_, true)) return;
      trailers = std::exchange(trailers_, {});
    }
    method_->metrics.bytes_out.fetch_add(answer->size(), std::memory_order_relaxed);
    Finish({}, std::move(trailers), /*drop_unsent=*/false, std::move(answer).value());
  }

  // Once, by whoever set finished_.
  void Finish(const Status& status, Fields custom, bool drop_unsent,
              std::optional<std::string> message = {}) {
    Fields trailers = StatusFields(status);
    trailers.Append(std::move(custom));
    if (drop_unsent) stream_->DropUnsent();
    stream_->Finish(std::move(trailers), std::move(message));
    Count(status.code());
  }

  // Once, when it is known how the call ends.
  void Count(Code code) {
    method_->metrics.Finished(code, std::chrono::steady_clock::now() - started_);
    // The client leaves a stream when it has what it wants.
    const bool left = code == Code::kCancelled && wrote_.load(std::memory_order_relaxed);
    if ((code == Code::kOk || left) && method_ != &host_->router->impl().relayed)
      RecordAnswered(full_method_);
    if (timer_) Deadlines().CancelTimer(*timer_);
  }

  // The reader may hold the stream, and so this.
  void ForgetReader() { const RawReader reader = std::exchange(reader_, {}); }

  const std::shared_ptr<CallHost> host_;
  const std::shared_ptr<H2Stream> stream_;
  const Headers headers_;
  const std::string full_method_;
  const SteadyTime deadline_, started_;
  Method* method_ = nullptr;
  Caller caller_;
  std::optional<Strand::TimerId> timer_;
  RawReader reader_;  // of the loop's thread, as has_request_
  bool has_request_ = false;
  bool is_stream_ = false;                          // has a reader
  std::shared_ptr<IdempotencyStore::Entry> entry_;  // set once, under the mutex
  std::atomic<bool> given_up_{false};               // what handlers see as cancelled
  std::atomic<bool> wrote_{false};                  // to a stream

  std::mutex mutex_;  // guards all below
  Fields trailers_;
  Task on_cancel_;
  bool finished_ = false, answered_ = false;
};

// What a handler holds: notices when it is let go without an answer. Counted as outstanding until answered or
// let go.
class Handle {
 public:
  explicit Handle(std::shared_ptr<Call> call) : call_(std::move(call)) { call_->host()->outstanding->Add(); }
  ~Handle() {
    if (!Use()) return;
    call_->Dropped();
    const std::shared_ptr<Outstanding> outstanding = call_->host()->outstanding;
    call_.reset();
    outstanding->Remove();
  }
  // True for the first.
  bool Use() { return !used_.exchange(true, std::memory_order_acq_rel); }
  Call& call() const { return *call_; }

 private:
  std::shared_ptr<Call> call_;
  std::atomic<bool> used_{false};
};

class ReplyHandle : public Handle {
 public:
  using Handle::Handle;
  void Answer(Result<std::string> answer) {
    if (!Use()) return;
    call().Reply(std::move(answer));
    call().host()->outstanding->Remove();
  }
};

class StreamHandle final : public RawStream {
 public:
  explicit StreamHandle(std::shared_ptr<Call> call) : handle_(std::move(call)) {}
  bool Write(std::string message) override { return handle_.call().Write(std::move(message)); }
  size_t buffered() const override { return handle_.call().stream().buffered(); }
  void OnDrained(size_t limit, Task fn) override { handle_.call().stream().OnDrained(limit, std::move(fn)); }
  void Finish(Status status) override {
    if (!handle_.Use()) return;
    handle_.call().End(std::move(status));
    handle_.call().host()->outstanding->Remove();
  }
  void HoldReading(bool hold) override { handle_.call().stream().HoldReading(hold); }

 private:
  Handle handle_;
};

void Call::BeginStream(const Router::Fallback* fallback) {
  is_stream_ = true;
  auto stream = std::make_shared<StreamHandle>(shared_from_this());
  reader_ = fallback ? (*fallback)(full_method_, context(), std::move(stream))
                     : method_->bidi(context(), std::move(stream));
}

void Call::HandleOne(std::string_view request) {
  if (method_->unary) return HandleUnary(request);
  method_->server_stream(request, context(), std::make_shared<StreamHandle>(shared_from_this()));
}

void Call::HandleUnary(std::string_view request) {
  const std::string_view key =
      method_->entry.options.idempotent ? headers_.Get("x-idempotency-key") : std::string_view();
  if (!key.empty()) {
    IdempotencyStore& store = host_->router->impl().idempotency;
    std::string replay;
    std::shared_ptr<IdempotencyStore::Entry> entry;
    const auto role =
        store.Begin(IdempotencyKey(caller_, full_method_, key), shared_from_this(), &entry, &replay);
    if (role == IdempotencyStore::Role::kReplay) return EndUnary(std::move(replay));
    bool gone = false;
    {
      std::lock_guard lock(mutex_);
      entry_ = entry;
      gone = finished_;  // before the entry was known, so nobody has left it yet
    }
    if (gone) store.Leave(entry);
    if (role == IdempotencyStore::Role::kJoined) return;
  }
  auto handle = std::make_shared<ReplyHandle>(shared_from_this());
  method_->unary(request, context(), [handle = std::move(handle)](Result<std::string> answer) {
    handle->Answer(std::move(answer));
  });
}

}  // namespace

std::shared_ptr<StreamListener> StartCall(const std::shared_ptr<CallHost>& host,
                                          std::shared_ptr<H2Stream> stream, Headers request) {
  auto call = std::make_shared<Call>(host, std::move(stream), std::move(request));
  call->Begin();
  return call;
}

}  // namespace lydian::rpc
