// Where a worker keeps layers. A layer is an immutable folder in the form of docs/formats/layer.md: a file
// tree stored with owner ids from 0 and one form of whiteouts, which is a lower of an overlay as it stands.
// Behind an interface: plain folders today; content-addressed objects with lazy fetching later.
//
// Thread-safety: every method from any thread. A transaction is used by one thread at a time.
// Durability: after Commit the layer is whole and stays; a transaction that ends without it leaves nothing
// (also when the process is killed: leftovers are removed at the next Open).
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "image/tree.h"

namespace lydian::image {

struct LayerInfo {
  std::string id;      // "ly-..." : digest of what made it
  std::string path;    // the folder to stack; stays valid while the layer is pinned or not removed
  uint64_t bytes = 0;  // on disk, about
  std::string note;    // for people: the command that made it
};

struct StoredLayer {
  LayerInfo info;
  bool pinned = false;
  double idle_secs = 0;  // since it was last found, opened or pinned; kept over restarts to an hour
  std::string damage;    // why it can't be read; else empty
};

// The layer that a mount's files become.
std::string MountLayerId(const std::string& mount_id);

class LayerTransaction {
 public:
  virtual ~LayerTransaction() = default;  // rolls back unless committed
  // An empty folder with `upper` and `work` in it, on the store's file system: give it to a job as
  // writable_dir.
  virtual const std::string& dir() const = 0;
  // What a container wrote into a layer that was handed over (Job.rootfs.hand_over) becomes `upper`. No more
  // is copied than its file system holds. `check` is asked all the time: a reason to stop, or OK.
  virtual Status Take(int writable, const std::function<Status()>& check) = 0;
  // `upper`, to be looked at and tidied.
  virtual Result<Tree> Upper() const = 0;
  // `upper` becomes the layer, unless its folders are nested too deeply. Syncs the file system first. If
  // another transaction has committed the same id meanwhile, this one's content is dropped and the other's is
  // the answer.
  virtual Result<LayerInfo> Commit(const std::string& id, const std::string& note) = 0;
};

class LayerStore {
 public:
  virtual ~LayerStore() = default;
  virtual Result<LayerInfo> Find(const std::string& id) = 0;  // NOT_FOUND
  // What `path` is in layers that are stacked, bottom first: of the topmost that has it; NOT_FOUND if none
  // has or it was removed. No link is followed, in the last part or on the way.
  virtual Result<struct stat> Stat(const std::vector<std::string>& ids, const std::string& path) = 0;
  // A layer's content, to be looked at.
  virtual Result<Tree> Open(const std::string& id) = 0;
  virtual Result<std::unique_ptr<LayerTransaction>> Begin() = 0;
  // FAILED_PRECONDITION while it is pinned, or when it was used in the last `min_idle_secs`.
  virtual Status Remove(const std::string& id, double min_idle_secs = 0) = 0;
  // All there are; looking at them so is no use.
  virtual std::vector<StoredLayer> List() = 0;
  // Held while a container or build stands on the layers.
  virtual Result<std::shared_ptr<void>> Pin(const std::vector<std::string>& ids) = 0;
  // Small facts beside layers, by key: "image/im-..." -> what a tag or step resolved to. Atomic, durable.
  virtual Status PutRecord(const std::string& key, const std::string& value) = 0;
  virtual Result<std::string> GetRecord(const std::string& key) = 0;
  // Shows every record; drops those for which `keep` says false.
  virtual Status SweepRecords(
      const std::function<bool(const std::string& key, const std::string& value)>& keep) = 0;

  // Folders below `root` (made if missing).
  static Result<std::unique_ptr<LayerStore>> OpenFolders(const std::string& root);
};

}  // namespace lydian::image
