// http://169.254.77.1 inside containers: signed blob URLs, passed on to control. Of each request the head is
// parsed; what is not below /blob/ is answered 404 here; one request a connection, the body bounded by its
// Content-Length. Holds no key and no secret.
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
  // `upstream`: a unix socket of control that speaks HTTP/1.1.
  explicit GuestHttp(std::string upstream_path);
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
  bool ConnectUpstream(Connection& connection);
  void Fail(Connection& connection, int status, const std::string& sentence);
  void Watch(Connection& connection);
  void Close(uint64_t id);
  int Sweep(SteadyTime now);

  const std::string upstream_path_;
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
  std::thread thread_;
};

}  // namespace lydian::worker
