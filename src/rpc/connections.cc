#include "rpc/connections.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <utility>

#include "base/log.h"
#include "rpc/deadlines.h"
#include "rpc/loop.h"

namespace lydian::rpc {

std::string PeerOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  if (address.ss_family == AF_UNIX) return {kUnixPeer};
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    return '4' + std::string(reinterpret_cast<const char*>(&in), sizeof in);
  }
  constexpr size_t kNetwork = 8, kMapped = 12;
  const auto& in = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  const char* const bytes = reinterpret_cast<const char*>(&in);
  if (IN6_IS_ADDR_V4MAPPED(&in)) return '4' + std::string(bytes + kMapped, sizeof in - kMapped);
  if (IN6_IS_ADDR_LOOPBACK(&in)) return "4\x7F";
  return '6' + std::string(bytes, kNetwork);
}

bool Connections::Admit(int fd, bool tcp) {
  const std::string peer = tcp ? PeerOf(fd) : "";
  std::lock_guard lock(mutex_);
  if (tcp) MakeRoomLocked(peer);
  if (count_ >= limits_.most) {
    if (strangers_.empty()) return false;
    TurnOutLocked(strangers_.begin()->first, "there are too many");
  }
  ++count_;
  if (tcp) WelcomeLocked(fd, peer);
  return true;
}

void Connections::MakeRoomLocked(const std::string& peer) {
  auto of_peer = by_peer_.find(peer);
  if (of_peer != by_peer_.end() && of_peer->second.size() >= limits_.most_of_stranger)
    TurnOutLocked(*of_peer->second.begin(), "its address has too many without an authenticated call");
}

void Connections::WelcomeLocked(int fd, const std::string& peer) {
  const uint64_t number = next_++;
  strangers_[number] = {peer, std::chrono::steady_clock::now(), fd, {}};
  by_peer_[peer].insert(number);
  waiting_[fd] = number;
  WatchLocked();
}

void Connections::Begun(int fd) {
  std::lock_guard lock(mutex_);
  auto it = waiting_.find(fd);
  if (it == waiting_.end()) return;
  if (it->second == 0) ++count_;  // Closed will be said of it
  ForgetLocked(it->second);
  waiting_.erase(fd);
}

void Connections::Parked(int fd) {
  const std::string peer = PeerOf(fd);
  std::lock_guard lock(mutex_);
  MakeRoomLocked(peer);
  WelcomeLocked(fd, peer);
}

void Connections::Dropped(int fd) {
  std::lock_guard lock(mutex_);
  auto it = waiting_.find(fd);
  if (it != waiting_.end()) {
    const uint64_t number = it->second;
    waiting_.erase(it);
    if (number == 0) return;
    ForgetLocked(number);
  }
  --count_;
}

void Connections::Closed() {
  std::lock_guard lock(mutex_);
  --count_;
}

void Connections::Add(int fd, const std::function<std::shared_ptr<Connection>()>& make) {
  std::lock_guard lock(mutex_);
  Open open;
  if (auto it = waiting_.find(fd); it != waiting_.end()) {
    open.number = it->second;
    open.counted = it->second != 0;
    waiting_.erase(it);
  }
  open.connection = make();
  if (auto it = strangers_.find(open.number); it != strangers_.end()) {
    it->second.fd = -1;
    it->second.connection = open.connection;
  }
  open_.emplace(open.connection.get(), std::move(open));
}

void Connections::Authenticated(const Connection* connection) {
  std::lock_guard lock(mutex_);
  auto it = open_.find(connection);
  if (it != open_.end()) ForgetLocked(it->second.number);
}

void Connections::Remove(const Connection* connection) {
  std::shared_ptr<Connection> last;  // destroyed outside the lock
  std::lock_guard lock(mutex_);
  auto it = open_.find(connection);
  if (it == open_.end()) return;
  last = std::move(it->second.connection);
  ForgetLocked(it->second.number);
  if (it->second.counted) --count_;
  open_.erase(it);
}

std::vector<std::shared_ptr<Connection>> Connections::all() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Connection>> all;
  for (const auto& [key, open] : open_) all.push_back(open.connection);
  return all;
}

void Connections::ForgetLocked(uint64_t number) {
  auto it = strangers_.find(number);
  if (it == strangers_.end()) return;
  auto of_peer = by_peer_.find(it->second.peer);
  of_peer->second.erase(number);
  if (of_peer->second.empty()) by_peer_.erase(of_peer);
  strangers_.erase(it);
}

void Connections::TurnOutLocked(uint64_t number, const char* why) {
  const Stranger& stranger = strangers_.at(number);
  LOG_DEBUG("a connection without an authenticated call is closed", {{"why", why}});
  --count_;
  if (stranger.fd >= 0) {
    ::shutdown(stranger.fd, SHUT_RDWR);  // whoever it waits with sees its end
    waiting_[stranger.fd] = 0;
  } else if (auto connection = stranger.connection.lock()) {
    open_.at(connection.get()).counted = false;
    Loop::Get().Post([connection, why = std::string(why)] { connection->Close(Unavailable(why)); });
  }
  ForgetLocked(number);
}

void Connections::WatchLocked() {
  if (watching_ || strangers_.empty()) return;
  watching_ = true;
  Deadlines().PostAt(strangers_.begin()->second.accepted + limits_.stranger_for, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->TurnOutLate();
  });
}

void Connections::TurnOutLate() {
  std::lock_guard lock(mutex_);
  const SteadyTime late = std::chrono::steady_clock::now() - limits_.stranger_for;
  while (!strangers_.empty() && strangers_.begin()->second.accepted <= late)
    TurnOutLocked(strangers_.begin()->first, "none of its calls was authenticated in time");
  watching_ = false;
  WatchLocked();
}

}  // namespace lydian::rpc
