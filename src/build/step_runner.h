// A command in a container on layers, with what it borrows from the host, its writes in a transaction: what a
// RUN does. Thread-safety: Run from any thread; blocks.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "build/container.h"
#include "build/host_settings.h"
#include "build/stage_tool.h"
#include "image/layer_store.h"
#include "lydian/worker.pb.h"

namespace lydian::build {

struct StepCommand {
  std::vector<std::string> layer_ids;  // bottom first
  // Where its writes go: a transaction of a tenant's build, by way of a file system with a quota; none:
  // thrown away.
  image::LayerTransaction* transaction = nullptr;
  // A command of ours in an image of ours: it writes straight into this transaction folder, without a quota,
  // and is lent the host's package settings in any case.
  std::string own_dir;
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

struct StepOptions {
  std::string scratch_dir;          // for what is lent to one step
  bool lend_host_settings = false;  // package indexes, proxies and their credentials, to tenants' steps
  uint64_t memory_bytes = 0;        // of a tenant's step that asks for no limit; 0 = none
};

class StepRunner {
 public:
  StepRunner(StepOptions options, image::LayerStore* layers, ContainerRunner* containers, StageTool* stage)
      : options_(std::move(options)), layers_(layers), containers_(containers), stage_(stage) {}

  // Afterwards `upper` holds what the command changed, and nothing that was borrowed.
  Result<RunResult> Run(const StepCommand& command, const LogSink& log, CancelToken* cancel);

 private:
  Result<Job> MakeJob(const StepCommand& command, const std::string& lent_dir, CancelToken* cancel);
  Status SetLimits(const StepCommand& command, Job& job) const;
  HostSettings Settings(const StepCommand& command) const;

  StepOptions options_;
  image::LayerStore* layers_;
  ContainerRunner* containers_;
  StageTool* stage_;
};

// Takes out of an upper what the runtime and StepRunner put there to mount on, and folders that say nothing
// new over the layers below.
Status CleanUpper(image::LayerStore& layers, const std::vector<std::string>& below, const image::Tree& upper);
// Nothing in it that a layer would be for.
Result<bool> EmptyUpper(const image::LayerTransaction& transaction);

}  // namespace lydian::build
