#include "rpc/server.h"

#include <arpa/inet.h>
#include <grpc/grpc.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <map>
#include <vector>

#include "base/log.h"
#include "rpc/acceptor.h"
#include "rpc/call.h"
#include "rpc/grpc_arguments.h"
#include "rpc/http_server.h"
#include "rpc/poller.h"

namespace lydian::rpc {
namespace {

constexpr int kMostMessage = 128 << 20;
constexpr int kMostMetadata = 64 << 10;
constexpr Millis kSweepEvery(100);
constexpr int kCallsAwaited = 8;  // more wait within gRPC, for as long as the poller is busy

grpc_server_credentials* InsecureServer() {
  static grpc_server_credentials* const credentials = grpc_insecure_server_credentials_create();
  return credentials;
}

// Owns the arguments of a server while gRPC copies them.
class ServerArguments {
 public:
  explicit ServerArguments(const ServerOptions& options, bool unix_socket)
      : quota_(grpc_resource_quota_create("lydian")) {
    grpc_resource_quota_resize(quota_, options.memory_limit_bytes);
    args_.push_back(PointerArgument(GRPC_ARG_RESOURCE_QUOTA, quota_, grpc_resource_quota_arg_vtable()));
    Set(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, kMostMessage);
    Set(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1);
    // The client pings idle connections, which gRPC would otherwise punish by closing them.
    Set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1);
    Set(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    Set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    Set(GRPC_ARG_ENABLE_DEADLINE_CHECKS, 0);  // call.cc keeps deadlines, and says why
    Set(GRPC_ARG_MAX_METADATA_SIZE, kMostMetadata);
    Set(GRPC_ARG_ENABLE_CHANNELZ, 0);
    if (unix_socket) return;
    // A peer that was unplugged is missed within minutes, not when TCP gives up. A unix peer can only be
    // paused.
    Set(GRPC_ARG_KEEPALIVE_TIME_MS, 120'000);
    Set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  }
  ~ServerArguments() { grpc_resource_quota_unref(quota_); }
  grpc_channel_args get() { return {args_.size(), args_.data()}; }

 private:
  void Set(const char* name, int value) { args_.push_back(IntegerArgument(name, value)); }
  grpc_resource_quota* const quota_;
  std::vector<grpc_arg> args_;
};

// Fulfilled by the end of a server's shutdown.
class Finished final : public Waiter {
 public:
  void Completed(bool /*ok*/) override { done_.set_value(); }
  void Wait() { done_.get_future().wait(); }

 private:
  std::promise<void> done_;
};

// Waits for the next call of a server, again and again, until the server stops. Deletes itself then.
class NextCall final : public Waiter {
 public:
  NextCall(grpc_server* server, std::shared_ptr<CallHost> host) : server_(server), host_(std::move(host)) {
    Wait();
  }

  void Completed(bool ok) override {
    if (ok) StartCall(host_, std::exchange(call_, nullptr), details_, metadata_);
    grpc_call_details_destroy(&details_);
    grpc_metadata_array_destroy(&metadata_);
    if (!ok) {
      delete this;
      return;
    }
    Wait();
  }

 private:
  ~NextCall() = default;
  void Wait() {
    grpc_call_details_init(&details_);
    grpc_metadata_array_init(&metadata_);
    CHECK(grpc_server_request_call(server_, &call_, &details_, &metadata_, CompletionQueue(),
                                   CompletionQueue(), this) == GRPC_CALL_OK);
  }

  grpc_server* const server_;  // not used after the server's shutdown: no call comes then
  const std::shared_ptr<CallHost> host_;
  grpc_call* call_ = nullptr;
  grpc_call_details details_;
  grpc_metadata_array metadata_;
};

// Counts connections. gRPC doesn't say when it closes one: a descriptor that is no longer the socket we gave
// it is gone.
class ConnectionCount {
 public:
  explicit ConnectionCount(size_t most) : most_(most) {}

  bool Admit() {
    std::lock_guard lock(mutex_);
    if (own_ + handed_over_.size() >= most_) Sweep();
    if (own_ + handed_over_.size() >= most_) return false;
    ++own_;
    return true;
  }
  void Closed() {
    std::lock_guard lock(mutex_);
    --own_;
  }
  void HandedOver(int fd) {
    struct stat status {};
    fstat(fd, &status);
    std::lock_guard lock(mutex_);
    --own_;
    handed_over_[fd] = status.st_ino;
  }

 private:
  void Sweep() {
    const SteadyTime now = std::chrono::steady_clock::now();
    if (now < next_sweep_) return;
    next_sweep_ = now + kSweepEvery;
    std::erase_if(handed_over_, [](const auto& connection) {
      struct stat status {};
      return fstat(connection.first, &status) != 0 || !S_ISSOCK(status.st_mode) ||
             status.st_ino != connection.second;
    });
  }

  const size_t most_;
  std::mutex mutex_;  // guards all below
  size_t own_ = 0;
  std::map<int, ino_t> handed_over_;
  SteadyTime next_sweep_{};
};

bool IsUnix(int fd) {
  int domain = 0;
  socklen_t length = sizeof domain;
  return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

bool PeerIs(int fd, uint32_t uid) {
  ucred peer{};
  socklen_t length = sizeof peer;
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == uid;
}

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerOptions options, bool unix_socket)
      : options_(std::move(options)),
        host_(std::make_shared<CallHost>(
            CallHost{options_.router, options_.authenticator, std::make_shared<Outstanding>(), unix_socket})),
        count_(options_.max_connections) {}
  ~ServerImpl() override { Stop(2000); }

  Status Begin(int listener) {
    grpc_completion_queue* const queue = CompletionQueue();  // first of all: starts gRPC
    ServerArguments arguments(options_, host_->unix_socket);
    const grpc_channel_args args = arguments.get();
    server_ = grpc_server_create(&args, nullptr);
    grpc_server_register_completion_queue(server_, queue, nullptr);
    grpc_server_start(server_);
    for (int i = 0; i < kCallsAwaited; ++i) new NextCall(server_, host_);
    return Accept(listener);
  }

  void Stop(int grace_ms) override {
    std::lock_guard lock(stop_mutex_);
    if (server_ == nullptr) return;
    const SteadyTime until = std::chrono::steady_clock::now() + Millis(grace_ms);
    // First: a connection that gRPC is given after its Shutdown would never be closed.
    Acceptor::Get().Remove(listener_id_);
    if (http_) http_->Stop();
    CHECK(!OnPollerThread());
    Finished finished;
    grpc_server_shutdown_and_notify(server_, CompletionQueue(), &finished);
    grpc_server_cancel_all_calls(server_);
    finished.Wait();
    if (!host_->outstanding->WaitForNone(until))
      LOG_WARN("handlers still hold calls after their server has stopped");
    grpc_server_destroy(std::exchange(server_, nullptr));
  }

 private:
  Status Accept(int listener) {
    if (options_.http) {
      http_ = std::make_shared<HttpServer>(
          options_.http, [this](UniqueFd fd) { Acceptor::Get().Park(listener_id_, std::move(fd)); },
          [this] { count_.Closed(); });
    }
    Acceptor::Handlers handlers;
    handlers.admit = [this](int fd) { return Admit(fd); };
    handlers.on_grpc = [this](UniqueFd fd) {
      count_.HandedOver(fd.get());
      grpc_server_add_channel_from_fd(server_, fd.release(), InsecureServer());
    };
    handlers.on_http = [this](UniqueFd fd) {
      if (http_) return http_->Serve(std::move(fd));
      fd.reset();
      count_.Closed();
    };
    handlers.on_drop = [this](int) { count_.Closed(); };
    ASSIGN_OR_RETURN(listener_id_, Acceptor::Get().Listen(listener, std::move(handlers)));
    return {};
  }

  bool Admit(int fd) {
    if (options_.require_peer_uid != UINT32_MAX && !PeerIs(fd, options_.require_peer_uid)) {
      LOG_WARN("a connection of another user was refused", {{"uid_wanted", options_.require_peer_uid}});
      return false;
    }
    if (count_.Admit()) return true;
    LOG_WARN("a connection was refused: there are too many", {{"limit", options_.max_connections}});
    return false;
  }

  const ServerOptions options_;
  const std::shared_ptr<CallHost> host_;
  ConnectionCount count_;
  std::mutex stop_mutex_;  // guards the end of server_
  std::shared_ptr<HttpServer> http_;
  uint64_t listener_id_ = 0;
  grpc_server* server_ = nullptr;
};

Result<UniqueFd> ListenUnix(const std::string& path, int mode) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return InvalidArgument("unix:" + path + ": a socket's path has 1 to " +
                           std::to_string(sizeof address.sun_path - 1) + " bytes");
  }
  memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return ErrnoStatus("socket");
  unlink(path.c_str());  // of a process that is gone
  // The mode of the inode that bind makes: nobody may connect between bind and a later chmod.
  if (fchmod(fd.get(), static_cast<mode_t>(mode)) != 0) return ErrnoStatus(path);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return ErrnoStatus("unix:" + path);
  if (chmod(path.c_str(), static_cast<mode_t>(mode)) != 0) return ErrnoStatus(path);
  if (listen(fd.get(), 1024) != 0) return ErrnoStatus("unix:" + path);
  return fd;
}

Result<UniqueFd> ListenTcp(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return InvalidArgument(address + ": expected HOST:PORT or unix:PATH");
  std::string host = address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  if (const int error = getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return InvalidArgument(address + ": " + gai_strerror(error));
  }
  std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, freeaddrinfo);
  UniqueFd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || listen(fd.get(), 1024) != 0) {
    return ErrnoStatus(address);
  }
  return fd;
}

}  // namespace

Result<std::unique_ptr<Server>> Server::Start(ServerOptions options, int listener) {
  CHECK(options.router != nullptr);
  auto server = std::make_unique<ServerImpl>(std::move(options), IsUnix(listener));
  RETURN_IF_ERROR(server->Begin(listener));
  return std::unique_ptr<Server>(std::move(server));
}

Result<UniqueFd> Listen(const std::string& address, int mode) {
  if (address.starts_with("unix:")) return ListenUnix(address.substr(5), mode);
  return ListenTcp(address);
}

}  // namespace lydian::rpc
