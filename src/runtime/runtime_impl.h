// The Runtime behind runtime.h. Internal to the module.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "os/cgroup.h"
#include "os/process.h"
#include "runtime/child.h"
#include "runtime/helper.h"
#include "runtime/layers.h"
#include "runtime/network.h"
#include "runtime/plan.h"
#include "runtime/runtime.h"

namespace lydian::runtime {

uint64_t NowNanos();  // CLOCK_MONOTONIC

// What a container holds until Remove.
struct Container::Held {
  Pair pair;
  std::unique_ptr<os::Cgroup> cgroup;
  uint64_t memory_limit = 0;  // its own, or what all containers share
  int oom_score_adj = 0;
  UniqueFd disk;                  // the quota file system, to be thrown away
  UniqueFd kept;                  // the folder of `upper` and `work`, when what was written stays
  std::vector<std::string> made;  // targets of mounts that were made in it: taken away again if still empty
  std::vector<UniqueFd> exec_pidfds;
};

class RuntimeImpl : public Runtime {
 public:
  explicit RuntimeImpl(RuntimeOptions options) : options_(std::move(options)) {}
  ~RuntimeImpl() override;
  Status Open();

  Result<Plan> MakePlan(const Job& job) override;
  Result<std::unique_ptr<Container>> Start(const Job& job, std::vector<UniqueFd> stdio,
                                           StepError* error) override;
  Result<Process> Exec(Container& container, const lydian::Process& process, std::vector<UniqueFd> stdio,
                       StepError* error) override;
  Status KillAll(Container& container) override;
  MemoryUse Memory(Container& container) override;
  Status Remove(std::unique_ptr<Container> container) override;
  bool Refill() override;
  void DrainPools() override;
  int event_fd() const override { return networks_->event_fd(); }
  void OnEvent() override { networks_->OnEvent(); }
  Status CleanLeftovers() override;

 private:
  class Steps;
  struct Stdio;

  // For a container with a disk of `bytes`, or 0.
  Status CheckDisk(uint64_t bytes);
  Status Build(const Job& job, std::vector<UniqueFd> stdio, Container* container, Steps* steps);
  // The container's control group and a helper that is in it or on its way.
  Result<std::unique_ptr<Helper>> MakeCgroup(const Job& job, const StartPlan& plan, Container* container);
  Status AddSeat();
  Status WriteOwnFiles(const StartPlan& plan, const Pair& pair);
  Status AddDevices(const Job& job, const Pair& pair);
  Status MakeApiSocket(int overlay, Container* container);
  // The writable layer: kept, handed over or thrown away.
  Result<UniqueFd> TakeWritable(const StartPlan& plan, Container* container);
  Result<UniqueFd> MakeRoot(const StartPlan& plan, UniqueFd writable, const Pair& pair);
  Result<std::vector<UniqueFd>> OpenBinds(const StartPlan& plan, const Pair& pair);
  Result<UniqueFd> OpenTree(const MountStep& mount, const Pair& pair);
  Result<std::unique_ptr<Helper>> MakeHelper(const os::Cgroup& group,
                                             Helper::Join join = Helper::Join::kEarly);
  Status FillInit(const StartPlan& plan, const Container& container, int overlay,
                  const std::vector<UniqueFd>& binds, Helper* helper);
  Status FillProcess(const lydian::Process& process, const Stdio& stdio, int init_pidfd, Helper* helper);
  // Runs the helper and takes over what it made.
  Status RunHelper(const StartPlan* plan, Container* container, std::unique_ptr<Helper> helper,
                   Process* process, Steps* steps);
  Result<Stdio> MakeStdio(const lydian::Process& process, std::vector<UniqueFd> stdio, uint32_t base,
                          Process* out);
  Status EndInit(Container* container, int timeout_ms);
  void DiscardDisk(UniqueFd disk);
  void ReapEnded();
  Status Release(std::unique_ptr<Container> container);
  // The second half of Release: when no process of it is left.
  Status Free(Container* container);
  void RetryDying(int timeout_ms);
  void TidyWritableDir(const Container::Held& held);

  RuntimeOptions options_;
  std::unique_ptr<Networks> networks_;
  std::unique_ptr<QuotaPool> quotas_;
  std::unique_ptr<Overlays> overlays_;
  std::unique_ptr<os::CgroupTree> cgroups_;
  std::vector<sock_filter> filter_;
  os::Stack helper_stack_, child_stack_;
  // Control groups with a helper in each, where joining takes long (v1).
  struct Seat {
    std::unique_ptr<os::Cgroup> cgroup;
    std::unique_ptr<Helper> helper;
  };
  std::deque<Seat> seats_;
  uint64_t next_seat_ = 0;
  // Have said "done" and are about to end; reaped when there is time.
  std::vector<std::unique_ptr<Helper>> ending_;
  std::vector<UniqueFd> closers_;  // processes that take a container's disk down
  UniqueFd self_pidfd_, null_fd_, init_fd_;
  std::string containers_dir_, overlay_anchor_, own_anchor_;
  uint64_t shared_memory_limit_ = 0;
  bool time_namespaces_ = false;
  size_t live_ = 0;
  std::vector<std::unique_ptr<Container>> dying_;       // removed, but some process of it has not ended
  std::vector<std::unique_ptr<os::Cgroup>> lingering_;  // could not be removed yet
  bool refill_broken_ = false;  // a pool could not be filled: not tried again until a start needs it
};

// Names and times what is done, and turns a failure into a StepError.
class RuntimeImpl::Steps {
 public:
  Steps() : last_(NowNanos()) {}
  void Begin(const char* name) { name_ = name; }
  void Done(const char* name) { Done(name, NowNanos()); }
  void Done(const char* name, uint64_t at) {
    Phase phase;
    phase.set_name(name);
    phase.set_nanos(at - last_);
    phases_.push_back(phase);
    last_ = at;
  }
  const char* name() const { return name_; }
  std::vector<Phase> TakePhases() { return std::move(phases_); }

 private:
  const char* name_ = "job";
  uint64_t last_;
  std::vector<Phase> phases_;
};

struct RuntimeImpl::Stdio {
  UniqueFd child[4];
};

}  // namespace lydian::runtime
