// Writable layers with a quota, and the overlay of a container, both as detached mounts in the initial user
// namespace. Thread-safety: none. Ownership: descriptors; nothing is attached to the host's tree.
// docs/formats/layer.md.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "runtime/plan.h"

namespace lydian::runtime {

struct QuotaDisk {
  UniqueFd mount;  // to be given an id mapping, and to an overlay
  UniqueFd plain;  // its root by a mount of its own that shows owner ids as they are stored
};

// Ready ext4 file systems of a fixed size, each with empty folders `upper` and `work` owned by 0.
class QuotaPool {
 public:
  QuotaPool(std::string dir, uint64_t usual_bytes) : dir_(std::move(dir)), usual_bytes_(usual_bytes) {}
  Result<QuotaDisk> Take(uint64_t bytes);
  Status AddToPool();
  size_t pooled() const { return pool_.size(); }
  void Drain() { pool_.clear(); }

 private:
  Result<QuotaDisk> Make(uint64_t bytes);

  std::string dir_;
  uint64_t usual_bytes_;
  uint64_t next_ = 0;
  bool have_template_ = false;
  std::deque<QuotaDisk> pool_;
};

// The kept writable layer of a build: makes `upper` and `work` in `dir` and gives a detached mount of it.
Result<UniqueFd> OpenWritableDir(const std::string& dir);
// A layer as a detached mount: read-only, no set-user-id, no devices, seen with the ids of `user_ns` (-1: as
// stored).
Result<UniqueFd> CloneLayer(const std::string& path, int user_ns);

// How this kernel takes an overlay's layers, best first.
enum class OverlayMode {
  kDescriptors,  // lowerdir+ and the others as descriptors: Linux 6.13
  kPaths,        // lowerdir+ as paths of descriptors: 6.8
  kAttached,     // in one string, layers attached in a mount namespace of the spawner's own
};
const char* OverlayModeName(OverlayMode mode);

class Overlays {
 public:
  // Tries the modes on a small overlay below `dir`. kAttached moves this process into a mount namespace of
  // its own.
  static Result<std::unique_ptr<Overlays>> Create(const std::string& dir);
  static Result<std::unique_ptr<Overlays>> CreateWith(const std::string& dir, OverlayMode mode);
  // `writable`: a mount that holds upper and work; it is given the container's id mapping and belongs to the
  // overlay then. None: a read-only overlay of at least two layers. `keep`: what is written must reach the
  // disk.
  Result<UniqueFd> Make(const std::vector<std::string>& lowers, UniqueFd writable, bool keep, int user_ns,
                        uint32_t base);
  OverlayMode mode() const { return mode_; }

 private:
  explicit Overlays(std::string dir) : dir_(std::move(dir)) {}
  Status Try();
  Result<UniqueFd> MakeByContext(const std::vector<UniqueFd>& lowers, int upper, int work, bool keep,
                                 uint32_t base);
  Result<UniqueFd> MakeAttached(const std::vector<UniqueFd>& lowers, int writable, bool keep, uint32_t base);

  std::string dir_;
  OverlayMode mode_ = OverlayMode::kDescriptors;
};

}  // namespace lydian::runtime
