// One thread for the whole process accepts connections of all servers and looks at their first bytes: the
// HTTP/2 preface means gRPC; an HTTP/1.1 connection is handed over when a whole request header has arrived,
// and waits here again between its requests. A connection that stays silent costs no thread and is closed in
// time.
//
// Thread-safety: all methods. Handlers run on the acceptor's thread and must not block. Ownership: listeners
// are duplicated; a connection belongs to the acceptor until it is handed over.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"
#include "rpc/mailbox.h"

namespace lydian::rpc {

inline constexpr size_t kMostHttpHeader = size_t{32} << 10;

// Sets a socket so that a peer that was unplugged is noticed after 25 s; one that is only busy is not: its
// kernel answers. Fails on unix sockets, whose peer can only be paused.
void KeepAlive(int fd);

class Acceptor {
 public:
  struct Handlers {
    std::function<bool(int fd)> admit;  // a new connection; false closes it
    std::function<void(UniqueFd fd)> on_grpc;
    std::function<void(UniqueFd fd)> on_http;  // a whole header is there (or more than kMostHttpHeader bytes)
    std::function<void(int fd)> on_drop;       // a connection that waited here is about to be closed
  };

  // The process's one, started at first use; never destroyed.
  static Acceptor& Get();

  Result<uint64_t> Listen(int listener, Handlers handlers);
  // Takes an HTTP connection back until its next request's header is there.
  void Park(uint64_t id, UniqueFd fd);
  // Takes a connection on which all is said: throws away for a moment what the client still sends, since
  // closing with unread bytes would reset the connection, and the answer with it. Closes it then.
  void Linger(uint64_t id, UniqueFd fd);
  // Stops accepting for `id` and closes what waits. No handler of it runs when this returns. Not from a
  // handler.
  void Remove(uint64_t id);

 private:
  struct Listener {
    UniqueFd fd;
    Handlers handlers;
  };
  enum class For { kFirstBytes, kHeader, kEnd };
  struct Waiting {
    UniqueFd fd;
    uint64_t listener = 0;
    For what = For::kFirstBytes;
    std::multimap<SteadyTime, int>::iterator deadline;
  };

  Acceptor();
  void Loop();
  int WaitMillis() const;
  void CloseLate();
  void AcceptFrom(uint64_t id);
  void ShedOne(int listener);
  void Wait(uint64_t id, UniqueFd fd, For what, Millis most);
  void Look(int fd, bool peer_closed);
  void HandOver(std::map<int, Waiting>::iterator waiting, bool http);
  void Drop(std::map<int, Waiting>::iterator waiting);

  UniqueFd epoll_;
  Mailbox mailbox_;
  UniqueFd spare_;  // given up for a moment to accept and close a connection when the process has no
                    // descriptor left
  std::atomic<uint64_t> next_id_{1};
  // The rest is touched by the thread alone.
  std::unordered_map<uint64_t, Listener> listeners_;
  std::map<int, Waiting> waiting_;
  std::multimap<SteadyTime, int> deadlines_;
  std::vector<char> peeked_;
  std::thread thread_;
};

}  // namespace lydian::rpc
