// The Runtime behind runtime.h. Internal to the module.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "os/cgroup.h"
#include "os/process.h"
#include "runtime/child.h"
#include "runtime/layers.h"
#include "runtime/network.h"
#include "runtime/plan.h"
#include "runtime/runtime.h"

namespace lydian::runtime {

// What a container holds until Remove.
struct Container::Held {
  Pair pair;
  std::unique_ptr<os::Cgroup> cgroup;
  uint64_t memory_limit = 0;           // its own, or what all containers share
  int oom_score_adj = 0;
  std::string writable_dir;            // kept
  std::vector<std::string> made;       // targets of mounts that were made in it: taken away again if still empty
  std::vector<UniqueFd> exec_pidfds;
};

class RuntimeImpl : public Runtime {
 public:
  explicit RuntimeImpl(RuntimeOptions options) : options_(std::move(options)) {}
  ~RuntimeImpl() override;
  Status Open();

  Result<Plan> MakePlan(const Job& job) override;
  Result<std::unique_ptr<Container>> Start(const Job& job, std::vector<UniqueFd> stdio, StepError* error) override;
  Result<Process> Exec(Container& container, const lydian::Process& process, std::vector<UniqueFd> stdio,
                       StepError* error) override;
  Status KillAll(Container& container) override;
  MemoryUse Memory(Container& container) override;
  Status Remove(std::unique_ptr<Container> container) override;
  bool Refill() override;
  void DrainPools() override;
  Status CleanLeftovers() override;

 private:
  class Steps;
  struct Stdio;

  Status CheckDisk();
  Status Build(const Job& job, std::vector<UniqueFd> stdio, Container* container, Steps* steps);
  Status MakeCgroup(const Job& job, const StartPlan& plan, Container* container);
  Status WriteOwnFiles(const StartPlan& plan, const Pair& pair);
  Status AddDevices(const Job& job, const Pair& pair);
  Status MakeApiSocket(int overlay, Container* container);
  Result<std::vector<UniqueFd>> OpenBinds(const StartPlan& plan, const Pair& pair);
  Status StartInit(const StartPlan& plan, int overlay, const std::vector<UniqueFd>& binds, Container* container, Steps* steps);
  Result<Process> StartProcess(const lydian::Process& process, std::vector<UniqueFd> stdio, bool is_main,
                               Container* container, Steps* steps);
  Result<Stdio> MakeStdio(const lydian::Process& process, std::vector<UniqueFd> stdio, uint32_t base, Process* out);
  JoinArgs JoinOf(const Container& container, std::vector<int>* cgroup_fds) const;
  // Clones `helper` and waits for it; a failure of it or of what it cloned becomes a Status.
  Status RunHelper(int (*helper)(void*), void* args, uint64_t flags, int cgroup_fd, Steps* steps);
  Status EndInit(Container* container);
  Status Release(Container* container);
  void TidyWritableDir(const Container::Held& held);

  RuntimeOptions options_;
  std::unique_ptr<Networks> networks_;
  std::unique_ptr<QuotaPool> quotas_;
  std::unique_ptr<Overlays> overlays_;
  std::unique_ptr<os::CgroupTree> cgroups_;
  std::vector<sock_filter> filter_;
  os::Stack helper_stack_, child_stack_;
  ChildReport* report_ = nullptr;
  UniqueFd self_pidfd_, null_fd_, init_fd_;
  std::string containers_dir_, overlay_anchor_, own_anchor_;
  uint64_t shared_memory_limit_ = 0;
  bool time_namespaces_ = false;
  size_t live_ = 0;
  std::set<std::string> lingering_;    // cgroups that could not be removed yet
  bool refill_broken_ = false;         // a pool could not be filled: not tried again until a start needs it
};

}  // namespace lydian::runtime
