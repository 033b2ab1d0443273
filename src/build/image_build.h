// One image: a BuildSpec from its Dockerfile to layers and config.
// Thread-safety: Run once, on one thread; it blocks. Errors: texts for the user, with the step's command, its
// exit code and the end of its output.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/executor.h"
#include "base/status.h"
#include "build/bases.h"
#include "build/context_match.h"
#include "build/runtime_layers.h"
#include "build/single_flight.h"
#include "build/stage_steps.h"
#include "build/step_runner.h"
#include "build/time_limit.h"
#include "image/stage.h"

namespace lydian::build {

// How the limits of builds and steps are set.
inline constexpr const char* kLimitsSetBy = "lydian up --step-timeout, --build-timeout";

// What a build works with; lives as long as the builder.
struct BuildTools {
  image::LayerStore* layers = nullptr;
  StepRunner* steps = nullptr;
  StageTool* stage = nullptr;
  BaseImages* bases = nullptr;
  RuntimeLayers* runtime = nullptr;
  Fetcher fetch;
  SingleFlight<std::string>* step_flights = nullptr;
  Strand* clock = nullptr;  // on which time limits run out
  uint32_t step_seconds = 0;
};

class ImageBuild {
 public:
  ImageBuild(const BuildTools& tools, const BuildSpec& spec, LogSink log, CancelToken* cancel);
  // `libc_version` may stay empty.
  Result<ImageSpec> Run(std::string* libc_version);

 private:
  // An image on its way: layers, config, and the digest of all that made it.
  struct Tree {
    std::vector<std::string> layer_ids;
    ImageConfig config;
    std::string python_version;
    std::string chain;
    size_t base_layers = 0;  // below these, python_version holds
    std::string base_path;   // PATH for which it was found
  };

  Result<Tree> BaseTree(const image::Plan& plan, size_t stage);
  Result<Tree> NamedTree(const std::string& name);
  Status BuildStage(const image::Plan& plan, size_t stage);
  Status DoStep(const image::Plan& plan, size_t stage, const image::Instruction& instruction,
                image::Step step, Tree& tree);
  // The answer of a record, or of `make`: the id of a new layer, or "" when nothing changed.
  Result<std::string> CachedStep(const std::string& chain, const std::string& text, const Tree& tree,
                                 const std::function<Status(image::LayerTransaction&)>& make);
  Status RunCommand(const image::Step& step, const Tree& tree, image::LayerTransaction& transaction);
  Result<std::string> FindPython(const Tree& tree);
  bool PythonTouched(const Tree& tree) const;
  Result<std::string> Libc(const Tree& tree);
  void Say(const std::string& text) const { log_(3, text + "\n"); }

  const BuildTools& tools_;
  const BuildSpec& spec_;
  LogSink log_;
  CancelToken* cancel_;
  std::map<size_t, Tree> stages_;
  std::optional<BuildContext> context_;  // made when it is first copied from
};

}  // namespace lydian::build
