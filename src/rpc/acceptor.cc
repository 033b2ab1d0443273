#include "rpc/acceptor.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <string_view>

#include "base/log.h"

namespace lydian::rpc {
namespace {

constexpr Millis kFirstBytes = Millis(10'000);  // from accept to a whole request header
constexpr Millis kKeepAlive = Millis(75'000);   // from an answer to the next request's header
constexpr Millis kLinger = Millis(2'000);       // for a client that still sends when it has been refused
constexpr int kAcceptsAtOnce = 64;              // then other events get their turn
constexpr uint64_t kIsListener = uint64_t{1} << 63;
constexpr uint64_t kIsMailbox = ~uint64_t{0};
constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// A client's first frame is SETTINGS (RFC 9113, 3.4): a header of 9 bytes, which begins with the length of
// what follows. A connection is handed over when it is there: from then on it may be idle.
constexpr size_t kFrameHeader = 9;
constexpr size_t kMostSettings = 1024;
constexpr char kSettingsType = 4;

enum class Opening { kIncomplete, kComplete, kWrong };
Opening OpeningOf(std::string_view bytes) {
  if (!bytes.starts_with(kPreface.substr(0, bytes.size()))) return Opening::kWrong;
  if (bytes.size() < kPreface.size() + kFrameHeader) return Opening::kIncomplete;
  const std::string_view frame = bytes.substr(kPreface.size());
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(frame[i])); };
  const size_t length = byte(0) << 16 | byte(1) << 8 | byte(2);
  if (frame[3] != kSettingsType || length > kMostSettings) return Opening::kWrong;
  return frame.size() < kFrameHeader + length ? Opening::kIncomplete : Opening::kComplete;
}

void Watch(int epoll, int fd, uint64_t data, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = data;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
    LOG_ERROR("a socket can't be watched", {{"fd", fd}, {"error", ErrnoStatus("epoll_ctl")}});
  }
}

}  // namespace

void KeepAlive(int fd) {
  const int on = 1, idle = 10, pause = 5, probes = 3;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &pause, sizeof pause);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

Acceptor& Acceptor::Get() {
  static Acceptor* acceptor = new Acceptor();
  return *acceptor;
}

Acceptor::Acceptor()
    : epoll_(epoll_create1(EPOLL_CLOEXEC)),
      spare_(open("/dev/null", O_RDONLY | O_CLOEXEC)),
      peeked_(kMostHttpHeader) {
  CHECK(epoll_.valid());
  Watch(epoll_.get(), mailbox_.fd(), kIsMailbox, EPOLLIN);
  thread_ = std::thread([this] { Loop(); });
}

Result<uint64_t> Acceptor::Listen(int listener, Handlers handlers) {
  ASSIGN_OR_RETURN(UniqueFd own, Duplicate(listener));
  // Somebody else may take the connection between the event and accept.
  const int flags = fcntl(own.get(), F_GETFL);
  if (flags < 0 || fcntl(own.get(), F_SETFL, flags | O_NONBLOCK) != 0) return ErrnoStatus("listening socket");
  const uint64_t id = next_id_.fetch_add(1);
  auto entry = std::make_shared<Listener>(Listener{std::move(own), std::move(handlers)});
  mailbox_.Post([this, id, entry] {
    const int fd = entry->fd.get();
    listeners_.emplace(id, std::move(*entry));
    Watch(epoll_.get(), fd, kIsListener | id, EPOLLIN);
  });
  return id;
}

void Acceptor::Park(uint64_t id, UniqueFd fd) {
  auto shared = std::make_shared<UniqueFd>(std::move(fd));
  mailbox_.Post([this, id, shared] {
    if (listeners_.contains(id)) Wait(id, std::move(*shared), For::kHeader, kKeepAlive);
  });
}

void Acceptor::Linger(uint64_t id, UniqueFd fd) {
  shutdown(fd.get(), SHUT_WR);
  auto shared = std::make_shared<UniqueFd>(std::move(fd));
  mailbox_.Post([this, id, shared] {
    if (listeners_.contains(id)) Wait(id, std::move(*shared), For::kEnd, kLinger);
  });
}

void Acceptor::Remove(uint64_t id) {
  std::promise<void> done;
  mailbox_.Post([this, id, &done] {
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      auto here = it++;
      if (here->second.listener == id) Drop(here);
    }
    if (auto it = listeners_.find(id); it != listeners_.end()) {
      // Closing is not enough: the socket lives on in whoever we duplicated it from, and with it the
      // registration.
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second.fd.get(), nullptr);
      listeners_.erase(it);
    }
    done.set_value();
  });
  done.get_future().wait();
}

int Acceptor::WaitMillis() const {
  if (deadlines_.empty()) return -1;
  const auto left = deadlines_.begin()->first - std::chrono::steady_clock::now();
  return static_cast<int>(std::max<int64_t>(0, std::chrono::ceil<Millis>(left).count()));
}

void Acceptor::Loop() {
  pthread_setname_np(pthread_self(), "rpc-accept");
  epoll_event events[64];
  for (;;) {
    const int count = epoll_wait(epoll_.get(), events, 64, WaitMillis());
    if (count < 0 && errno != EINTR) CHECK(false);
    for (int i = 0; i < count; ++i) {
      const uint64_t data = events[i].data.u64;
      if (data == kIsMailbox) {
        mailbox_.Run();
      } else if (data & kIsListener) {
        AcceptFrom(data & ~kIsListener);
      } else {
        Look(static_cast<int>(data), (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
      }
    }
    CloseLate();
  }
}

void Acceptor::CloseLate() {
  if (deadlines_.empty()) return;
  const SteadyTime now = std::chrono::steady_clock::now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now)
    Drop(waiting_.find(deadlines_.begin()->second));
}

void Acceptor::AcceptFrom(uint64_t id) {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    auto it = listeners_.find(id);
    if (it == listeners_.end()) return;
    UniqueFd fd(accept4(it->second.fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) {
      if (errno == EMFILE || errno == ENFILE) ShedOne(it->second.fd.get());
      if (errno != EINTR && errno != ECONNABORTED) return;
      continue;
    }
    if (!it->second.handlers.admit(fd.get())) continue;
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // fails on unix sockets, which need none
    KeepAlive(fd.get());
    Wait(id, std::move(fd), For::kFirstBytes, kFirstBytes);
  }
}

// Without a free descriptor the connection would stay in the queue and wake us for ever: it is taken and
// closed.
void Acceptor::ShedOne(int listener) {
  LOG_ERROR("no file descriptor left for a connection: it was closed");
  spare_.reset();
  UniqueFd refused(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  refused.reset();
  spare_.reset(open("/dev/null", O_RDONLY | O_CLOEXEC));
  errno = EMFILE;
}

void Acceptor::Wait(uint64_t id, UniqueFd fd, For what, Millis most) {
  const int number = fd.get();
  auto deadline = deadlines_.emplace(std::chrono::steady_clock::now() + most, number);
  waiting_[number] = Waiting{std::move(fd), id, what, deadline};
  // Edge-triggered: the bytes stay in the socket, and only new ones are news. At the end they are taken.
  const uint32_t edge = what == For::kEnd ? 0U : uint32_t{EPOLLET};
  Watch(epoll_.get(), number, static_cast<uint64_t>(number), EPOLLIN | EPOLLRDHUP | edge);
}

void Acceptor::Look(int fd, bool peer_closed) {
  auto it = waiting_.find(fd);
  if (it == waiting_.end()) return;
  const int take = it->second.what == For::kEnd ? 0 : MSG_PEEK;
  ssize_t count = 0;
  do {
    count = recv(fd, peeked_.data(), peeked_.size(), take | MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count < 0 && errno == EAGAIN) return;
  if (count <= 0) return Drop(it);
  if (it->second.what == For::kEnd) return;
  const std::string_view bytes(peeked_.data(), static_cast<size_t>(count));
  if (it->second.what == For::kFirstBytes) {
    // Three bytes tell: HTTP/1.1 has no method that begins with "PRI".
    if (kPreface.starts_with(bytes.substr(0, 3))) {
      const Opening opening = OpeningOf(bytes);
      if (opening == Opening::kComplete) return HandOver(it, false);
      if (opening == Opening::kWrong) return Drop(it);
    } else {
      it->second.what = For::kHeader;
      return Look(fd, peer_closed);
    }
  } else if (bytes.find("\r\n\r\n") != bytes.npos || bytes.size() == peeked_.size()) {
    return HandOver(it, true);
  }
  if (peer_closed) Drop(it);  // the rest will not come
}

void Acceptor::HandOver(std::map<int, Waiting>::iterator it, bool http) {
  UniqueFd fd = std::move(it->second.fd);
  const uint64_t id = it->second.listener;
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd.get(), nullptr);
  deadlines_.erase(it->second.deadline);
  waiting_.erase(it);
  auto listener = listeners_.find(id);
  if (listener == listeners_.end()) return;
  (http ? listener->second.handlers.on_http : listener->second.handlers.on_grpc)(std::move(fd));
}

void Acceptor::Drop(std::map<int, Waiting>::iterator it) {
  auto listener = listeners_.find(it->second.listener);
  if (listener != listeners_.end()) listener->second.handlers.on_drop(it->second.fd.get());
  deadlines_.erase(it->second.deadline);
  waiting_.erase(it);  // closes, and with it leaves the epoll set
}

}  // namespace lydian::rpc
