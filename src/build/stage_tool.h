// Work on files of a stage, done by lydian-stage in a container of its own: the stage's layers at /stage,
// what is copied from at /source, no network, the containers' filter and limits. Nothing here opens a path
// below a tree that a tenant made. docs/formats/stage.md. Thread-safety: StageTool from any thread; a
// StageWork belongs to the function that it is given to. Both block. Errors: what the tool says, in words for
// the user; CANCELLED; UNAVAILABLE when the spawner went away.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "build/cancel.h"
#include "build/container.h"
#include "image/layer_store.h"
#include "lydian/stage.pb.h"
#include "spawner/frames.h"

namespace lydian::build {

struct StageTrees {
  std::vector<std::string> layer_ids;   // of the stage, bottom first; none = from scratch
  std::string writable_dir;             // a transaction's; "" = the stage is only looked at
  std::vector<std::string> source_ids;  // what is copied from; none = nothing is
};

struct StageTerms {
  std::string owner;  // "user:group"; "" = as it was, or root
  int mode = -1;      // of files and folders; -1 = as it was
};

struct StageLimits {
  uint64_t bytes = uint64_t{20} << 30;
  uint64_t entries = 2'000'000;
  uint32_t depth = 1000;
  uint64_t memory_bytes = uint64_t{2} << 30;
};

// One conversation. Requests are sent without waiting; what went wrong comes out with the next answer.
class StageWork {
 public:
  explicit StageWork(UniqueFd control) : control_(std::move(control)) {}

  Status Put(StageFile file, UniqueFd content);
  Status Copy(StageCopy copy);
  Status Unpack(StageUnpack unpack, UniqueFd archive);
  Status MakeFolder(const std::string& path);
  Result<StageOwner> FindOwner(const std::string& text);
  Result<std::string> FindLibc();

 private:
  friend class StageTool;
  Status Begin(const StageTerms& terms, const StageLimits& limits);
  Result<StageDone> End();
  Status Push(const StageRequest& request, std::vector<UniqueFd> fds);
  Status FlushFiles();
  Status Ask(const StageRequest& request);
  Result<StageReply> Answer();

  UniqueFd control_;
  spawner::FrameWriter writer_;
  spawner::FrameReader reader_;
  StagePut files_;  // gathered: one frame carries many
  std::vector<UniqueFd> contents_;
};

class StageTool {
 public:
  // `tool_path`: the program; `root_dir`: a folder of this builder's own, made here, that becomes the
  // container's root.
  StageTool(std::string tool_path, std::string root_dir, image::LayerStore* layers,
            ContainerRunner* containers)
      : tool_path_(std::move(tool_path)),
        root_dir_(std::move(root_dir)),
        layers_(layers),
        containers_(containers) {}
  Status Prepare();

  // The files are in place when this returns.
  Result<StageDone> Run(const StageTrees& trees, const StageTerms& terms, CancelToken* cancel,
                        const std::function<Status(StageWork&)>& work);
  const StageLimits& limits() const { return limits_; }

 private:
  Result<Job> MakeJob(const StageTrees& trees);
  Status AddTree(Job& job, const char* target, const std::vector<std::string>& ids,
                 const std::string& writable_dir);

  std::string tool_path_, root_dir_;
  image::LayerStore* layers_;
  ContainerRunner* containers_;
  StageLimits limits_;
};

// A file that holds `text` and has no name.
Result<UniqueFd> TextFile(const std::string& text);

}  // namespace lydian::build
