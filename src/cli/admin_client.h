// Calls to a running Lydian's admin sockets (proto/lydian/admin.proto), for uid 0.
// Not thread-safe. Errors: of the connection in words for a person ("control is not up: ..."), of the call as
// they come.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "cli/state.h"
#include "rpc/channel.h"

namespace lydian::cli {

// The services and methods of the admin sockets: what control and the worker register.
inline constexpr char kControlAdmin[] = "lydian.ControlAdmin";  // Status, TokenCreate, TokenList, TokenRevoke
inline constexpr char kWorkerAdmin[] =
    "lydian.WorkerAdmin";  // Status, Bases; streams: Run, MakeBase, ImportImage

class AdminClient {
 public:
  // service: kControlAdmin or kWorkerAdmin.
  static Result<AdminClient> Connect(const StatePaths& paths, const std::string& service);

  template <typename Request, typename Response>
  Result<Response> Call(const std::string& method, const Request& request, Millis timeout = Millis(10'000)) {
    ASSIGN_OR_RETURN(std::string bytes, CallRaw(method, request.SerializeAsString(), timeout));
    Response response;
    if (!response.ParseFromString(bytes)) return Internal("the answer to " + method + " can't be read");
    return response;
  }

  // Hands each message to `on_message` on this thread, until the end of the stream. SIGINT and SIGTERM cancel
  // the call, whose status is then CANCELLED; they must be blocked (BlockStopSignals) before the client is
  // made.
  Status Stream(const std::string& method, const std::string& request,
                const std::function<Status(const std::string&)>& on_message);

 private:
  Result<std::string> CallRaw(const std::string& method, const std::string& request, Millis timeout);

  std::string service_, role_;
  std::unique_ptr<rpc::Channel> channel_;
};

// Before any thread is made.
void BlockStopSignals();

}  // namespace lydian::cli
