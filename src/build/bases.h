// Base images by name: imported archives, then recipes. Made once, kept as layers, their costly parts in the
// cache folder for other states and other runs. Thread-safety: every method from any thread; Get and Import
// block. Errors: NOT_FOUND for a name that nothing serves, with the ways out.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "build/builder.h"
#include "build/oci_layout.h"
#include "build/recipe.h"
#include "build/single_flight.h"
#include "build/stage_tool.h"
#include "build/step_runner.h"

namespace lydian::build {

// Those that the client runs in.
inline constexpr const char* kClientPythons[] = {"3.10", "3.11", "3.12", "3.13", "3.14", "3.15"};

struct BaseOptions {
  std::string cache_dir;  // "" = none
  std::string recipes_dir;
  std::string scratch_dir;    // on the same machine, anywhere
  std::string debian_mirror;  // "" = from this machine's apt settings
};

class BaseImages {
 public:
  BaseImages(BaseOptions options, image::LayerStore* layers, StepRunner* steps, StageTool* stage,
             std::vector<Recipe> recipes);

  Result<ImageSpec> Get(const std::string& name, const LogSink& log, CancelToken* cancel);
  // An image whose Python is of this series ("3.11"), made if a recipe offers it: for work that needs that
  // Python.
  Result<ImageSpec> ForPython(const std::string& series, const LogSink& log, CancelToken* cancel);
  bool OffersPython(const std::string& series) const;
  // Whatever image has a Python; one that is made already if possible.
  Result<ImageSpec> AnyPython(const LogSink& log, CancelToken* cancel);

  Status Import(const std::string& name, const std::string& archive);
  std::vector<Builder::Base> List();
  std::vector<std::string> Layers();  // of those that are made or imported
  Status NoSuchBase(const std::string& name) const;
  // "" unless it is an image for a Python that no recipe offers.
  std::string PythonAdvice(const std::string& name) const;

 private:
  struct Product {
    std::string archive, version;
  };
  Result<ImageSpec> Made(const Recipe& recipe);
  Result<ImageSpec> Make(const Recipe& recipe, const LogSink& log, CancelToken* cancel);
  Result<std::string> RootLayer(const Recipe& recipe, const LogSink& log, CancelToken* cancel);
  Status MakeRoot(const Recipe& recipe, const std::string& folder, const LogSink& log, CancelToken* cancel);
  Result<Product> SourceProduct(const Recipe& recipe, const std::string& root_layer, const LogSink& log,
                                CancelToken* cancel);
  Result<ImageSpec> ImportLayers(const image::Tree& archive, const OciLayout& layout,
                                 const std::string& note);
  Result<Product> FindProduct(const Recipe& recipe) const;
  Result<std::string> FetchSource(const Recipe& recipe, const std::string& folder, const LogSink& log,
                                  CancelToken* cancel);
  Result<std::string> Compile(const Recipe& recipe, const std::string& root_layer, const std::string& source,
                              const std::string& scratch, const LogSink& log, CancelToken* cancel);
  Result<std::string> FinishLayer(const Recipe& recipe, const std::string& root_layer, const Product& product,
                                  const LogSink& log, CancelToken* cancel);
  // An archive's content into a transaction, over the layers it stands on.
  Status Unpack(const StageTrees& trees, const std::string& archive, bool whiteouts, CancelToken* cancel);
  std::string CacheDir(const std::string& part) const;

  BaseOptions options_;
  image::LayerStore* layers_;
  StepRunner* steps_;
  StageTool* stage_;
  std::vector<Recipe> recipes_;
  SingleFlight<ImageSpec> flights_;
  SingleFlight<std::string> root_flights_;
};

// The version in the name of an original tarball: "python3.11_3.11.2.orig.tar.gz".
std::string TarballVersion(const std::string& file_name);

}  // namespace lydian::build
