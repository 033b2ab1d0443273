// What a container asks that isn't its worker's to answer: passed to control as it stands, with the task's
// id. While control is away a call is held and made again (with the same idempotency key), so a container
// never sees UNAVAILABLE; a stream only if nothing of it was delivered yet. Thread-safety: all methods.
// Ownership: calls keep themselves alive until answered.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "rpc/router.h"
#include "worker/link.h"

namespace lydian::worker {

enum class RelayKind { kUnary, kServerStream, kUnknown };

class Relay {
 public:
  // `kind` tells a method's form from its name ("/service/Method").
  Relay(Link* link, std::function<RelayKind(std::string_view full_method)> kind)
      : link_(link), kind_(std::move(kind)) {}
  rpc::RawReader Start(std::string_view full_method, rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out);

 private:
  Link* link_;
  std::function<RelayKind(std::string_view)> kind_;
};

}  // namespace lydian::worker
