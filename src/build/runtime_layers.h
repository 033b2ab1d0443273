// The client's own runtime as layers, out of its wheels: what control calls the client mount and the
// dependency mount. Also uv, which comes as a wheel. All workspaces' containers share these layers, so they
// are made in base images of ours alone, never in or from an image that somebody brought, and named by
// everything that goes into them. With bytecode, where a base of ours has the Python that will run it.
// Thread-safety: every method from any thread; For, Ensure and Uv block. Made once per key. Work of our own
// is ended when it takes too long.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "build/bases.h"
#include "build/single_flight.h"
#include "build/time_limit.h"
#include "build/wheel_cache.h"

namespace lydian::build {

class RuntimeLayers {
 public:
  // `clock`: for time limits; `stop` ends all work of our own.
  RuntimeLayers(const std::string& cache_dir, image::LayerStore* layers, StepRunner* steps, BaseImages* bases,
                Strand* clock, CancelToken* stop)
      : wheels_(cache_dir), layers_(layers), steps_(steps), bases_(bases), clock_(clock), stop_(stop) {}

  // What an image needs: the same for all images with the same key.
  struct Wanted {
    std::string series, client_version;
    std::string builder;  // "" = without its dependencies
    std::string Key() const { return series + " " + client_version + " " + builder; }
  };
  // FAILED_PRECONDITION when there is no runtime for its Python.
  static Result<Wanted> Want(const ImageSpec& image, const std::string& client_version, bool dependencies);
  // Bottom first: dependencies (for builders that have them), client.
  Result<std::vector<std::string>> For(const Wanted& wanted);
  // What For has answered, if all of it is still there. Quick.
  std::optional<std::vector<std::string>> Made(const Wanted& wanted);
  // Is there such a client? Makes nothing but the download of its wheel.
  Status Ensure(const std::string& client_version);
  // An image with /uv and /uvx; `version` "latest" or a release.
  Result<ImageSpec> Uv(const std::string& version, const LogSink& log, CancelToken* cancel);

 private:
  // Where layers for one Python are made.
  struct Toolbox {
    ImageSpec image;
    std::string series;       // that they are for
    bool same_python = true;  // as the toolbox's own: bytecode can be made
    std::string Key() const;  // all of it, for ids
  };
  Result<Toolbox> FindToolbox(const std::string& series, CancelToken* cancel);
  Result<std::vector<std::string>> Make(const Wanted& wanted, CancelToken* cancel);
  Result<std::string> Client(const std::string& version, const Toolbox& toolbox, CancelToken* cancel);
  Result<std::string> Dependencies(const Wanted& wanted, const std::string& client_layer,
                                   const Toolbox& toolbox, CancelToken* cancel);
  // Runs `script` with the wheels' folder lent; what it leaves in `keep` (top folders) is the layer.
  Result<std::string> MakeLayer(const std::string& id, const std::string& note, const Toolbox& toolbox,
                                const std::string& script, const std::vector<std::string>& arguments,
                                const std::vector<std::string>& keep, const LogSink& log,
                                CancelToken* cancel);

  WheelCache wheels_;
  image::LayerStore* layers_;
  StepRunner* steps_;
  BaseImages* bases_;
  Strand* clock_;
  CancelToken* stop_;
  SingleFlight<std::string> flights_;
  std::mutex mutex_;                                      // guards made_
  std::map<std::string, std::vector<std::string>> made_;  // layers by what was asked for
};

// "3.11" of "3.11.2" or "3.13t"; "" if it is no version of Python 3.
std::string PythonSeries(const std::string& version);
// Digits, dots, letters and "+-_" only, so that it can be part of a requirement.
bool PlainVersion(const std::string& version);

}  // namespace lydian::build
