#include "runtime/id_ranges.h"

#include <fcntl.h>
#include <sys/file.h>

#include <functional>

namespace lydian::runtime {

Result<IdRanges> IdRanges::Claim(const std::string& instance, const std::string& lock_dir) {
  RETURN_IF_ERROR(MakeDirs(lock_dir));
  uint32_t hash = 2166136261u;
  for (unsigned char c : instance) hash = (hash ^ c) * 16777619u;
  for (uint32_t i = 0; i < kSlots; ++i) {
    uint32_t slot = (hash + i) % kSlots;
    std::string path = lock_dir + "/ids-" + std::to_string(slot);
    UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock.valid()) return ErrnoStatus("opening " + path);
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0)
      return IdRanges(std::move(lock), kBase + slot * kRanges * kSize);
    if (errno != EWOULDBLOCK) return ErrnoStatus("locking " + path);
  }
  return ResourceExhausted("all " + std::to_string(kSlots) +
                           " slots of user ids are taken by other instances");
}

Result<uint32_t> IdRanges::Take() {
  for (uint32_t i = 0; i < kRanges; ++i) {
    uint32_t at = (next_ + i) % kRanges;
    if (used_[at]) continue;
    used_[at] = true;
    next_ = at + 1;
    ++in_use_;
    return first_ + at * kSize;
  }
  return ResourceExhausted("all " + std::to_string(kRanges) + " ranges of user ids are in use");
}

void IdRanges::Return(uint32_t base) {
  uint32_t at = (base - first_) / kSize;
  CHECK(base >= first_ && at < kRanges && used_[at]);
  used_[at] = false;
  --in_use_;
}

}  // namespace lydian::runtime
