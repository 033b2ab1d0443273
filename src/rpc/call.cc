#include "rpc/call.h"

#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <vector>

#include "base/log.h"
#include "rpc/byte_buffer.h"
#include "rpc/headers.h"
#include "rpc/poller.h"

namespace lydian::rpc {
namespace {

constexpr size_t kMostBuffered = size_t{256} << 20;  // of a stream that its client doesn't read

SteadyTime ToSteady(gpr_timespec deadline) {
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) return SteadyTime::max();
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
  return std::chrono::steady_clock::now() + std::chrono::seconds(left.tv_sec) +
         std::chrono::nanoseconds(left.tv_nsec);
}

// Deadlines are ours, not gRPC's: when gRPC 1.51 ends a call at its deadline and the handler finishes it at
// the same moment, both send trailers, and the official client drops its whole connection over the second
// ones. A call without a deadline (most) costs nothing here.
Strand& DeadlineTimers() {
  static Strand* const timers = new Strand("rpc-deadlines");
  return *timers;
}

// One call, from gRPC's to our side. It holds itself (through self_) until gRPC has nothing more to say of
// it; handlers hold it as long as they like.
//
// States: open; finished_ (how it ends is known: answered, or its client is gone); sent_ (gRPC has been told,
// or need not be). Operations of gRPC begin under the mutex, from any thread; their ends come on the poller's
// thread, never inside the call that begins one.
class Call final : public Context, public Receiver, public std::enable_shared_from_this<Call> {
 public:
  Call(std::shared_ptr<CallHost> host, grpc_call* call, const grpc_call_details& details,
       const grpc_metadata_array& metadata)
      : host_(std::move(host)),
        call_(call),
        full_method_(View(details.method)),
        headers_(metadata),
        deadline_(ToSteady(details.deadline)),
        started_(std::chrono::steady_clock::now()) {}
  ~Call() override {
    if (call_ != nullptr) grpc_call_unref(call_);
  }

  void Begin() {
    self_ = shared_from_this();
    Router::Impl& router = host_->router->impl();
    method_ = router.Find(full_method_);
    const bool relayed = method_ == nullptr && router.fallback != nullptr;
    if (method_ == nullptr) method_ = relayed ? &router.relayed : &router.unknown;
    method_->metrics.at_work.fetch_add(1, std::memory_order_relaxed);
    {
      std::lock_guard lock(mutex_);
      grpc_op close{};
      close.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
      close.data.recv_close_on_server.cancelled = &cancelled_;
      StartLocked(&close, 1, &on_close_);
    }
    Guarded([&] { Dispatch(relayed); });
  }

  void Dispatch(bool relayed) {
    if (Status status = Admit(relayed); !status.ok()) return End(std::move(status));
    if (deadline_ != SteadyTime::max()) {
      std::lock_guard lock(mutex_);  // the timer may run before it is noted down
      timer_ = DeadlineTimers().PostAt(deadline_, [weak = weak_from_this()] {
        if (auto call = weak.lock())
          call->Over(DeadlineExceeded("the deadline of the call has passed"), /*gone=*/false);
      });
    }
    if (relayed || method_->bidi) {
      BeginStream(relayed ? &host_->router->impl().fallback : nullptr);
    } else {
      Read();
    }
  }

  // Context.
  std::string_view method() const override { return MethodName(full_method_); }
  std::string_view header(std::string_view name) const override { return headers_.Get(name); }
  const Caller& caller() const override { return caller_; }
  SteadyTime deadline() const override { return deadline_; }
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
    if (!sent_) trailers_.emplace_back(std::string(name), std::string(value));
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
    Status over;
    {
      std::lock_guard lock(mutex_);
      if (finished_) return false;
      buffered_ += message.size();
      if (buffered_ > kMostBuffered && !queue_.empty()) {
        over = ResourceExhausted("the stream's client has not taken what was sent: more than 256 MiB wait");
      } else {
        queue_.push_back(std::move(message));
      }
    }
    if (!over.ok()) {
      End(std::move(over), /*drop_queue=*/true);
      return false;
    }
    Pump();
    return true;
  }

  size_t buffered() const {
    std::lock_guard lock(mutex_);
    return buffered_;
  }

  void OnDrained(size_t limit, Task fn) {
    {
      std::lock_guard lock(mutex_);
      if (buffered_ >= limit && !finished_) {
        on_drained_.swap(fn);
        drain_limit_ = limit;
        return;
      }
    }
    if (fn) fn();
  }

  // Decides how the call ends, unless that is decided.
  void End(Status status, bool drop_queue = false) {
    Task cancel, drained;  // run or destroyed outside the lock
    {
      std::lock_guard lock(mutex_);
      cancel.swap(on_cancel_);
      answered_ = true;
      if (finished_) return;
      finished_ = true;
      final_ = std::move(status);
      if (drop_queue) DropQueue();
      drained.swap(on_drained_);
    }
    if (drained) drained();
    Pump();
  }

  void HoldReading(bool hold) {
    std::lock_guard lock(mutex_);
    hold_reading_ = hold;
    if (hold || !read_waits_) return;
    read_waits_ = false;
    ReadLocked();
  }

  const std::shared_ptr<CallHost>& host() const { return host_; }

 private:
  // Handlers throw nothing. Should one do so all the same, the call gets an answer and the poller lives on.
  template <typename Fn>
  void Guarded(Fn fn) {
    try {
      fn();
    } catch (const std::exception& e) {
      LOG_ERROR("a handler threw an exception", {{"method", full_method_}, {"error", e.what()}});
      End(Internal(std::string(method()) + " failed: an error in Lydian, which it has logged"),
          /*drop_queue=*/true);
    }
  }

  Status Admit(bool relayed) {
    if (method_ == &host_->router->impl().unknown) {
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
    caller_.unix_socket = host_->unix_socket;
    return relayed ? Status() : CheckScope(caller_, options, method());
  }

  Ctx context() { return shared_from_this(); }
  void BeginStream(const Router::Fallback* fallback);
  void HandleOne(std::string_view request);
  void HandleUnary(std::string_view request);

  // Begins a batch; mutex_ held.
  void StartLocked(const grpc_op* ops, size_t count, Waiter* waiter) {
    ++pending_;
    StartBatch(call_, ops, count, waiter);
  }

  void ReadLocked() {
    if (sent_) return;
    grpc_op read{};
    read.op = GRPC_OP_RECV_MESSAGE;
    read.data.recv_message.recv_message = incoming_.out();
    StartLocked(&read, 1, &on_read_);
  }
  void Read() {
    std::lock_guard lock(mutex_);
    ReadLocked();
  }

  // The ends of operations.
  void ReadDone(bool ok) {
    Guarded([&] {
      if (ok) HandleRead();  // otherwise the call is broken, and CloseDone tells
    });
    Settle();
  }
  void WriteDone(bool ok) {
    Guarded([&] { HandleWritten(ok); });
    Settle();
  }
  void CloseDone(bool /*ok*/) {
    bool gone = cancelled_ != 0;
    {
      std::lock_guard lock(mutex_);
      gone = gone || !sent_;
    }
    if (gone) Guarded([&] { Over(Cancelled("the client went away"), /*gone=*/true); });
    Settle();
  }

  void HandleRead() {
    if (incoming_.get() == nullptr) {  // the client has half-closed
      if (method_->unary || method_->server_stream) {
        return End(InvalidArgument(std::string(method()) + " needs a request message, and none came"));
      }
      {
        std::lock_guard lock(mutex_);
        if (finished_) return;
      }
      if (reader_.on_end) reader_.on_end();
      return;
    }
    const Slice slice = incoming_.Contiguous();
    const std::string_view message = View(slice.get());
    method_->metrics.bytes_in.fetch_add(message.size(), std::memory_order_relaxed);
    if (message.size() > method_->entry.options.max_request_bytes) {
      return End(ResourceExhausted(std::string(method()) + ": a message of " +
                                   std::to_string(message.size()) + " bytes is over the limit of " +
                                   std::to_string(method_->entry.options.max_request_bytes)));
    }
    if (method_->unary || method_->server_stream) return HandleOne(message);
    if (Status status = reader_.on_message ? reader_.on_message(message) : Status(); !status.ok())
      return End(std::move(status));
    std::lock_guard lock(mutex_);
    if (finished_) return;
    if (hold_reading_) {
      read_waits_ = true;
      return;
    }
    ReadLocked();
  }

  void HandleWritten(bool ok) {
    Task drained;
    {
      std::lock_guard lock(mutex_);
      write_in_flight_ = false;
      if (ok) {
        buffered_ -= in_flight_bytes_;
      } else {
        DropQueue();
      }
      if (on_drained_ && buffered_ < drain_limit_) drained.swap(on_drained_);
    }
    if (drained) drained();
    Pump();
  }

  // The client is gone or the server stops (`gone`: nothing can be sent any more), or the deadline has
  // passed.
  void Over(Status status, bool gone) {
    Task drained;
    bool leave = false, count = false;
    std::shared_ptr<IdempotencyStore::Entry> entry;
    {
      std::lock_guard lock(mutex_);
      entry = entry_;
      leave = !finished_;
      if (leave) {
        finished_ = true;
        final_ = std::move(status);
      }
      if (gone) count = !std::exchange(sent_, true);
      DropQueue();
      drained.swap(on_drained_);
    }
    if (count) Count(Code::kCancelled);
    if (leave && entry) {
      host_->router->impl().idempotency.Leave(entry);
    } else if (leave) {
      GiveUp();
    }
    if (drained) drained();
    Pump();
  }

  void EndUnary(Result<std::string> answer) {
    if (!answer.ok()) return End(answer.status());
    Task cancel;  // destroyed outside the lock
    {
      std::lock_guard lock(mutex_);
      cancel.swap(on_cancel_);
      answered_ = true;
      if (finished_) return;
      finished_ = true;
      buffered_ += answer->size();
      queue_.push_back(std::move(answer).value());
    }
    Pump();
  }

  // Starts the next write or the end, whichever is due and allowed.
  void Pump() {
    std::optional<Code> ended;
    {
      std::lock_guard lock(mutex_);
      if (write_in_flight_ || sent_ || (queue_.empty() && !finished_)) return;
      std::array<grpc_op, 3> ops{};
      size_t count = 0;
      if (!std::exchange(started_sending_, true)) ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
      if (!queue_.empty()) AddMessage(&ops[count++]);
      EndParts parts;
      if (finished_ && queue_.empty()) {
        AddEnd(&ops[count++], &parts);
        ended = final_.code();
      }
      write_in_flight_ = true;
      StartLocked(ops.data(), count, &on_written_);
    }
    if (ended) Count(*ended);
  }

  void AddMessage(grpc_op* op) {  // mutex_ held
    std::string message = std::move(queue_.front());
    queue_.pop_front();
    in_flight_bytes_ = message.size();
    method_->metrics.bytes_out.fetch_add(message.size(), std::memory_order_relaxed);
    outgoing_ = ByteBuffer(std::move(message));
    op->op = GRPC_OP_SEND_MESSAGE;
    op->data.send_message.send_message = outgoing_.get();
  }

  // What the end of a call points to until its batch has begun.
  struct EndParts {
    Slice text;
    Fields trailers;
  };
  void AddEnd(grpc_op* op, EndParts* parts) {  // mutex_ held
    sent_ = true;
    for (const auto& [name, value] : trailers_) parts->trailers.Add(name, value);
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    auto& end = op->data.send_status_from_server;
    end.status = static_cast<grpc_status_code>(final_.code());
    end.trailing_metadata = parts->trailers.data();
    end.trailing_metadata_count = parts->trailers.size();
    if (final_.ok()) return;
    parts->text = Slice(std::string_view(SafeStatusText(final_.message())));
    end.status_details = parts->text.out();
  }

  void DropQueue() {  // mutex_ held
    for (const std::string& message : queue_) buffered_ -= message.size();
    queue_.clear();
  }

  // Once, when it is known how the call ends.
  void Count(Code code) {
    method_->metrics.Finished(code, std::chrono::steady_clock::now() - started_);
    if (timer_) DeadlineTimers().CancelTimer(*timer_);
  }

  // After the end of an operation: is it the last one?
  void Settle() {
    RawReader reader;  // may hold the stream, and so this
    std::shared_ptr<Call> self;
    {
      std::lock_guard lock(mutex_);
      if (--pending_ != 0) return;
      CHECK(sent_);
      reader = std::move(reader_);
      reader_ = {};
      self.swap(self_);
      grpc_call_unref(std::exchange(call_, nullptr));
    }
  }

  const std::shared_ptr<CallHost> host_;
  grpc_call* call_;  // while operations are pending
  const std::string full_method_;
  const Headers headers_;
  const SteadyTime deadline_, started_;
  Method* method_ = nullptr;
  Caller caller_;
  std::optional<Strand::TimerId> timer_;
  RawReader reader_;
  ByteBuffer incoming_, outgoing_;
  int cancelled_ = 0;                               // written by gRPC before CloseDone
  std::shared_ptr<IdempotencyStore::Entry> entry_;  // set once, under the mutex
  std::atomic<bool> given_up_{false};               // what handlers see as cancelled

  MemberWaiter<Call, &Call::ReadDone> on_read_{this};
  MemberWaiter<Call, &Call::WriteDone> on_written_{this};
  MemberWaiter<Call, &Call::CloseDone> on_close_{this};

  mutable std::mutex mutex_;  // guards all below, and the beginning of operations
  std::shared_ptr<Call> self_;
  int pending_ = 0;  // operations begun and not ended
  std::vector<std::pair<std::string, std::string>> trailers_;
  Task on_cancel_, on_drained_;
  size_t drain_limit_ = 0, buffered_ = 0, in_flight_bytes_ = 0;
  std::deque<std::string> queue_;
  Status final_;
  bool finished_ = false, answered_ = false, sent_ = false, write_in_flight_ = false,
       started_sending_ = false;
  bool hold_reading_ = false, read_waits_ = false;
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
  size_t buffered() const override { return handle_.call().buffered(); }
  void OnDrained(size_t limit, Task fn) override { handle_.call().OnDrained(limit, std::move(fn)); }
  void Finish(Status status) override {
    if (!handle_.Use()) return;
    handle_.call().End(std::move(status));
    handle_.call().host()->outstanding->Remove();
  }
  void HoldReading(bool hold) override { handle_.call().HoldReading(hold); }

 private:
  Handle handle_;
};

void Call::BeginStream(const Router::Fallback* fallback) {
  auto stream = std::make_shared<StreamHandle>(shared_from_this());
  reader_ = fallback ? (*fallback)(full_method_, context(), std::move(stream))
                     : method_->bidi(context(), std::move(stream));
  std::lock_guard lock(mutex_);
  if (hold_reading_) {
    read_waits_ = true;
  } else {
    ReadLocked();
  }
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

void StartCall(const std::shared_ptr<CallHost>& host, grpc_call* call, const grpc_call_details& details,
               const grpc_metadata_array& metadata) {
  std::make_shared<Call>(host, call, details, metadata)->Begin();
}

}  // namespace lydian::rpc
