// Control's end of the workers' link, the service lydian.WorkerLink: Attach (the stream between worker and
// engine), GetMount, GetObject. docs/formats/worker-link.md. Thread-safety: registration before serving;
// CallerOfTask from any thread, without blocking. Ownership: all of it outlives the router.
#pragma once

#include <string>

#include "blob/blob_store.h"
#include "control/call_engine.h"
#include "control/mounts.h"
#include "rpc/router.h"

namespace lydian::api {

struct WorkerLinkDeps {
  control::CallEngine* engine = nullptr;
  control::Mounts* mounts = nullptr;
  blob::BlobStore* blobs = nullptr;
};

void RegisterWorkerLink(rpc::Router& router, WorkerLinkDeps deps);

// Who a container is: for LinkAuthenticator. NOT_FOUND for a task that isn't alive.
Result<rpc::Caller> CallerOfTask(const control::CallEngine& engine, const std::string& task_id);

}  // namespace lydian::api
