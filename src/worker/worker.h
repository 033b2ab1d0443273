// The node agent: one per machine, root. Dials control, makes containers through the spawner, serves their
// sockets, moves their logs and inputs. docs/architecture.md.
//
// Thread-safety: Start once; Stop from any thread, once. Ownership: the sockets given are the worker's.
// Errors: Start fails when the state folder or a socket can't be used; control and spawner may come later and
// go at any time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::build {
class Builder;
}
namespace lydian::image {
class LayerStore;
}

namespace lydian::worker {

struct WorkerOptions {
  std::string state_dir;       // <state>/worker, 0700 root
  std::string instance;        // "ly3f2a1b"
  std::string control_socket;  // <state>/control/link.sock: gRPC, and HTTP for blobs
  std::string spawner_socket;  // "" = <state_dir>/spawner.sock
  std::string cache_dir;       // of the builder; "" = none
  std::string client_version = "1.6.4";
  std::string version = "0.1.0";      // of this program
  std::string bridge;                 // interface that the DNS relay serves; "" = the instance's
  uint64_t memory_reserve_bytes = 0;  // what is not for containers
  uint64_t disk_reserve_bytes = uint64_t{2} << 30;
  bool lend_host_settings = false;  // to tenants' build steps
  uint32_t step_timeout_s = 3600;
  uint32_t build_timeout_s = 4 * 3600;
  // For tests: other layers and another builder than those of this machine. Empty = the real ones.
  std::function<std::unique_ptr<image::LayerStore>()> make_layers;
  std::function<std::unique_ptr<build::Builder>()> make_builder;
};

class Worker {
 public:
  // `admin_listener`: <state_dir>/admin.sock, listening; invalid = none is served.
  static Result<std::unique_ptr<Worker>> Start(WorkerOptions options, UniqueFd admin_listener);
  virtual ~Worker() = default;
  // Lets go of control, containers and sockets. Containers run on: the next worker adopts them.
  virtual void Stop() = 0;
};

}  // namespace lydian::worker
