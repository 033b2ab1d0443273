// A command in a container on layers, with what it borrows from the host, its writes in a transaction: what a
// RUN does. Thread-safety: Run from any thread; blocks.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "build/container.h"
#include "build/overlay_view.h"
#include "image/layer_store.h"
#include "lydian/worker.pb.h"

namespace lydian::build {

struct StepCommand {
  std::vector<std::string> layer_ids;  // bottom first
  std::string writable_dir;            // a transaction's
  std::vector<std::string> argv;
  std::vector<std::string> env;                // of image and arguments: "K=V"
  std::map<std::string, std::string> secrets;  // over `env`
  std::string workdir = "/";
  std::string user;    // "" = root
  std::string script;  // run this file instead of argv
  bool no_network = false;
  std::vector<Mount> mounts;
  TaskLimits limits;
};

class StepRunner {
 public:
  StepRunner(image::LayerStore* layers, ContainerRunner* containers)
      : layers_(layers), containers_(containers) {}

  // Afterwards `upper` holds what the command changed, and nothing that was borrowed.
  Result<RunResult> Run(const StepCommand& command, const LogSink& log, CancelToken* cancel);
  // Their folders, bottom first.
  Result<std::vector<std::string>> Paths(const std::vector<std::string>& layer_ids);

 private:
  image::LayerStore* layers_;
  ContainerRunner* containers_;
};

// Takes out of a transaction's upper what the runtime and StepRunner put there to mount on.
Status CleanUpper(const std::vector<std::string>& lowers, const std::string& transaction_dir);
// Nothing in it that a layer would be for.
bool EmptyUpper(const std::string& transaction_dir);

}  // namespace lydian::build
