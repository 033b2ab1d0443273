#include "rpc/channel.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <charconv>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>

#include "base/ids.h"
#include "base/log.h"
#include "rpc/acceptor.h"
#include "rpc/connection.h"
#include "rpc/deadlines.h"

namespace lydian::rpc {
namespace {

constexpr int kConnectAttempts = 4;  // of TCP's SYN: half a minute

struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

Result<Address> UnixAddress(const std::string& path) {
  Address address;
  auto* name = reinterpret_cast<sockaddr_un*>(&address.storage);
  if (path.empty() || path.size() >= sizeof name->sun_path)
    return InvalidArgument("unix:" + path + ": not the path of a socket");
  name->sun_family = AF_UNIX;
  memcpy(name->sun_path, path.data(), path.size());
  address.size = sizeof *name;
  return address;
}

Result<Address> Resolve(const std::string& target) {
  if (target.starts_with("unix:")) return UnixAddress(target.substr(5));
  const size_t colon = target.rfind(':');
  if (colon == target.npos) return InvalidArgument(target + ": expected HOST:PORT or unix:PATH");
  std::string host = target.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  if (const int error = getaddrinfo(host.c_str(), target.c_str() + colon + 1, &hints, &found); error != 0)
    return Unavailable(target + ": " + gai_strerror(error));
  Address address;
  memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.size = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

// The status that an answer's trailers tell.
Status StatusOf(const Headers& trailers) {
  const std::string_view code = trailers.Get("grpc-status");
  int number = 0;
  const auto [end, error] = std::from_chars(code.data(), code.data() + code.size(), number);
  if (code.empty() || error != std::errc() || end != code.data() + code.size())
    return Internal("the other side answered without a status");
  if (number == 0) return {};
  return Status(number >= 1 && number <= 16 ? static_cast<Code>(number) : Code::kUnknown,
                DecodeStatusText(trailers.Get("grpc-message")))
      .WithDetails(Base64Decode(trailers.Get(kDetailsField)));
}

// One call. Its stream holds it until it is over; the caller as long as it likes.
class CallImpl final : public ClientCall,
                       public StreamListener,
                       public std::enable_shared_from_this<CallImpl> {
 public:
  explicit CallImpl(ClientCallbacks callbacks) : callbacks_(std::move(callbacks)) {}

  void Begin(std::shared_ptr<H2Stream> stream, SteadyTime deadline) {
    std::lock_guard lock(mutex_);
    stream_ = std::move(stream);
    if (ended_ || deadline == SteadyTime::max()) return;
    timer_ = Deadlines().PostAt(deadline, [weak = weak_from_this()] {
      if (auto call = weak.lock()) call->GiveUp(DeadlineExceeded("the deadline of the call has passed"));
    });
  }

  void Write(std::string message) override {
    if (const auto stream = Current()) stream->Write(std::move(message));
  }
  size_t buffered() const override {
    const auto stream = Current();
    return stream ? stream->buffered() : 0;
  }
  void OnDrained(size_t limit, Task fn) override {
    if (const auto stream = Current()) return stream->OnDrained(limit, std::move(fn));
    if (fn) fn();
  }
  void HoldReading(bool hold) override {
    if (const auto stream = Current()) stream->HoldReading(hold);
  }
  void WritesDone() override {
    if (const auto stream = Current()) stream->HalfClose();
  }
  void Cancel() override { GiveUp(Cancelled("the call was cancelled")); }

  // StreamListener.
  void OnMessage(std::string message) override {
    if (callbacks_.on_message) callbacks_.on_message(std::move(message));
  }
  void OnBadMessage(Status why) override {
    bad_ = why;  // the end may have come with it
    GiveUp(std::move(why));
  }
  void OnEnd(const Headers& trailers) override {
    Metadata custom;
    trailers.ForEach([&](std::string_view name, std::string_view value) {
      if (name.starts_with(':') || name.starts_with("grpc-") || name == "content-type") return;
      custom.emplace_back(name, value);
    });
    Status status = StatusOf(trailers);
    Done(status.ok() ? bad_ : std::move(status), std::move(custom));
  }
  void OnBroken(Status why) override { Done(std::move(why), {}); }

  // Exactly once, on the loop's thread.
  void Done(Status status, Metadata trailers) {
    std::optional<Strand::TimerId> timer;
    std::shared_ptr<H2Stream> stream;  // let go outside the lock
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
      timer = std::exchange(timer_, {});
      stream = std::move(stream_);
    }
    if (timer) Deadlines().CancelTimer(*timer);
    const ClientCallbacks callbacks = std::exchange(callbacks_, {});
    if (callbacks.on_done) callbacks.on_done(std::move(status), std::move(trailers));
  }

 private:
  std::shared_ptr<H2Stream> Current() const {
    std::lock_guard lock(mutex_);
    return stream_;
  }
  void GiveUp(Status why) {
    const auto stream = Current();
    if (!stream) return;
    stream->Reset(std::move(why));
    stream->HoldReading(false);  // or an end that is there would never be told
  }

  // Of the loop's thread:
  ClientCallbacks callbacks_;
  Status bad_;                // what came was no message
  mutable std::mutex mutex_;  // guards the rest
  std::shared_ptr<H2Stream> stream_;
  std::optional<Strand::TimerId> timer_;
  bool ended_ = false;
};

class ChannelImpl final : public Channel {
 public:
  explicit ChannelImpl(const std::string& target)
      : target_(target),
        authority_(target.starts_with("unix:") ? "localhost" : target),
        address_(Resolve(target)) {}
  ~ChannelImpl() override {
    if (connection_) connection_->CloseWhenIdle();
  }

  std::shared_ptr<ClientCall> Start(std::string_view full_method, const Metadata& metadata,
                                    ClientCallbacks callbacks, SteadyTime deadline) override {
    Fields request;
    request.Set(":method", "POST");
    request.Set(":scheme", "http");
    request.Set(":path", full_method);
    request.Set(":authority", authority_);
    request.Set("te", "trailers");
    request.Set("content-type", "application/grpc");
    if (deadline != SteadyTime::max())
      request.Set("grpc-timeout", FormatTimeout(deadline - std::chrono::steady_clock::now()));
    for (const auto& [name, value] : metadata) request.Add(name, value);
    auto call = std::make_shared<CallImpl>(std::move(callbacks));
    auto stream = Open(request, call);
    if (stream.ok()) {
      call->Begin(std::move(stream).value(), deadline);
    } else {
      Loop::Get().Post([call, status = stream.status()] { call->Done(status, {}); });
    }
    return call;
  }

 private:
  Result<std::shared_ptr<H2Stream>> Open(const Fields& request, const std::shared_ptr<CallImpl>& call) {
    std::lock_guard lock(mutex_);
    if (connection_) {
      if (auto stream = connection_->Open(request, call)) return stream;
      connection_->CloseWhenIdle();
      connection_ = nullptr;
    }
    RETURN_IF_ERROR(Connect());
    if (auto stream = connection_->Open(request, call)) return stream;
    return Unavailable("the connection to " + target_ + " broke as it was made");
  }

  Status Connect() {  // mutex_ held
    RETURN_IF_ERROR(address_.status());
    const int family = address_->storage.ss_family;
    UniqueFd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd.valid()) return ErrnoStatus("socket");
    if (family != AF_UNIX) {
      const int on = 1;
      setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      setsockopt(fd.get(), IPPROTO_TCP, TCP_SYNCNT, &kConnectAttempts, sizeof kConnectAttempts);
      KeepAlive(fd.get());
    }
    const int result =
        ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address_->storage), address_->size);
    const bool connecting = result != 0 && errno == EINPROGRESS;
    if (result != 0 && !connecting) {
      return Unavailable("connecting to " + target_ + ": " + std::string(ErrnoStatus("connect").message()));
    }
    connection_ = Connection::Create(std::move(fd), {}, connecting);
    return {};
  }

  const std::string target_, authority_;
  const Result<Address> address_;
  std::mutex mutex_;  // guards connection_
  std::shared_ptr<Connection> connection_;
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
  CHECK(!Loop::Get().OnThread());  // it would wait for itself
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
