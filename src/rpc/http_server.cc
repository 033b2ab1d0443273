#include "rpc/http_server.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <deque>
#include <map>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/executor.h"
#include "base/log.h"
#include "rpc/acceptor.h"
#include "rpc/connections.h"

namespace lydian::rpc {
namespace {

namespace beast = boost::beast;
using boost::system::error_code;

// For the head that begins behind another request; a first one is whole when it comes here.
constexpr Millis kHeadTime(1'000);
constexpr Millis kRateWindow(30'000);  // a body must move kLeastMoved in it, either way, or its rest
constexpr uint64_t kLeastMoved = 30 << 10;
constexpr size_t kMostThreads = 256;
// Of one address; of this host, where a proxy may bring everybody's; of unix sockets, by which a worker
// brings its containers' (worker/guest_http.h).
constexpr size_t kMostOfAddress = 32, kMostOfHost = 64, kMostOfUnix = 144;
constexpr Millis kIdleThread(30'000);
constexpr uint64_t kMostDrained = 1 << 20;  // of a body nobody read, to keep the connection

size_t MostOf(const std::string& peer) {
  if (peer.starts_with(kUnixPeer)) return kMostOfUnix;
  return IsThisHost(peer) ? kMostOfHost : kMostOfAddress;
}

// Threads that come when work waits and none is free, and go when they have been idle.
class ElasticPool {
 public:
  static ElasticPool& Get() {
    static ElasticPool* pool = new ElasticPool();
    return *pool;
  }

  // Of each peer's tasks only so many run at once, or are next.
  void Post(const std::string& peer, Task task) {
    std::lock_guard lock(mutex_);
    Peer& of = peers_[peer];
    of.waiting.push_back(std::move(task));
    AdmitLocked(peer, of);
  }

 private:
  struct Peer {
    size_t admitted = 0;
    std::deque<Task> waiting;
  };

  void AdmitLocked(const std::string& peer, Peer& of) {
    if (of.waiting.empty() || of.admitted >= MostOf(peer)) return;
    ++of.admitted;
    tasks_.emplace_back(peer, std::move(of.waiting.front()));
    of.waiting.pop_front();
    if (tasks_.size() > idle_ && threads_ < kMostThreads) {
      ++threads_;
      std::thread([this] { Loop(); }).detach();
    } else {
      changed_.notify_one();
    }
  }

  void DoneLocked(const std::string& peer) {
    auto it = peers_.find(peer);
    --it->second.admitted;
    AdmitLocked(peer, it->second);
    if (it->second.admitted == 0) peers_.erase(it);
  }

  void Loop() {
    pthread_setname_np(pthread_self(), "http");
    sigset_t pipe;  // sendfile to a closed connection must be an error, not a signal
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
    std::unique_lock lock(mutex_);
    for (;;) {
      if (tasks_.empty()) {
        ++idle_;
        const bool work = changed_.wait_for(lock, kIdleThread, [this] { return !tasks_.empty(); });
        --idle_;
        if (!work) break;
      }
      auto [peer, task] = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
      DoneLocked(peer);
    }
    --threads_;
  }

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<std::pair<std::string, Task>> tasks_;  // to be run next
  std::map<std::string, Peer> peers_;
  size_t idle_ = 0, threads_ = 0;
};

// A socket with time limits, as Beast wants a blocking stream to look.
class SocketStream {
 public:
  explicit SocketStream(int fd) : fd_(fd) {}

  // What follows must be over by then.
  void Limit(Millis most) {
    until_ = std::chrono::steady_clock::now() + most;
    rated_ = false;
  }
  // What follows must move kLeastMoved in each kRateWindow. The time of a handler between two calls is not
  // the client's, so each part of a body begins anew.
  void LimitRate() {
    until_ = std::chrono::steady_clock::now() + kRateWindow;
    rated_ = true;
    moved_ = 0;
    queued_ = Queued();
  }
  void Moved(size_t count) {
    if (rated_ && (moved_ += count) >= kLeastMoved) LimitRate();
  }

  ssize_t Receive(void* data, size_t size, error_code& ec) {
    for (;;) {
      const ssize_t count = recv(fd_, data, size, MSG_DONTWAIT);
      if (count > 0) return Moved(static_cast<size_t>(count)), count;
      if (count == 0) return ec = boost::asio::error::eof, 0;
      if (!Again(POLLIN, ec)) return 0;
    }
  }
  bool Send(std::string_view data, error_code& ec) {
    while (!data.empty()) {
      const ssize_t count = send(fd_, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (count >= 0) {
        data.remove_prefix(static_cast<size_t>(count));
        Moved(static_cast<size_t>(count));
      } else if (!Again(POLLOUT, ec)) {
        return false;
      }
    }
    return true;
  }
  // After a failed call: waits if it may be tried again.
  bool Again(short events, error_code& ec) {
    if (errno == EINTR) return true;
    if (errno != EAGAIN && errno != EWOULDBLOCK)
      return ec = error_code(errno, boost::system::system_category()), false;
    pollfd wait{fd_, events, 0};
    const auto left = std::chrono::ceil<Millis>(until_ - std::chrono::steady_clock::now());
    const int ready = left.count() <= 0 ? 0 : poll(&wait, 1, static_cast<int>(left.count()));
    // A socket is writable only when much of its buffer is free: a slow reader may have taken enough.
    if (ready == 0 && rated_ && events == POLLOUT && Queued() + kLeastMoved <= queued_ + moved_)
      return LimitRate(), true;
    if (ready == 0) return ec = boost::asio::error::timed_out, false;
    if (ready < 0 && errno != EINTR) return ec = error_code(errno, boost::system::system_category()), false;
    return true;
  }

  template <typename Buffers>
  size_t read_some(const Buffers& buffers, error_code& ec) {
    ec = {};
    for (auto it = boost::asio::buffer_sequence_begin(buffers);
         it != boost::asio::buffer_sequence_end(buffers); ++it) {
      boost::asio::mutable_buffer buffer(*it);
      if (buffer.size() > 0) return static_cast<size_t>(Receive(buffer.data(), buffer.size(), ec));
    }
    return 0;
  }
  template <typename Buffers>
  size_t read_some(const Buffers& buffers) {
    error_code ec;
    const size_t count = read_some(buffers, ec);
    if (ec) throw boost::system::system_error(ec);
    return count;
  }

 private:
  // Bytes that the other side has not taken yet.
  uint64_t Queued() const {
    int count = 0;
    return ioctl(fd_, SIOCOUTQ, &count) == 0 && count > 0 ? static_cast<uint64_t>(count) : 0;
  }

  int fd_;
  SteadyTime until_;
  bool rated_ = false;
  uint64_t moved_ = 0, queued_ = 0;
};

std::string PeerName(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  char text[INET6_ADDRSTRLEN] = {};
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "";
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(&address)->sin_addr, text, sizeof text);
  } else if (address.ss_family == AF_INET6) {
    inet_ntop(AF_INET6, &reinterpret_cast<sockaddr_in6*>(&address)->sin6_addr, text, sizeof text);
  } else if (address.ss_family == AF_UNIX) {
    return "unix";
  }
  return text;
}

void ParseTarget(http::Request& request) {
  std::string_view target = request.target;
  for (std::string_view scheme : {"http://", "https://"}) {  // the form that goes to proxies
    if (!target.starts_with(scheme)) continue;
    const size_t slash = target.find('/', scheme.size());
    target = slash == target.npos ? std::string_view("/") : target.substr(slash);
  }
  target = target.substr(0, target.find('#'));
  const size_t mark = target.find('?');
  request.path = http::PercentDecode(target.substr(0, mark));
  std::string_view rest = mark == target.npos ? std::string_view() : target.substr(mark + 1);
  while (!rest.empty()) {
    std::string pair(rest.substr(0, rest.find('&')));
    rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
    std::replace(pair.begin(), pair.end(), '+', ' ');
    const size_t equals = pair.find('=');
    const std::string_view view = pair;
    request.query.emplace_back(
        http::PercentDecode(view.substr(0, equals)),
        equals == pair.npos ? std::string() : http::PercentDecode(view.substr(equals + 1)));
  }
}

class HttpConnection : public http::Exchange {
 public:
  HttpConnection(int fd, http::Handler& handler)
      : fd_(fd), handler_(handler), stream_(fd), peer_(PeerName(fd)) {}

  enum class Fate { kWaits, kLingers, kEnds };

  // Exchanges until the next request isn't there yet.
  Fate Run() {
    do {
      if (!One()) return lingers_ ? Fate::kLingers : Fate::kEnds;
    } while (buffer_.size() > 0);
    return Fate::kWaits;
  }

  const http::Request& request() const override { return request_; }

  Result<std::string> ReadBody(size_t most) override {
    if (!body_error_.ok()) return body_error_;
    if (BodyDone()) return std::string();
    stream_.LimitRate();
    if (std::exchange(expects_continue_, false)) {
      error_code ec;
      if (!stream_.Send("HTTP/1.1 100 Continue\r\n\r\n", ec)) return BodyFailed(ec);
    }
    return parser_->chunked() ? ReadChunked(most) : ReadPlain(most);
  }

 private:
  bool BodyDone() const { return parser_->chunked() ? parser_->is_done() : left_ == 0; }

  Status BodyFailed(const error_code& ec) {
    if (ec == boost::asio::error::eof || ec == beast::http::error::partial_message) {
      body_error_ = DataLoss("the client sent less than it announced");
    } else if (ec == boost::asio::error::timed_out) {
      body_error_ = DeadlineExceeded("the client sent less than " + std::to_string(kLeastMoved >> 10) +
                                     " KiB in " + std::to_string(kRateWindow.count() / 1000) + " s");
    } else {
      body_error_ = Unavailable("the body could not be read: " + ec.message());
    }
    return body_error_;
  }

  // A body of known length goes from the socket to the caller without another copy.
  Result<std::string> ReadPlain(size_t most) {
    std::string part(static_cast<size_t>(std::min<uint64_t>(most, left_)), '\0');
    size_t filled = std::min(part.size(), buffer_.size());
    memcpy(part.data(), buffer_.data().data(), filled);
    buffer_.consume(filled);
    error_code ec;
    while (filled < part.size()) {
      const ssize_t count = stream_.Receive(part.data() + filled, part.size() - filled, ec);
      if (ec) return BodyFailed(ec);
      filled += static_cast<size_t>(count);
    }
    left_ -= part.size();
    return part;
  }

  Result<std::string> ReadChunked(size_t most) {
    std::string part(most, '\0');
    parser_->get().body().data = part.data();
    parser_->get().body().size = part.size();
    error_code ec;
    beast::http::read(stream_, buffer_, *parser_, ec);
    if (ec && ec != beast::http::error::need_buffer) return BodyFailed(ec);
    part.resize(part.size() - parser_->get().body().size);
    return part;
  }

  bool One() {
    parser_.emplace();
    parser_->header_limit(kMostHttpHeader);
    parser_->body_limit(boost::none);
    body_error_ = {};
    error_code ec;
    stream_.Limit(kHeadTime);
    beast::http::read_header(stream_, buffer_, *parser_, ec);
    if (ec) {
      Refuse(ec);
      return false;
    }
    TakeRequest();
    http::Response response;
    try {
      response = handler_.Handle(*this);
    } catch (const std::exception& e) {  // of a library below; ours throw nothing
      LOG_ERROR("an HTTP handler failed",
                {{"method", request_.method}, {"path", request_.path}, {"error", e.what()}});
      response = {};
      response.status = 500;
      response.body = "internal error\n";
    }
    UniqueFd file(response.file_fd);
    bool keep = parser_->keep_alive() && body_error_.ok();
    // A client that was told neither to go on nor that it may stop: what it sends next can't be told.
    if (expects_continue_ && !BodyDone()) keep = false;
    // The body of what was refused is not worth a thread's wait.
    if (response.status >= 400 && !BodyDone()) keep = false;
    if (keep && !BodyDone()) keep = Drain();
    if (!Answer(response, file.get(), keep)) return false;
    lingers_ = !keep;
    return keep;
  }

  void TakeRequest() {
    const auto& message = parser_->get();
    request_ = {};
    request_.method = std::string(message.method_string());
    request_.target = std::string(message.target());
    for (const auto& field : message) {
      std::string name(field.name_string());
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      request_.headers.emplace_back(std::move(name), std::string(field.value()));
    }
    const auto length = parser_->content_length();
    request_.has_length = length.has_value();
    request_.content_length = left_ = length.value_or(0);
    request_.peer = peer_;
    expects_continue_ = beast::iequals(message[beast::http::field::expect], "100-continue");
    ParseTarget(request_);
  }

  bool Drain() {
    uint64_t drained = 0;
    while (!BodyDone()) {
      auto part = ReadBody(1 << 16);
      if (!part.ok() || (drained += part->size()) > kMostDrained) return false;
    }
    return true;
  }

  void Refuse(const error_code& ec) {
    if (ec == beast::http::error::end_of_stream || ec == boost::asio::error::eof ||
        ec.category() == boost::system::system_category()) {
      return;
    }
    http::Response response;
    response.status = ec == beast::http::error::header_limit ? 431 : 400;
    response.body = "this is not an HTTP/1.1 request that can be answered: " + ec.message() + "\n";
    request_.method.clear();
    lingers_ = Answer(response, -1, false);
  }

  bool Answer(const http::Response& response, int file, bool keep) {
    const uint64_t length = file >= 0 ? response.file_length : response.body.size();
    std::string head = "HTTP/1.1 " + std::to_string(response.status) + " ";
    head += beast::http::obsolete_reason(static_cast<beast::http::status>(response.status));
    head += "\r\n";
    bool has_length = false;
    for (const auto& [name, value] : response.headers) {
      if ((name + value).find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
        LOG_ERROR("a header with a line break was left out", {{"path", request_.path}});
        continue;
      }
      has_length = has_length || beast::iequals(name, "content-length");
      head += name + ": " + value + "\r\n";
    }
    const bool bodiless = response.status < 200 || response.status == 204 || response.status == 304;
    if (!has_length && !bodiless) head += "Content-Length: " + std::to_string(length) + "\r\n";
    head += keep ? "\r\n" : "Connection: close\r\n\r\n";
    const bool with_body = request_.method != "HEAD" && !bodiless;
    if (with_body && file < 0) head += response.body;
    error_code ec;
    stream_.LimitRate();
    if (!stream_.Send(head, ec)) return false;
    return !with_body || file < 0 || SendFile(file, response.file_offset, response.file_length);
  }

  bool SendFile(int file, uint64_t offset, uint64_t left) {
    off_t at = static_cast<off_t>(offset);
    error_code ec;
    while (left > 0) {
      const ssize_t count = sendfile(fd_, file, &at, static_cast<size_t>(std::min<uint64_t>(left, 1 << 20)));
      if (count > 0) {
        left -= static_cast<uint64_t>(count);
        stream_.Moved(static_cast<size_t>(count));
      } else if (count == 0) {
        LOG_ERROR("a file was shorter than promised", {{"path", request_.path}, {"missing", left}});
        return false;
      } else if (!stream_.Again(POLLOUT, ec)) {
        return false;
      }
    }
    return true;
  }

  const int fd_;
  http::Handler& handler_;
  SocketStream stream_;
  const std::string peer_;
  beast::flat_buffer buffer_;
  std::optional<beast::http::request_parser<beast::http::buffer_body>> parser_;
  http::Request request_;
  uint64_t left_ = 0;
  bool expects_continue_ = false;
  bool lingers_ = false;  // answered, and to be closed
  Status body_error_;
};

}  // namespace

void HttpServer::Serve(UniqueFd fd) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    ++queued_;
    active_.insert(fd.get());
  }
  const std::string peer = PeerOf(fd.get());
  auto shared = std::make_shared<UniqueFd>(std::move(fd));
  ElasticPool::Get().Post(peer, [self = shared_from_this(), shared] { self->Run(std::move(*shared)); });
}

void HttpServer::Run(UniqueFd fd) {
  ways_.begin(fd.get());
  const HttpConnection::Fate fate = HttpConnection(fd.get(), *handler_).Run();
  {
    std::lock_guard lock(mutex_);
    active_.erase(fd.get());
  }
  switch (fate) {
    case HttpConnection::Fate::kWaits:
      ways_.park(std::move(fd));
      break;
    case HttpConnection::Fate::kLingers:
      ways_.linger(std::move(fd));
      break;
    case HttpConnection::Fate::kEnds:
      fd.reset();
      ways_.on_close();
  }
  std::lock_guard lock(mutex_);
  --queued_;
  changed_.notify_all();
}

void HttpServer::Stop() {
  std::unique_lock lock(mutex_);
  stopping_ = true;
  for (int fd : active_) shutdown(fd, SHUT_RDWR);
  changed_.wait(lock, [this] { return queued_ == 0; });
}

}  // namespace lydian::rpc
