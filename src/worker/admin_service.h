// lydian.WorkerAdmin, over the worker's admin socket, for uid 0: what `lydian status`, `debug` and `image`
// ask.
//   Status       StatusRequest -> StatusResponse
//   Run          RunRequest -> stream RunEvent: one container, its output, its end; killed when the caller
//   goes Plan         Job -> Plan Bases        BaseListRequest -> BaseListResponse MakeBase BaseMakeRequest
//   -> stream ProgressEvent ImportImage  ImageImportRequest -> stream ProgressEvent DrainPools   DrainPools
//   -> Done: for measurements
// Thread-safety: all methods. Ownership: what it stands on outlives it.
#pragma once

#include <memory>

#include "build/builder.h"
#include "image/layer_store.h"
#include "rpc/server.h"
#include "worker/node.h"

namespace lydian::worker {

class AdminService {
 public:
  AdminService(Node* node, image::LayerStore* layers, build::Builder* builder, Pool* pool)
      : node_(node), layers_(layers), builder_(builder), pool_(pool) {}
  Result<std::unique_ptr<rpc::Server>> Serve(int listener);

 private:
  void AddRun(rpc::Router& router);
  void AddImages(rpc::Router& router);

  Node* node_;
  image::LayerStore* layers_;
  build::Builder* builder_;
  Pool* pool_;
};

}  // namespace lydian::worker
