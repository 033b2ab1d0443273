// What the worker keeps, told to control, and what control says nobody needs, removed: the worker's half of
// collection. Bases, the launcher's layer and what a task or build stands on stay whatever control says.
// Thread-safety: every method from any thread; all block on the disk. Ownership: what it stands on outlives
// it.
#pragma once

#include <functional>
#include <string>

#include "build/builder.h"
#include "image/layer_store.h"
#include "lydian/worker.pb.h"
#include "worker/objects.h"

namespace lydian::worker {

class StoreKeeper {
 public:
  StoreKeeper(image::LayerStore* layers, Objects* objects, build::Builder* builder,
              std::string launcher_layer)
      : layers_(layers), objects_(objects), builder_(builder), launcher_layer_(std::move(launcher_layer)) {}

  // In parts, the last marked as such.
  void Inventory(const TakeInventory& request, const std::function<void(StoreInventory)>& send);
  StoreDropped Drop(const DropImages& request);

 private:
  image::LayerStore* layers_;
  Objects* objects_;
  build::Builder* builder_;
  const std::string launcher_layer_;
};

}  // namespace lydian::worker
