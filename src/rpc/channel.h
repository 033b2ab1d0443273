// The client's side: a connection to control (or a container's test double), generic: method names and bytes.
// Thread-safety: all methods. Callbacks come on the loop's thread and must not block. A call that finds no
// connection makes one; when that fails the call ends with UNAVAILABLE, and who repeats it paces itself.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "rpc/router.h"

namespace lydian::rpc {

using Metadata = std::vector<std::pair<std::string, std::string>>;

// A call in progress, seen as two byte streams.
class ClientCall {
 public:
  virtual ~ClientCall() = default;
  virtual void Write(std::string message) = 0;  // never blocks
  virtual size_t buffered() const = 0;
  // As RawStream's: a relay waits so for the slower side.
  virtual void OnDrained(size_t limit, Task fn) = 0;
  virtual void HoldReading(bool hold) = 0;
  virtual void WritesDone() = 0;
  virtual void Cancel() = 0;
};

struct ClientCallbacks {
  std::function<void(std::string message)> on_message;
  // Exactly once, last. `trailers` are the custom ones.
  std::function<void(Status status, Metadata trailers)> on_done;
};

class Channel {
 public:
  // "unix:/path" or "host:port" (plaintext).
  static std::unique_ptr<Channel> Create(const std::string& target);
  virtual ~Channel() = default;
  virtual std::shared_ptr<ClientCall> Start(std::string_view full_method, const Metadata& metadata,
                                            ClientCallbacks callbacks,
                                            SteadyTime deadline = SteadyTime::max()) = 0;
  // A unary call that waits, for the command line and tests.
  Result<std::string> CallBlocking(std::string_view full_method, const std::string& request,
                                   const Metadata& metadata = {}, Millis timeout = Millis(10'000));
};

}  // namespace lydian::rpc
