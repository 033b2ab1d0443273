// One table from method name to typed handler. Authentication, scope, idempotency keys, deadlines, metrics
// and the relay are written once, here. Handlers see messages and statuses, nothing of HTTP/2.
//
//   router.Unary<AppCreateRequest, AppCreateResponse>("modal.client.ModalClient", "AppCreate",
//       [&](const AppCreateRequest& request, Ctx ctx, Reply<AppCreateResponse> reply) { reply(response); });
//
// A handler runs on the loop's thread: it must not block (no SQL, file or lock wait): it posts to a strand
// and returns. It may keep `ctx` and `reply` for as long as it likes (long polls): ctx->OnCancel tells when
// nobody waits any more.
//
// Thread-safety: handlers are registered before serving starts; everything else from any thread.
// Errors: a message that doesn't parse gets INVALID_ARGUMENT; a method that isn't registered UNIMPLEMENTED
// with its name; a reply that is dropped without being called answers INTERNAL and logs (a bug of ours). A
// status text is cut to 4 KiB.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/status.h"
#include "rpc/budget.h"

namespace lydian::rpc {

// Who calls. Filled in by the Authenticator.
struct Caller {
  enum class Kind {
    kAnonymous,  // methods that need no token
    kUser,       // a token
    kTask,       // a container, through its worker
    kWorker,     // a worker's own connection
    kRoot,       // uid 0 over an admin socket
  };
  Kind kind = Kind::kAnonymous;
  std::string workspace_id;
  std::string token_id;
  std::string task_id;      // kTask
  std::string environment;  // kTask: the only one it may act in
  bool restricted =
      false;  // kTask with restrict_modal_access: only its own task's RPCs (the Authenticator's work)
  bool unix_socket = false;
};

// One call. Thread-safe. Kept alive by whoever needs it.
class Context {
 public:
  virtual ~Context() = default;
  virtual std::string_view method() const = 0;                       // "AppCreate"
  virtual std::string_view header(std::string_view name) const = 0;  // "" if absent; names are lower-case
  virtual const Caller& caller() const = 0;
  // When the client gives up; SteadyTime::max() without a deadline.
  virtual SteadyTime deadline() const = 0;
  virtual bool cancelled() const = 0;
  // Runs `fn` once when the client is gone, the deadline has passed, the server stops or ends the call for
  // what came or waits on it; at once if that is so already. On any thread. Never after the call was
  // answered. Replaces an earlier one. nullptr takes it back.
  virtual void OnCancel(Task fn) = 0;
  virtual void AddTrailer(std::string_view name, std::string_view value) = 0;
  // In which its bytes are counted.
  virtual std::shared_ptr<MemoryBudget> memory() const { return MemoryBudget::OfProcess(); }
};
using Ctx = std::shared_ptr<Context>;

using RawReply = std::function<void(Result<std::string>)>;
using RawUnary = std::function<void(std::string_view request, Ctx ctx, RawReply reply)>;

// Answers a unary call. Copyable; the first call answers, later ones do nothing.
template <typename Response>
class Reply {
 public:
  explicit Reply(RawReply raw) : raw_(std::move(raw)) {}
  void operator()(const Response& response) const { raw_(response.SerializeAsString()); }
  void operator()(Status error) const { raw_(std::move(error)); }
  void operator()(const Result<Response>& result) const {
    if (result.ok()) {
      raw_(result->SerializeAsString());
    } else {
      raw_(result.status());
    }
  }

 private:
  RawReply raw_;
};

// The server's side of a stream. Thread-safe. Messages are sent in the order of Write; Write never blocks.
class RawStream {
 public:
  virtual ~RawStream() = default;
  // False when the stream is over (nothing more needs to be written).
  virtual bool Write(std::string message) = 0;
  // Bytes written and not taken by the transport yet; a producer of much data waits for OnDrained below some
  // limit. While all streams of a connection have left more unread than it may, those of all of them.
  virtual size_t buffered() const = 0;
  // Runs once when buffered() has fallen below `limit`; at once if it is. Also when the stream is over: Write
  // says so. A stream whose client takes nothing ends with RESOURCE_EXHAUSTED at 256 MiB.
  virtual void OnDrained(size_t limit, Task fn) = 0;
  virtual void Finish(Status status) = 0;  // the first call counts
  // Of a bidirectional stream: while held, no further message is read, and the client's writes back up.
  virtual void HoldReading(bool hold) = 0;
};

template <typename Item>
class Stream {
 public:
  explicit Stream(std::shared_ptr<RawStream> raw) : raw_(std::move(raw)) {}
  bool Write(const Item& item) const { return raw_->Write(item.SerializeAsString()); }
  void Finish(Status status = {}) const { raw_->Finish(std::move(status)); }
  size_t buffered() const { return raw_->buffered(); }
  void OnDrained(size_t limit, Task fn) const { raw_->OnDrained(limit, std::move(fn)); }
  const std::shared_ptr<RawStream>& raw() const { return raw_; }

 private:
  std::shared_ptr<RawStream> raw_;
};

// What comes in on a client or bidirectional stream. Called one after the other, never at once.
struct RawReader {
  std::function<Status(std::string_view message)> on_message;  // an error ends the stream with it
  std::function<void()> on_end;                                // the client has half-closed
};
// Returns the reader; the handler keeps the stream to answer.
using RawBidi = std::function<RawReader(Ctx ctx, std::shared_ptr<RawStream> out)>;
using RawServerStream =
    std::function<void(std::string_view request, Ctx ctx, std::shared_ptr<RawStream> out)>;

struct MethodOptions {
  bool anonymous = false;  // needs no token
  // An answer is replayed for the same x-idempotency-key of the same caller for 10 minutes, in memory (what
  // must survive a restart is journalled by its handler); one at work is joined.
  bool idempotent = false;
  size_t max_request_bytes = size_t{128} << 20;
  Code too_large = Code::kResourceExhausted;  // of a larger one's refusal: some callers repeat that for ever
  bool task_only = false;  // a container's own RPC: answered by the worker, PERMISSION_DENIED for others
};

class Router {
 public:
  Router();
  ~Router();

  template <typename Request, typename Response, typename Handler>
  void Unary(std::string_view service, std::string_view method, Handler handler, MethodOptions options = {}) {
    AddUnary(
        service, method,
        [handler = std::move(handler)](std::string_view bytes, Ctx ctx, RawReply raw) {
          Request request;
          if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
            return raw(InvalidArgument("the bytes are not a " + std::string(ctx->method()) + " request"));
          }
          handler(request, std::move(ctx), Reply<Response>(std::move(raw)));
        },
        options);
  }
  template <typename Request, typename Item, typename Handler>
  void ServerStream(std::string_view service, std::string_view method, Handler handler,
                    MethodOptions options = {}) {
    AddServerStream(
        service, method,
        [handler = std::move(handler)](std::string_view bytes, Ctx ctx, std::shared_ptr<RawStream> raw) {
          Request request;
          if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
            return raw->Finish(
                InvalidArgument("the bytes are not a " + std::string(ctx->method()) + " request"));
          }
          handler(request, std::move(ctx), Stream<Item>(std::move(raw)));
        },
        options);
  }

  void AddUnary(std::string_view service, std::string_view method, RawUnary handler,
                MethodOptions options = {});
  void AddServerStream(std::string_view service, std::string_view method, RawServerStream handler,
                       MethodOptions options = {});
  void AddBidi(std::string_view service, std::string_view method, RawBidi handler,
               MethodOptions options = {});

  // For methods that are not registered: the worker's relay. Sees unary and streaming calls alike as byte
  // streams.
  using Fallback =
      std::function<RawReader(std::string_view full_method, Ctx ctx, std::shared_ptr<RawStream> out)>;
  void SetFallback(Fallback fallback);

  // What the caller of a method is told that nobody serves; "/service/method".
  using UnknownText = std::function<std::string(std::string_view full_method)>;
  void SetUnknownText(UnknownText text);

  struct Entry {
    std::string service, method;
    enum class Kind { kUnary, kServerStream, kBidi } kind;
    MethodOptions options;
  };
  std::vector<Entry> entries() const;  // docs/compatibility.md is made from them

  // Prometheus text: per method calls by status code, latency histogram, bytes.
  std::string MetricsText() const;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Decides who calls from the headers and the listener it came by. Must not block.
class Authenticator {
 public:
  using Headers = std::function<std::string_view(std::string_view name)>;
  virtual ~Authenticator() = default;
  virtual Result<Caller> Authenticate(const Headers& headers, std::string_view method,
                                      const MethodOptions& options) = 0;
};

}  // namespace lydian::rpc
