// Control groups, one interface over v1 (each controller a tree of its own, "hybrid") and v2.
// All containers of an instance lie in one parent group whose memory limit leaves the machine a reserve.
// Thread-safety: none; one owner. Ownership: a Cgroup removes its folders when asked, not when it goes.
// Errors: errno with the path.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::os {

struct CgroupLimits {
  uint64_t memory_bytes = 0;      // 0 = none of its own
  uint64_t memory_low_bytes = 0;  // what it asked for: reclaimed last
  uint32_t milli_cpu = 0;         // ceiling; 0 = none
  uint32_t weight_milli_cpu = 125;
  uint32_t pids = 0;  // 0 = none
};

struct CgroupMemory {
  bool oom_killed = false;
  uint64_t peak_bytes = 0;
  uint64_t used_bytes = 0;
};

// One container's group.
class Cgroup {
 public:
  virtual ~Cgroup() = default;
  // Where a process that writes "0" joins; opened here, so that it may write them after it has given up its
  // rights.
  const std::vector<UniqueFd>& join_fds() const { return join_fds_; }
  // For CLONE_INTO_CGROUP, which is quicker, or -1 (v1).
  int into_fd() const { return into_fd_.get(); }
  virtual CgroupMemory Memory() const = 0;
  // The ceiling alone, of a group that runs: 0 = none.
  virtual Status SetCpu(uint32_t milli_cpu) = 0;
  // Fails with EBUSY while processes are in it.
  virtual Status Remove() = 0;

 protected:
  std::vector<UniqueFd> join_fds_;
  UniqueFd into_fd_;
};

class CgroupTree {
 public:
  virtual ~CgroupTree() = default;
  // The parent group `name` at the root of each tree, made if missing.
  static Result<std::unique_ptr<CgroupTree>> Open(const std::string& name);
  // "v1" or "v2".
  virtual std::string version() const = 0;
  // Of all groups in it together.
  virtual Status SetMemoryLimit(uint64_t bytes) = 0;
  virtual Status SetProcessLimit(uint64_t count) = 0;
  virtual Result<std::unique_ptr<Cgroup>> Make(const std::string& name, const CgroupLimits& limits) = 0;
  // Whether a group can be made ahead of its use and be given its name then (v1, where joining one takes
  // milliseconds: the kernel waits for all processors; v2 makes a process in its group).
  virtual bool renames() const = 0;
  virtual Status Assign(Cgroup* group, const std::string& name, const CgroupLimits& limits) = 0;
  // Names of the groups in the parent.
  virtual std::vector<std::string> List() const = 0;
  // Kills what runs in a group and removes it.
  virtual Status Destroy(const std::string& name) = 0;
  // Removes the parent; it must be empty.
  virtual Status RemoveParent() = 0;
};

// A group at the root of the memory controller's tree, for processes that are to have memory apart from all
// others. Its other limits, and on v1 other trees, are left alone. Ownership: as a Cgroup's.
class MemoryGroup {
 public:
  // Made if missing. `bytes`: together; 0 = no limit.
  static Result<MemoryGroup> Open(const std::string& name, uint64_t bytes);
  // Where a process joins that writes "0".
  int join_fd() const { return join_.get(); }
  Status Remove();  // EBUSY while processes are in it
  // Puts this process back at the root first.
  Status LeaveAndRemove();

 private:
  MemoryGroup(std::string root, std::string path, UniqueFd join)
      : root_(std::move(root)), path_(std::move(path)), join_(std::move(join)) {}
  std::string root_, path_;
  UniqueFd join_;
};

// Which controllers and versions there are, without making anything: "v1 (hybrid): memory cpu pids", "v2".
Result<std::string> DescribeCgroups();

}  // namespace lydian::os
