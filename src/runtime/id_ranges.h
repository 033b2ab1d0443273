// Ranges of 65,536 host user ids, one a container. Each instance of Lydian on the machine has a slot of 1,024
// ranges of its own, claimed by a lock file, so that two instances never map to the same ids. Thread-safety:
// none. Ownership: the claim lasts as long as the object.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::runtime {

class IdRanges {
 public:
  static constexpr uint32_t kSize = 65536;
  // `subordinate`: files in the form of /etc/subuid; what they give away is left alone, as is what systemd
  // keeps for foreign images (0x7FFE0000).
  static Result<IdRanges> Claim(const std::string& instance, const std::string& lock_dir = "/run/lydian",
                                const std::vector<std::string>& subordinate = {"/etc/subuid", "/etc/subgid"});

  // The first host id of a free range; the least recently used one, since files or processes of a range may
  // linger.
  Result<uint32_t> Take();
  void Return(uint32_t base);
  size_t in_use() const { return in_use_; }

 private:
  IdRanges(UniqueFd lock, uint32_t first) : lock_(std::move(lock)), first_(first), used_(kRanges) {}
  void Avoid(uint64_t first, uint64_t count);

  static constexpr uint32_t kRanges = 1024, kSlots = 32;
  // Above what login names, subordinate ids and systemd hand out.
  static constexpr uint32_t kBase = 0x70000000;

  UniqueFd lock_;
  uint32_t first_;
  std::vector<bool> used_;
  uint32_t next_ = 0;
  size_t in_use_ = 0;
};

}  // namespace lydian::runtime
