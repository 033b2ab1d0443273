#include "spawner/server.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <utility>
#include <vector>

#include "base/log.h"
#include "spawner/frames.h"
#include "spawner/keeper.h"

namespace lydian::spawner {
namespace {

constexpr size_t kMaxConnections = 64;
constexpr size_t kMaxUnreadBytes = 2 * kMaxFrameBytes;  // of replies to somebody who doesn't read
constexpr int kReadsAtOnce = 16;                        // of one connection, before others have their turn
constexpr auto kStopTimeout = std::chrono::seconds(5);

struct Connection {
  UniqueFd socket;
  FrameReader reader;
  FrameWriter writer;
  bool wants_write = false;
  bool dead = false;
};

class EpollServer : public Server {
 public:
  EpollServer(ServerOptions options, std::unique_ptr<runtime::Runtime> runtime)
      : options_(std::move(options)),
        keeper_(std::move(runtime), [this](const ExitEvent& exit) { Broadcast(exit); }) {}

  Status Start() {
    if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return ErrnoStatus("becoming a child subreaper");
    sigset_t signals;
    sigemptyset(&signals);
    for (int signal : {SIGCHLD, SIGTERM, SIGINT}) sigaddset(&signals, signal);
    if (::sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) return ErrnoStatus("blocking signals");
    signals_.reset(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_.valid()) return ErrnoStatus("making a signalfd");
    epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_.valid()) return ErrnoStatus("making an epoll");
    RETURN_IF_ERROR(Watch(signals_.get(), EPOLLIN, EPOLL_CTL_ADD));
    if (keeper_.event_fd() >= 0) RETURN_IF_ERROR(Watch(keeper_.event_fd(), EPOLLIN, EPOLL_CTL_ADD));
    return Watch(options_.listener.get(), EPOLLIN, EPOLL_CTL_ADD);
  }

  Status Run() override {
    Reap();  // children that ended before signals were ours
    bool refill = true;
    while (!stopping_) {
      ASSIGN_OR_RETURN(int events, Turn(refill ? 0 : -1));
      // Pools are filled only when nothing else is to be done.
      refill = events > 0 || keeper_.Refill();
    }
    return End();
  }

 private:
  Status Watch(int fd, uint32_t events, int operation) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(epoll_.get(), operation, fd, &event) != 0) return ErrnoStatus("watching a descriptor");
    return OkStatus();
  }

  // Waits for events and deals with them; how many there were.
  Result<int> Turn(int timeout_ms) {
    epoll_event events[64];
    int count = ::epoll_wait(epoll_.get(), events, 64, timeout_ms);
    if (count < 0 && errno == EINTR) return 0;
    if (count < 0) return ErrnoStatus("waiting for events");
    for (int i = 0; i < count; ++i) {
      int fd = events[i].data.fd;
      if (fd == signals_.get()) {
        OnSignals();
      } else if (fd == keeper_.event_fd()) {
        keeper_.OnEvent();
      } else if (fd == options_.listener.get()) {
        Accept();
      } else if (auto found = connections_.find(fd); found != connections_.end() && !found->second.dead) {
        if ((events[i].events & EPOLLOUT) != 0) Flush(found->second);
        if ((events[i].events & ~EPOLLOUT) != 0) OnReadable(found->second);
      }
    }
    // Only here, so that a number isn't given to a new connection while events of the old one are about.
    std::erase_if(connections_, [](const auto& item) { return item.second.dead; });
    return count;
  }

  void OnSignals() {
    signalfd_siginfo info;
    while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
      if (info.ssi_signo != SIGCHLD) stopping_ = true;
    }
    Reap();
  }

  void Reap() {
    while (true) {
      int status = 0;
      pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
      if (pid <= 0) return;
      keeper_.OnReaped(pid, status);
    }
  }

  void Accept() {
    UniqueFd socket(::accept4(options_.listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        LOG_WARN("accepting failed", {{"error", ErrnoStatus("accept")}});
      return;
    }
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
        peer.uid != options_.peer_uid) {
      LOG_WARN("a connection of another user was refused", {{"uid", peer.uid}, {"pid", peer.pid}});
      return;
    }
    if (connections_.size() >= kMaxConnections) {
      LOG_WARN("a connection was refused: there are too many", {{"pid", peer.pid}});
      return;
    }
    int fd = socket.get();
    if (Status status = Watch(fd, EPOLLIN, EPOLL_CTL_ADD); !status.ok()) {
      LOG_WARN("a connection was refused", {{"error", status}});
      return;
    }
    Connection& connection = connections_[fd];
    connection.socket = std::move(socket);
    SpawnerReply hello;
    hello.mutable_hello()->set_pid(::getpid());
    hello.mutable_hello()->set_instance(options_.instance);
    Send(connection, hello, {});
  }

  void OnReadable(Connection& connection) {
    for (int i = 0; i < kReadsAtOnce && !connection.dead; ++i) {
      auto outcome = connection.reader.Read(connection.socket.get());
      if (!outcome.ok()) return Drop(connection, outcome.status());
      if (*outcome == FrameReader::Outcome::kWouldBlock) return;
      if (*outcome == FrameReader::Outcome::kEnd) return Drop(connection, OkStatus());
      if (Status status = HandleFrames(connection); !status.ok()) return Drop(connection, status);
    }
  }

  Status HandleFrames(Connection& connection) {
    while (!connection.dead) {
      ASSIGN_OR_RETURN(auto frame, connection.reader.Next());
      if (!frame) return OkStatus();
      SpawnerRequest request;
      if (!request.ParseFromString(*frame)) return InvalidArgument("a frame that is no request");
      ASSIGN_OR_RETURN(auto fds, connection.reader.TakeFds(Keeper::NamedFds(request)));
      std::vector<UniqueFd> out;
      SpawnerReply reply = keeper_.Handle(request, std::move(fds), &out);
      if (request.id() != 0) Send(connection, reply, std::move(out));
    }
    return OkStatus();
  }

  void Send(Connection& connection, const SpawnerReply& reply, std::vector<UniqueFd> fds) {
    if (connection.dead) return;
    size_t size = reply.ByteSizeLong();
    if (size > kMaxFrameBytes || connection.writer.bytes() + size > kMaxUnreadBytes) {
      return Drop(connection, ResourceExhausted("it does not read its replies"));
    }
    connection.writer.Push(reply.SerializeAsString(), std::move(fds));
    if (!connection.wants_write) Flush(connection);
  }

  void Flush(Connection& connection) {
    auto done = connection.writer.Write(connection.socket.get());
    if (!done.ok()) return Drop(connection, done.status());
    bool wants = !*done;
    if (wants == connection.wants_write) return;
    connection.wants_write = wants;
    Status status = Watch(connection.socket.get(), wants ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    if (!status.ok()) Drop(connection, status);
  }

  // The entry goes at the end of the turn.
  void Drop(Connection& connection, const Status& why) {
    if (connection.dead) return;
    connection.dead = true;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection.socket.get(), nullptr);
    ::shutdown(connection.socket.get(), SHUT_RDWR);
    if (!why.ok() && why.error() != EPIPE && why.error() != ECONNRESET)
      LOG_WARN("a connection was dropped", {{"error", why}});
  }

  void Broadcast(const ExitEvent& exit) {
    SpawnerReply reply;
    *reply.mutable_exit() = exit;
    for (auto& [fd, connection] : connections_) Send(connection, reply, {});
  }

  Status End() {
    LOG_INFO("stopping: ending all containers");
    keeper_.KillAll();
    auto until = std::chrono::steady_clock::now() + kStopTimeout;
    while (!keeper_.AllEnded()) {
      auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now())
              .count();
      if (left <= 0) break;
      RETURN_IF_ERROR(Turn(static_cast<int>(left)).status());
    }
    keeper_.RemoveAll();
    return OkStatus();
  }

  ServerOptions options_;
  Keeper keeper_;
  UniqueFd epoll_, signals_;
  std::map<int, Connection> connections_;
  bool stopping_ = false;
};

}  // namespace

Result<std::unique_ptr<Server>> Server::Create(ServerOptions options,
                                               std::unique_ptr<runtime::Runtime> runtime) {
  auto server = std::make_unique<EpollServer>(std::move(options), std::move(runtime));
  RETURN_IF_ERROR(server->Start());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace lydian::spawner
