#include "worker/guest_http.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <future>

#include "base/clock.h"
#include "base/log.h"

namespace lydian::worker {
namespace {
constexpr size_t kMostBuffered = 256 << 10;
constexpr size_t kMostConnections = 1024;
constexpr size_t kMostOfOne = 64;
constexpr std::chrono::seconds kHeadTime{15}, kIdleTime{300}, kLingerTime{2}, kConnectTime{10};
constexpr Millis kConnectPause{50};

const char* Reason(int status) {
  switch (status) {
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 411:
      return "Length Required";
    case 431:
      return "Request Header Fields Too Large";
    default:
      return "Service Unavailable";
  }
}
}  // namespace

struct GuestHttp::Entry {
  std::string task_id;
  uint64_t id;
  UniqueFd listener;
  size_t connections = 0;
};

struct GuestHttp::Connection {
  uint64_t id = 0;
  uint64_t entry_id = 0;
  UniqueFd client, upstream;
  std::string in;        // of the head
  std::string up, down;  // waiting to be written to control, to the container
  bool head_done = false, answered = false;
  bool upstream_ended = false;  // it sends no more
  bool lingering = false;       // all is said; what still comes is thrown away
  uint64_t body_left = 0;
  uint32_t client_events = 0, upstream_events = 0;
  bool client_added = false, upstream_added = false;
  SteadyTime deadline, connect_until = SteadyTime::max();
};

GuestHttp::GuestHttp(std::string upstream_path) : upstream_path_(std::move(upstream_path)) {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  CHECK(epoll_.valid() && wake_.valid());
  epoll_event event{.events = EPOLLIN, .data = {.u64 = 0}};
  CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) == 0);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "guest-http");
    Run();
  });
}

GuestHttp::~GuestHttp() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  Post([] {});
  thread_.join();
}

void GuestHttp::Post(Task task) {
  {
    std::lock_guard lock(mutex_);
    posted_.push_back(std::move(task));
  }
  uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
}

void GuestHttp::Add(const std::string& task_id, UniqueFd listener) {
  auto fd = std::make_shared<UniqueFd>(std::move(listener));
  Post([this, task_id, fd] {
    auto entry = std::make_unique<Entry>();
    entry->task_id = task_id;
    entry->id = next_id_++;
    entry->listener = std::move(*fd);
    epoll_event event{.events = EPOLLIN, .data = {.u64 = entry->id * 4}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, entry->listener.get(), &event) != 0) {
      LOG_ERROR("a container's HTTP socket can't be watched",
                {{"task_id", task_id}, {"error", ErrnoStatus("epoll")}});
      return;
    }
    by_id_[entry->id] = entry.get();
    entries_[task_id] = std::move(entry);
  });
}

void GuestHttp::Remove(const std::string& task_id) {
  Post([this, task_id] {
    auto it = entries_.find(task_id);
    if (it == entries_.end()) return;
    const uint64_t id = it->second->id;
    std::vector<uint64_t> open;
    for (const auto& [key, connection] : connections_) {
      if (connection->entry_id == id) open.push_back(key);
    }
    for (uint64_t key : open) Close(key);
    by_id_.erase(id);
    entries_.erase(it);
  });
}

void GuestHttp::Run() {
  std::array<epoll_event, 64> events;
  while (true) {
    const int count =
        epoll_wait(epoll_.get(), events.data(), events.size(), Sweep(std::chrono::steady_clock::now()));
    for (int i = 0; i < count; ++i) {
      const uint64_t key = events[i].data.u64;
      if (key == 0) {
        uint64_t ticks = 0;
        (void)!read(wake_.get(), &ticks, sizeof ticks);
      } else if (key % 4 == 0) {
        if (auto it = by_id_.find(key / 4); it != by_id_.end()) Accept(*it->second);
      } else if (auto it = connections_.find(key / 4); it != connections_.end()) {
        Serve(*it->second, key % 4 == 1, events[i].events);
      }
    }
    std::deque<Task> tasks;
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      tasks.swap(posted_);
    }
    for (Task& task : tasks) task();
  }
}

void GuestHttp::Accept(Entry& entry) {
  UniqueFd fd(accept4(entry.listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd.valid()) return;
  // Closed, not queued: a container that opens more than that is not at work.
  if (entry.connections >= kMostOfOne || connections_.size() >= kMostConnections) return;
  auto connection = std::make_unique<Connection>();
  connection->id = next_id_++;
  connection->entry_id = entry.id;
  connection->client = std::move(fd);
  connection->deadline = std::chrono::steady_clock::now() + kHeadTime;
  ++entry.connections;
  Connection& added = *connection;
  connections_[added.id] = std::move(connection);
  Watch(added);
}

// Reads up to what the other side's buffer has room for. False at the end or an error.
static bool ReadInto(int fd, std::string* buffer, size_t most) {
  std::array<char, 64 << 10> data;
  while (most > 0) {
    const ssize_t n = recv(fd, data.data(), std::min(most, data.size()), 0);
    if (n > 0) {
      buffer->append(data.data(), static_cast<size_t>(n));
      most -= static_cast<size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  }
  return true;
}

static bool WriteFrom(int fd, std::string* buffer) {
  size_t done = 0;
  bool good = true;
  while (done < buffer->size()) {
    const ssize_t n = send(fd, buffer->data() + done, buffer->size() - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      good = errno == EAGAIN || errno == EWOULDBLOCK;
      break;
    }
    done += static_cast<size_t>(n);
  }
  buffer->erase(0, done);
  return good;
}

void GuestHttp::Serve(Connection& c, bool from_client, uint32_t events) {
  const SteadyTime now = std::chrono::steady_clock::now();
  if (c.head_done && !c.lingering) c.deadline = now + kIdleTime;
  if (from_client) {
    if ((events & (EPOLLERR | EPOLLHUP)) != 0) return Close(c.id);
    if ((events & EPOLLIN) != 0) {
      if (c.lingering) {
        std::string thrown;
        if (!ReadInto(c.client.get(), &thrown, kMostBuffered)) return Close(c.id);
      } else if (!c.head_done) {
        if (!ReadInto(c.client.get(), &c.in, 16 << 10)) return Close(c.id);
      } else if (c.body_left > 0) {
        const size_t before = c.up.size();
        const size_t room = std::min<uint64_t>(c.body_left, kMostBuffered - std::min(before, kMostBuffered));
        if (!ReadInto(c.client.get(), &c.up, room)) return Close(c.id);
        c.body_left -= c.up.size() - before;
      }
    }
  } else if (c.upstream.valid()) {
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && !c.upstream_ended) {
      const size_t before = c.down.size();
      const size_t room = kMostBuffered - std::min(before, kMostBuffered);
      if (!ReadInto(c.upstream.get(), &c.down, room)) c.upstream_ended = true;
      if (c.down.size() > before) c.answered = true;
    }
  }
  Drive(c);
}

void GuestHttp::Drive(Connection& c) {
  if (!c.head_done && !c.lingering && !TakeHead(c)) return;
  if (c.upstream.valid() && !c.up.empty() && !c.upstream_ended && !WriteFrom(c.upstream.get(), &c.up)) {
    c.up.clear();  // it has answered early, or died: what it said is passed on
  }
  if (!c.down.empty() && !WriteFrom(c.client.get(), &c.down)) return Close(c.id);
  if (c.upstream_ended && c.upstream.valid()) {
    c.upstream.reset();
    c.upstream_added = false;
    if (!c.answered) return Fail(c, 503, "The server went away before it answered; try again.");
    c.lingering = true;
  }
  if (c.lingering && c.down.empty()) {
    // Closed with unread data, TCP would reset the connection and the answer might be lost.
    if (c.body_left == 0) return Close(c.id);
    shutdown(c.client.get(), SHUT_WR);
    c.deadline = std::min(c.deadline, std::chrono::steady_clock::now() + kLingerTime);
  }
  Watch(c);
}

// False when the connection is gone.
bool GuestHttp::TakeHead(Connection& c) {
  Result<HttpHead> parsed = ParseHttpHead(c.in);
  if (!parsed.ok()) {
    Fail(c, parsed.status().code() == Code::kResourceExhausted ? 431 : 400, parsed.status().message());
    return false;
  }
  const HttpHead& head = *parsed;
  if (head.bytes == 0) return true;
  c.head_done = true;
  c.body_left = head.content_length;
  if (!head.target.starts_with("/blob/") || head.target.find("..") != std::string::npos) {
    Fail(c, 404, "Only blob URLs are served at this address.");
    return false;
  }
  if (head.chunked) {
    Fail(c, 411, "A body needs a Content-Length here.");
    return false;
  }
  c.up = head.forwarded;
  const uint64_t first = std::min<uint64_t>(c.body_left, c.in.size() - head.bytes);
  c.up.append(c.in, head.bytes, first);
  c.body_left -= first;
  c.in.clear();
  c.in.shrink_to_fit();
  const SteadyTime now = std::chrono::steady_clock::now();
  c.deadline = now + kIdleTime;
  if (head.expects_continue) c.down += "HTTP/1.1 100 Continue\r\n\r\n";
  c.connect_until = now + kConnectTime;
  return ConnectUpstream(c);
}

// False when the connection is gone. While control is away it is tried again by Sweep.
bool GuestHttp::ConnectUpstream(Connection& c) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (!fd.valid() || upstream_path_.size() >= sizeof address.sun_path) {
    Fail(c, 503, "The server can't be reached.");
    return false;
  }
  upstream_path_.copy(address.sun_path, sizeof address.sun_path - 1);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    c.upstream = std::move(fd);
    c.connect_until = SteadyTime::max();
  } else if (std::chrono::steady_clock::now() >= c.connect_until) {
    Fail(c, 503, "The server can't be reached; try again.");
    return false;
  }
  return true;
}

void GuestHttp::Fail(Connection& c, int status, const std::string& sentence) {
  c.head_done = true;
  c.lingering = true;
  c.connect_until = SteadyTime::max();
  c.body_left = std::max<uint64_t>(c.body_left, c.in.empty() ? 0 : 1);
  const std::string body = sentence + "\n";
  c.down += "HTTP/1.1 " + std::to_string(status) + " " + Reason(status) +
            "\r\ncontent-type: text/plain; charset=utf-8\r\n" +
            "content-length: " + std::to_string(body.size()) + "\r\nconnection: close\r\n\r\n" + body;
  Drive(c);
}

void GuestHttp::Watch(Connection& c) {
  uint32_t client = 0, upstream = 0;
  if (c.lingering || !c.head_done || (c.body_left > 0 && c.up.size() < kMostBuffered && c.upstream.valid()))
    client |= EPOLLIN;
  if (!c.down.empty()) client |= EPOLLOUT;
  if (!c.upstream_ended && c.down.size() < kMostBuffered) upstream |= EPOLLIN;
  if (!c.up.empty()) upstream |= EPOLLOUT;
  auto apply = [&](int fd, uint64_t key, uint32_t wanted, uint32_t& present, bool& added) {
    if (added && wanted == present) return;
    epoll_event event{.events = wanted, .data = {.u64 = key}};
    epoll_ctl(epoll_.get(), added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
    added = true;
    present = wanted;
  };
  apply(c.client.get(), c.id * 4 + 1, client, c.client_events, c.client_added);
  if (c.upstream.valid())
    apply(c.upstream.get(), c.id * 4 + 2, upstream, c.upstream_events, c.upstream_added);
}

void GuestHttp::Close(uint64_t id) {
  auto it = connections_.find(id);
  if (it == connections_.end()) return;
  if (auto entry = by_id_.find(it->second->entry_id); entry != by_id_.end()) --entry->second->connections;
  connections_.erase(it);
}

int GuestHttp::Sweep(SteadyTime now) {
  if (connections_.empty()) return -1;
  std::vector<uint64_t> late, unconnected;
  SteadyTime next = SteadyTime::max();
  for (const auto& [id, c] : connections_) {
    if (now >= c->deadline) {
      late.push_back(id);
    } else if (c->connect_until != SteadyTime::max() && !c->upstream.valid()) {
      unconnected.push_back(id);
    } else {
      next = std::min(next, c->deadline);
    }
  }
  for (uint64_t id : late) Close(id);
  for (uint64_t id : unconnected) {
    Connection& c = *connections_[id];
    if (!ConnectUpstream(c)) continue;
    if (c.upstream.valid()) {
      Drive(c);
    } else {
      next = std::min(next, now + kConnectPause);
    }
  }
  if (next == SteadyTime::max()) return connections_.empty() ? -1 : 1000;
  return static_cast<int>(std::max<int64_t>(0, std::chrono::duration_cast<Millis>(next - now).count()) + 1);
}

}  // namespace lydian::worker
