// Everything that HTTP/1.1 serves on the API's port: blobs under /blob/, pages elsewhere.
// Thread-safety: Handle from any thread. Ownership: shares its handlers.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rpc/http.h"

namespace lydian::gateway {

class RootHandler : public http::Handler {
 public:
  RootHandler(std::shared_ptr<http::Handler> blobs, std::shared_ptr<http::Handler> pages)
      : blobs_(std::move(blobs)), pages_(std::move(pages)) {}
  http::Response Handle(http::Exchange& exchange) override {
    return (exchange.request().path.starts_with("/blob/") ? blobs_ : pages_)->Handle(exchange);
  }

 private:
  const std::shared_ptr<http::Handler> blobs_, pages_;
};

}  // namespace lydian::gateway
