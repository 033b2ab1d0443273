// What the handlers of the client's RPCs stand on. Filled in once by the wiring, then shared by all of them.
// Ownership: the pointers outlive the router.
#pragma once

#include <memory>
#include <string>

#include "base/executor.h"
#include "blob/blob_store.h"
#include "blob/url_signer.h"
#include "control/engine.h"
#include "control/log_store.h"
#include "control/objects.h"
#include "rpc/router.h"

namespace lydian::api {

class LogStreams;
class Turns;

struct Services {
  control::Objects* objects = nullptr;
  control::Engine* engine = nullptr;
  control::Workers* workers = nullptr;
  control::LogStore* logs = nullptr;
  blob::BlobStore* blobs = nullptr;
  blob::UrlSigner* signer = nullptr;
  std::string public_url = "http://127.0.0.1:7070";  // of pages and blobs, for users that name no host
  std::string task_url = "http://169.254.77.1";      // of blobs, for containers
  std::string version = "0.1.0";
  // Made by RegisterObjects.
  std::shared_ptr<LogStreams> log_streams;
  std::shared_ptr<Turns> log_pages, log_scans;  // at reading for who follows, and for who asks
  std::shared_ptr<Turns> client_mounts;         // at having one made
  std::shared_ptr<Pool> files;                  // reads, writes and hashes contents
};
using ServicesPtr = std::shared_ptr<Services>;

// All handlers of modal.client.ModalClient that are not the call engine's.
void RegisterObjects(rpc::Router& router, ServicesPtr services);

// Once before serving, with everything attached: functions of living apps go to the engine, builds and stops
// that a restart cut go on. Blocks until done.
Status Start(const ServicesPtr& services);

}  // namespace lydian::api
