#include "rpc/server.h"

#include <arpa/inet.h>
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
#include "rpc/connection.h"
#include "rpc/connections.h"
#include "rpc/http_server.h"
#include "rpc/loop.h"

namespace lydian::rpc {
namespace {

constexpr size_t kMostMessage = size_t{128} << 20;

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
        connections_(std::make_shared<Connections>(Connections::Limits{
            options_.max_connections, options_.max_strangers_of_address, options_.authenticate_within})),
        memory_(options_.memory ? options_.memory : MemoryBudget::OfProcess()) {}
  ~ServerImpl() override { Stop(2000); }

  Status Begin(int listener) {
    if (options_.http) {
      HttpServer::Ways ways;
      ways.begin = [connections = connections_](int fd) { connections->Begun(fd); };
      ways.park = [this](UniqueFd fd) {
        if (!host_->unix_socket) connections_->Parked(fd.get());
        Acceptor::Get().Park(listener_id_, std::move(fd));
      };
      ways.linger = [this](UniqueFd fd) {
        if (!host_->unix_socket) connections_->Parked(fd.get());
        Acceptor::Get().Linger(listener_id_, std::move(fd));
      };
      ways.on_close = [connections = connections_] { connections->Closed(); };
      http_ = std::make_shared<HttpServer>(options_.http, std::move(ways));
    }
    Acceptor::Handlers handlers;
    handlers.admit = [this](int fd) { return Admit(fd); };
    handlers.on_grpc = [this](UniqueFd fd) { Connect(std::move(fd)); };
    handlers.on_http = [this](UniqueFd fd) {
      if (http_) return http_->Serve(std::move(fd));
      connections_->Begun(fd.get());
      fd.reset();
      connections_->Closed();
    };
    handlers.on_drop = [this](int fd) { connections_->Dropped(fd); };
    ASSIGN_OR_RETURN(listener_id_, Acceptor::Get().Listen(listener, std::move(handlers)));
    return {};
  }

  void Stop(int grace_ms) override {
    std::lock_guard lock(stop_mutex_);
    if (std::exchange(stopped_, true)) return;
    CHECK(!Loop::Get().OnThread());
    const SteadyTime until = std::chrono::steady_clock::now() + Millis(grace_ms);
    if (listener_id_ != 0) Acceptor::Get().Remove(listener_id_);
    if (http_) http_->Stop();
    std::promise<void> closed;
    Loop::Get().Post([this, &closed] {
      for (const auto& connection : connections_->all()) connection->Close(Unavailable("the server stops"));
      closed.set_value();
    });
    closed.get_future().wait();
    if (!host_->outstanding->WaitForNone(until))
      LOG_WARN("handlers still hold calls after their server has stopped");
  }

 private:
  void Connect(UniqueFd fd) {
    const int number = fd.get();
    connections_->Add(number, [&] {
      Connection::Options options;
      options.most_message_bytes = kMostMessage;
      options.memory = memory_;
      options.most_streams = options_.max_streams;
      options.most_unread = options_.max_unread_bytes;
      options.unread_for = options_.unread_for;
      options.on_request = [host = host_](std::shared_ptr<H2Stream> stream, Headers request) {
        return StartCall(host, std::move(stream), std::move(request));
      };
      options.on_authenticated = [connections = connections_](const Connection* known) {
        connections->Authenticated(known);
      };
      options.on_closed = [connections = connections_](const Connection* closed) {
        connections->Remove(closed);
      };
      return Connection::Create(std::move(fd), std::move(options));
    });
  }

  bool Admit(int fd) {
    if (options_.require_peer_uid != UINT32_MAX && !PeerIs(fd, options_.require_peer_uid)) {
      LOG_WARN("a connection of another user was refused", {{"uid_wanted", options_.require_peer_uid}});
      return false;
    }
    if (connections_->Admit(fd, !host_->unix_socket)) return true;
    LOG_WARN("a connection was refused: there are too many", {{"limit", options_.max_connections}});
    return false;
  }

  const ServerOptions options_;
  const std::shared_ptr<CallHost> host_;
  const std::shared_ptr<Connections> connections_;
  const std::shared_ptr<MemoryBudget> memory_;
  std::mutex stop_mutex_;  // guards stopped_
  bool stopped_ = false;
  std::shared_ptr<HttpServer> http_;
  uint64_t listener_id_ = 0;
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
