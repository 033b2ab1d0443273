#include "runtime/id_ranges.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cinttypes>
#include <sstream>

namespace lydian::runtime {
namespace {

constexpr uint32_t kForeign = 0x7FFE0000;

// {first id, count} of each line "name:first:count".
std::vector<std::pair<uint64_t, uint64_t>> ReadSubordinate(const std::string& path) {
  std::vector<std::pair<uint64_t, uint64_t>> found;
  auto text = ReadFile(path, 1 << 20);
  if (!text.ok()) return found;
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    uint64_t first = 0, count = 0;
    if (std::sscanf(line.c_str(), "%*[^:]:%" SCNu64 ":%" SCNu64, &first, &count) != 2) continue;
    if (first < uint64_t{1} << 32 && count < uint64_t{1} << 32) found.emplace_back(first, count);
  }
  return found;
}

}  // namespace

Result<IdRanges> IdRanges::Claim(const std::string& instance, const std::string& lock_dir,
                                 const std::vector<std::string>& subordinate) {
  RETURN_IF_ERROR(MakeDirs(lock_dir, 0700));
  // An earlier version made it for everybody to look into; whoever opens a lock can take it.
  if (::chmod(lock_dir.c_str(), 0700) != 0) return ErrnoStatus("closing " + lock_dir);
  uint32_t hash = 2166136261u;
  for (unsigned char c : instance) hash = (hash ^ c) * 16777619u;
  for (uint32_t i = 0; i < kSlots; ++i) {
    uint32_t slot = (hash + i) % kSlots;
    std::string path = lock_dir + "/ids-" + std::to_string(slot);
    UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock.valid()) return ErrnoStatus("opening " + path);
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return ErrnoStatus("locking " + path);
      continue;
    }
    IdRanges ranges(std::move(lock), kBase + slot * kRanges * kSize);
    ranges.Avoid(kForeign, kSize);
    for (const auto& file : subordinate) {
      for (const auto& [first, count] : ReadSubordinate(file)) ranges.Avoid(first, count);
    }
    if (std::find(ranges.used_.begin(), ranges.used_.end(), false) != ranges.used_.end()) return ranges;
  }
  return ResourceExhausted("all " + std::to_string(kSlots) +
                           " slots of user ids are taken by other instances");
}

void IdRanges::Avoid(uint64_t first, uint64_t count) {
  const uint64_t end = std::min(first + count, uint64_t{first_} + uint64_t{kRanges} * kSize);
  for (uint64_t id = std::max<uint64_t>(first, first_); id < end; id += kSize - id % kSize) {
    used_[(id - first_) / kSize] = true;
  }
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
