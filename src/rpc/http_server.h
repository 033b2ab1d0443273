// Serves HTTP/1.1 on connections that are handed to it. An exchange runs on a thread of a pool that the
// process shares and that grows as needed; between exchanges a connection waits elsewhere (`park`) and costs
// no thread.
//
// Thread-safety: all methods. Ownership: a connection is the server's from Serve to `park` or `on_close`.
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
  HttpServer(std::shared_ptr<http::Handler> handler, std::function<void(UniqueFd)> park,
             std::function<void()> on_close)
      : handler_(std::move(handler)), park_(std::move(park)), on_close_(std::move(on_close)) {}

  void Serve(UniqueFd fd);
  // Cuts the connections and returns when no handler runs any more.
  void Stop();

 private:
  void Run(UniqueFd fd);

  const std::shared_ptr<http::Handler> handler_;
  const std::function<void(UniqueFd)> park_;
  const std::function<void()> on_close_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::set<int> active_;
  size_t queued_ = 0;  // connections between Serve and the end of Run
  bool stopping_ = false;
};

}  // namespace lydian::rpc
