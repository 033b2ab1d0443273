// A Router that only keeps what is registered, in place of the one that serves gRPC.
#include "api/testing.h"

namespace lydian::rpc {

struct Router::Impl {};
Router::Router() = default;
Router::~Router() = default;
void Router::SetUnknownText(UnknownText) {}
void Router::AddUnary(std::string_view, std::string_view method, RawUnary handler, MethodOptions) {
  api::CapturedHandlers().unary[std::string(method)] = std::move(handler);
}
void Router::AddServerStream(std::string_view, std::string_view method, RawServerStream handler,
                             MethodOptions) {
  api::CapturedHandlers().streams[std::string(method)] = std::move(handler);
}

}  // namespace lydian::rpc

namespace lydian::api {

Handlers& CapturedHandlers() {
  static Handlers handlers;
  return handlers;
}

}  // namespace lydian::api
