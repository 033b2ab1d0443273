// The client's own runtime as layers, out of its wheels: what control calls the client mount and the
// dependency mount. With bytecode of the Python that will run it. Also uv, which comes as a wheel.
// Thread-safety: every method from any thread; all block. Made once per key.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "build/bases.h"
#include "build/single_flight.h"

namespace lydian::build {

class RuntimeLayers {
 public:
  RuntimeLayers(std::string cache_dir, image::LayerStore* layers, StepRunner* steps, BaseImages* bases)
      : cache_dir_(std::move(cache_dir)), layers_(layers), steps_(steps), bases_(bases) {}

  // Bottom first: dependencies (for builders that have them), client.
  Result<std::vector<std::string>> For(const ImageSpec& image, const std::string& client_version,
                                       bool dependencies);
  // Is there such a client? Makes nothing but the download of its wheel.
  Status Ensure(const std::string& client_version);
  // An image with /uv and /uvx; `version` "latest" or a release.
  Result<ImageSpec> Uv(const std::string& version, const LogSink& log, CancelToken* cancel);

 private:
  Result<std::string> Client(const std::string& version, const std::string& series, const ImageSpec& image);
  Result<std::string> Dependencies(const std::string& client_version, const std::string& client_layer,
                                   const std::string& builder, const std::string& series,
                                   const ImageSpec& image);
  Result<ImageSpec> Toolbox(const std::string& series, const ImageSpec& image);
  // Runs `script` with the wheels' folder lent; what it leaves in `keep` (top folders) is the layer.
  Result<std::string> MakeLayer(const std::string& id, const std::string& note, const ImageSpec& toolbox,
                                const std::string& script, const std::vector<std::string>& arguments,
                                const std::vector<std::string>& keep, const LogSink& log,
                                CancelToken* cancel);
  Status KeepWheels(const std::string& folder);
  std::string WheelDir() const { return cache_dir_.empty() ? "" : cache_dir_ + "/wheels"; }

  std::string cache_dir_;
  image::LayerStore* layers_;
  StepRunner* steps_;
  BaseImages* bases_;
  SingleFlight<std::string> flights_;
};

// "3.11" of "3.11.2"; "" if it is not a version.
std::string PythonSeries(const std::string& version);
// Digits, dots, letters and "+-_" only, so that it can be part of a requirement.
bool PlainVersion(const std::string& version);

}  // namespace lydian::build
