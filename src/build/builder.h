// Turns recipes into layers, on a worker: Dockerfile steps, base images, the client's runtime. Steps run in
// our own containers. Thread-safety: every method from any thread; callbacks come on threads of the builder's
// own and must not block for long.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "image/layer_store.h"
#include "lydian/worker.pb.h"

namespace lydian::spawner {
class Client;
}

namespace lydian::build {

// Where a build gets what control holds.
class ContentSource {
 public:
  virtual ~ContentSource() = default;
  // The local path of a file's content, fetched and verified if it wasn't here. Blocking.
  virtual Result<std::string> Fetch(const std::string& sha256) = 0;
};

struct BuilderOptions {
  std::string state_dir;            // worker state: caches, scratch
  std::string cache_dir;            // outside any state: tarballs, wheels, base layers' archives; "" = none
  std::string client_version;       // the pinned one, made ahead of need
  std::string recipes_dir;          // base recipes; "" = beside the executable, or where it was installed
  std::string debian_mirror;        // for base recipes; "" = the one of this machine's apt settings
  bool lend_host_settings = false;  // the host's package indexes and proxies reach tenants' steps
  uint64_t step_memory_bytes = 0;   // of a step that asks for no limit; 0 = none
  uint32_t step_seconds = 3600;     // a RUN that takes longer fails
  uint32_t build_seconds = 4 * 3600;
  size_t builds_at_once = 32;  // each has a thread, which mostly waits; the others wait their turn
};

class Builder {
 public:
  // Runs an open request through whichever spawner connection is alive: the worker reconnects.
  using SpawnerRef = std::function<std::shared_ptr<spawner::Client>()>;
  static Result<std::unique_ptr<Builder>> Create(BuilderOptions options, image::LayerStore* layers,
                                                 ContentSource* content, SpawnerRef spawner);
  virtual ~Builder() = default;

  // Log entries and, last, one result. Two builds of one image id are one build.
  virtual void Start(const BuildSpec& spec, std::function<void(BuildUpdate)> on_update) = 0;
  virtual void Cancel(const std::string& build_id) = 0;
  // A container of a build ended (the worker passes on every exit event that is not a task's).
  virtual void OnExit(const std::string& container_id, int status, bool oom) = 0;

  // The layers to put on top of an image for the client's runtime: bottom first: dependency layer (when
  // `dependencies`), client layer, both with bytecode for that Python. Made on first use, once;
  // what is made already waits for nothing that is being made.
  virtual void RuntimeLayers(const ImageSpec& image, const std::string& client_version, bool dependencies,
                             std::function<void(Result<std::vector<std::string>>)> reply) = 0;
  virtual void EnsureClient(const std::string& client_version, std::function<void(Status)> reply) = 0;
  // The layer of a mount's files; made on first use.
  virtual void MountLayer(const std::string& mount_id, const std::vector<ContextFile>& files,
                          std::function<void(Result<std::string>)> reply) = 0;

  // A base image by name ("python:3.11-slim-bookworm"), from an imported archive or a base recipe. Progress
  // texts on the way.
  virtual void MakeBase(const std::string& name, std::function<void(const std::string&)> progress,
                        std::function<void(Result<ImageSpec>)> reply) = 0;
  virtual Status ImportArchive(const std::string& name, const std::string& path) = 0;
  struct Base {
    std::string name, version, note;
    bool made = false;
    uint64_t bytes = 0;
  };
  virtual std::vector<Base> Bases() = 0;
  // Layers that stay although no image refers to them, and whose runtime a layer is part of.
  struct Held {
    std::string layer_id;
    bool base = false;           // of a base image that is made or imported
    std::string client_version;  // else
  };
  virtual std::vector<Held> HeldLayers() { return {}; }
  // Drops notes on layers that are gone; what they stand for is made again when it is asked for.
  virtual Status ForgetLost() { return OkStatus(); }
};

}  // namespace lydian::build
