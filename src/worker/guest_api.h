// What a container's own socket answers: its own RPCs here, from leases; everything else by relay. The
// client's message types stay in guest_api_*.cc. Thread-safety: all functions. Handlers post to the backend
// and return.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lydian/worker.pb.h"
#include "rpc/router.h"
#include "worker/input_desk.h"
#include "worker/relay.h"

namespace lydian::worker {

// The node behind it. Called on the loop's thread; replies come from the strand.
class GuestBackend {
 public:
  virtual ~GuestBackend() = default;
  virtual void GuestHello(const std::string& task_id) = 0;
  // Held until inputs are to be cancelled or `most` is over; answers with their ids.
  virtual void GuestHeartbeat(const std::string& task_id, rpc::Ctx ctx,
                              std::function<void(Result<std::vector<std::string>>)> reply) = 0;
  virtual void GuestAsks(const std::string& task_id, std::shared_ptr<InputQuestion> question) = 0;
  virtual void GuestWithdraws(const std::string& task_id, std::shared_ptr<InputQuestion> question) = 0;
  virtual void GuestPuts(const std::string& task_id, std::vector<Output> outputs,
                         std::function<void()> done) = 0;
  // A failure of the whole task: `result` is a modal.client.GenericResult.
  virtual void GuestResult(const std::string& task_id, std::string result, std::function<void()> done) = 0;
  virtual void GuestStopsItself(const std::string& task_id, std::function<void()> done) = 0;
};

// One router for all containers: a server's authenticator says whose socket it is.
std::shared_ptr<rpc::Router> MakeGuestRouter(GuestBackend* backend, Relay* relay);
std::shared_ptr<rpc::Authenticator> MakeGuestAuthenticator(const TaskSpec& spec);
// The form of a method of the client's API.
RelayKind GuestMethodKind(std::string_view full_method);

// Serialized modal.client.ContainerArguments. INVALID_ARGUMENT when the spec's parts don't parse.
Result<std::string> MakeContainerArguments(const TaskSpec& spec);

}  // namespace lydian::worker
