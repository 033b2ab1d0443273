// Serves HTTP/1.1 on connections that are handed to it. An exchange runs on a thread of a pool that the
// process shares and that grows as needed, and of which one address has a part; between exchanges and at its
// end a connection waits elsewhere (`park`, `linger`) and costs no thread.
//
// Thread-safety: all methods. Ownership: a connection is the server's from Serve to `park`, `linger` or
// `on_close`.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "base/fd.h"
#include "rpc/http.h"

namespace lydian::rpc {

class HttpServer : public std::enable_shared_from_this<HttpServer> {
 public:
  struct Ways {
    std::function<void(int)> begin;        // an exchange of it
    std::function<void(UniqueFd)> park;    // until its next request is there
    std::function<void(UniqueFd)> linger;  // all is said, but the client may still send
    std::function<void()> on_close;        // it was closed
  };
  HttpServer(std::shared_ptr<http::Handler> handler, Ways ways)
      : handler_(std::move(handler)), ways_(std::move(ways)) {}

  void Serve(UniqueFd fd);
  // Cuts the connections and returns when no handler runs any more.
  void Stop();

 private:
  void Run(UniqueFd fd);

  const std::shared_ptr<http::Handler> handler_;
  const Ways ways_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::set<int> active_;
  size_t queued_ = 0;  // connections between Serve and the end of Run
  bool stopping_ = false;
};

}  // namespace lydian::rpc
