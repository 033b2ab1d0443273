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
constexpr std::chrono::seconds kHeadTime{15}, kIdleTime{300}, kLingerTime{2}, kConnectTime{10};
constexpr Millis kConnectPause{50};
constexpr Millis kTurnPause{500};

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
  size_t connections = 0, exchanges = 0;
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
  bool waits = false;           // for its turn
  bool has_turn = false;        // counts as an exchange
  bool expects_continue = false;
  uint64_t body_left = 0;
  uint32_t client_events = 0, upstream_events = 0;
  bool client_added = false, upstream_added = false;
  SteadyTime deadline, connect_until = SteadyTime::max();
  SteadyTime begun;    // since when it has its turn
  uint64_t moved = 0;  // bytes since then, either way
};

GuestHttp::GuestHttp(std::string upstream_path, Limits limits)
    : upstream_path_(std::move(upstream_path)), limits_(limits) {
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
    const int most_wait = Sweep(std::chrono::steady_clock::now());
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), most_wait);
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
  if (entry.connections >= limits_.connections_of_one) return;
  if (connections_.size() >= limits_.connections && !MakeRoom(entry)) return;
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

// When there are too many: the container that has most loses one that control does not know of yet, the
// oldest.
bool GuestHttp::MakeRoom(const Entry& entry) {
  const Entry* most = &entry;
  for (const auto& [id, other] : by_id_) {
    if (other->connections > most->connections) most = other;
  }
  if (most->connections <= entry.connections + 1) return false;
  for (const auto& [id, c] : connections_) {
    if (c->entry_id != most->id || c->has_turn) continue;
    LOG_WARN("a container's HTTP connection is closed: it has most of all", {{"task_id", most->task_id}});
    Close(id);
    return true;
  }
  return false;
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
  if (c.head_done && !c.lingering && !c.waits) c.deadline = now + kIdleTime;
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
        c.moved += c.up.size() - before;
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
  const size_t before = c.down.size();
  if (before > 0 && !WriteFrom(c.client.get(), &c.down)) return Close(c.id);
  c.moved += before - c.down.size();
  if (c.upstream_ended && c.upstream.valid()) {
    c.upstream.reset();
    EndTurn(c);
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
  c.expects_continue = head.expects_continue;
  if (TakeTurn(c)) return Begin(c);
  c.waits = true;
  c.deadline = std::chrono::steady_clock::now() + limits_.turn_within;
  waiting_.push_back(c.id);
  look_at_ = std::min(look_at_, std::chrono::steady_clock::now() + kTurnPause);
  return true;
}

bool GuestHttp::TakeTurn(Connection& c) {
  Entry& entry = *by_id_.at(c.entry_id);
  const SteadyTime now = std::chrono::steady_clock::now();
  if (entry.exchanges >= limits_.exchanges_of_one) return false;
  if (exchanges_ >= limits_.exchanges && !TurnOutSlow(entry, now)) return false;
  ++entry.exchanges;
  ++exchanges_;
  c.has_turn = true;
  c.begun = now;
  return true;
}

// For a container that has fewer exchanges than others: ends the slowest of who has most.
bool GuestHttp::TurnOutSlow(const Entry& newcomer, SteadyTime now) {
  const Entry* most = &newcomer;
  Connection* slowest = nullptr;
  for (const auto& [id, c] : connections_) {
    if (!c->has_turn || now - c->begun < limits_.slow_after) continue;
    const auto millis = static_cast<uint64_t>(std::chrono::duration_cast<Millis>(now - c->begun).count());
    if (c->moved >= limits_.slow_rate * millis / 1000) continue;
    const Entry* const owner = by_id_.at(c->entry_id);
    if (owner->exchanges <= newcomer.exchanges + 1 || owner->exchanges < most->exchanges) continue;
    if (owner == most && slowest != nullptr && slowest->moved <= c->moved) continue;
    most = owner;
    slowest = c.get();
  }
  if (slowest == nullptr) return false;
  LOG_WARN("a container's slow HTTP exchange is ended: others wait", {{"task_id", most->task_id}});
  Close(slowest->id);
  return true;
}

// With its turn. False when the connection is gone.
bool GuestHttp::Begin(Connection& c) {
  const SteadyTime now = std::chrono::steady_clock::now();
  c.waits = false;
  c.deadline = now + kIdleTime;
  if (c.expects_continue) c.down += "HTTP/1.1 100 Continue\r\n\r\n";
  c.connect_until = now + kConnectTime;
  return ConnectUpstream(c);
}

void GuestHttp::EndTurn(Connection& c) {
  if (!std::exchange(c.has_turn, false)) return;
  --by_id_.at(c.entry_id)->exchanges;
  --exchanges_;
  if (!waiting_.empty()) look_at_ = SteadyTime::min();
}

// Those whose turn has come, in the order in which they came.
void GuestHttp::BeginWaiting() {
  std::deque<uint64_t> still;
  size_t refused = SIZE_MAX;  // to containers with so many there is no room, nor to any with more
  for (const uint64_t id : std::exchange(waiting_, {})) {
    auto it = connections_.find(id);
    if (it == connections_.end() || !it->second->waits) continue;
    const size_t has = by_id_.at(it->second->entry_id)->exchanges;
    if (has >= refused || !TakeTurn(*it->second)) {
      still.push_back(id);
      refused = std::min(refused, has);
    } else if (Begin(*it->second)) {
      Drive(*it->second);
    }
  }
  waiting_ = std::move(still);
  // That an exchange has become slow is no event.
  look_at_ = waiting_.empty() ? SteadyTime::max() : std::chrono::steady_clock::now() + kTurnPause;
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
  c.waits = false;
  EndTurn(c);
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
  EndTurn(*it->second);
  --by_id_.at(it->second->entry_id)->connections;
  connections_.erase(it);
}

int GuestHttp::Sweep(SteadyTime now) {
  if (now >= look_at_) BeginWaiting();
  if (connections_.empty()) return -1;
  std::vector<uint64_t> late, unconnected;
  SteadyTime next = look_at_;
  for (const auto& [id, c] : connections_) {
    if (now >= c->deadline) {
      late.push_back(id);
    } else if (c->connect_until != SteadyTime::max() && !c->upstream.valid()) {
      unconnected.push_back(id);
    } else {
      next = std::min(next, c->deadline);
    }
  }
  for (uint64_t id : late) {
    Connection& c = *connections_[id];
    c.waits ? Fail(c, 503, "Too many transfers of this container are at work; try again.") : Close(id);
  }
  next = std::min(next, look_at_);  // some have freed their place
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
