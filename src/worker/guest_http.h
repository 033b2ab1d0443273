// http://169.254.77.1 inside containers: signed blob URLs, passed on to control. Of each request the head is
// parsed; what is not below /blob/ is answered 404 here; one request a connection, the body bounded by its
// Content-Length. Holds no key and no secret.
//
// Each exchange takes a thread of control, so a container has few at once, and its further ones wait their
// turn. When all are taken, a container that has fewer than another takes the place of a slow one of the
// other's.
//
// One thread for all containers. Thread-safety: all methods. Ownership: listeners are the caller's until Add,
// then ours.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "base/clock.h"
#include "base/executor.h"
#include "base/fd.h"
#include "base/status.h"

namespace lydian::worker {

// The head of a request, as far as a relay needs it.
struct HttpHead {
  std::string method, target, version;
  std::string host;
  uint64_t content_length = 0;
  bool has_length = false;
  bool chunked = false;
  bool expects_continue = false;
  size_t bytes = 0;       // of the head, with the empty line
  std::string forwarded;  // what is sent on: hop-by-hop headers taken out, "connection: close" put in
};

// OK with bytes == 0: more is needed. INVALID_ARGUMENT: not a request. RESOURCE_EXHAUSTED: too long.
Result<HttpHead> ParseHttpHead(std::string_view data);

class GuestHttp {
 public:
  struct Limits {
    size_t connections = 1024, connections_of_one = 64;
    // That are with control; fewer than it has threads for the link (rpc/http_server.cc).
    size_t exchanges = 128, exchanges_of_one = 8;
    // One that has moved less a second since so long may have to go.
    Millis slow_after = Millis(5'000);
    uint64_t slow_rate = 64 << 10;
    Millis turn_within = Millis(60'000);  // then it is answered 503
  };

  // `upstream`: a unix socket of control that speaks HTTP/1.1.
  explicit GuestHttp(std::string upstream_path, Limits limits);
  explicit GuestHttp(std::string upstream_path) : GuestHttp(std::move(upstream_path), Limits()) {}
  ~GuestHttp();
  void Add(const std::string& task_id, UniqueFd listener);
  void Remove(const std::string& task_id);  // closes the listener and its connections

 private:
  struct Connection;
  struct Entry;
  void Run();
  void Post(Task task);
  void Accept(Entry& entry);
  void Serve(Connection& connection, bool from_client, uint32_t events);
  void Drive(Connection& connection);
  bool TakeHead(Connection& connection);
  bool MakeRoom(const Entry& entry);
  bool TakeTurn(Connection& connection);
  bool TurnOutSlow(const Entry& newcomer, SteadyTime now);
  bool Begin(Connection& connection);
  void EndTurn(Connection& connection);
  void BeginWaiting();
  bool ConnectUpstream(Connection& connection);
  void Fail(Connection& connection, int status, const std::string& sentence);
  void Watch(Connection& connection);
  void Close(uint64_t id);
  int Sweep(SteadyTime now);

  const std::string upstream_path_;
  const Limits limits_;
  UniqueFd epoll_, wake_;
  std::mutex mutex_;  // guards the next two
  std::deque<Task> posted_;
  bool stopping_ = false;
  // The rest belongs to the thread. Keys of epoll: 0 the wake-up, an entry's id, a connection's id * 4 +
  // side.
  uint64_t next_id_ = 1;
  std::map<std::string, std::unique_ptr<Entry>> entries_;
  std::map<uint64_t, Entry*> by_id_;
  std::map<uint64_t, std::unique_ptr<Connection>> connections_;
  std::deque<uint64_t> waiting_;  // connections, perhaps gone, whose turn has not come
  size_t exchanges_ = 0;
  SteadyTime look_at_ = SteadyTime::max();  // whether one of them can have its turn
  std::thread thread_;
};

}  // namespace lydian::worker
