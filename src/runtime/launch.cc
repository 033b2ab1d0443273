#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "runtime/runtime_impl.h"

// From prepared mounts to running processes: what the helper is told, and what becomes of what it made.
namespace lydian::runtime {
namespace {

constexpr uint64_t kNewTimeNamespace = 0x80;

std::vector<std::string> Words(const google::protobuf::RepeatedPtrField<std::string>& list) {
  return {list.begin(), list.end()};
}

}  // namespace

Result<std::unique_ptr<Helper>> RuntimeImpl::MakeHelper(const os::Cgroup& group, Helper::Join join) {
  return Helper::Make(group, helper_stack_, child_stack_, filter_, self_pidfd_.get(), join);
}

Status RuntimeImpl::FillInit(const StartPlan& plan, const Container& container, int overlay,
                             const std::vector<UniqueFd>& binds, Helper* helper) {
  if (plan.mounts.size() > ChildReport::kMaxMounts)
    return InvalidArgument("more mounts than a container can have");
  auto* mounts = helper->New<RawMount>(plan.mounts.size());
  size_t next_bind = 0;
  for (size_t i = 0; i < plan.mounts.size(); ++i) {
    const MountStep& mount = plan.mounts[i];
    std::vector<std::string> options;
    for (const auto& option : mount.options) {
      size_t equals = option.find('=');
      options.push_back(option.substr(0, equals));
      options.push_back(option.substr(equals + 1));
    }
    RawMount raw{mount.kind,
                 helper->Copy(mount.source),
                 helper->Copy(mount.target),
                 helper->CopyList(options),
                 mount.attributes,
                 mount.optional,
                 -1,
                 true};
    if (mount.kind == MountStep::kBind || mount.kind == MountStep::kTree) {
      raw.kind = MountStep::kBind;  // once it is made, the one is moved in like the other
      raw.fd = binds[next_bind++].get();
      struct stat info {};
      if (::fstat(raw.fd, &info) != 0) return ErrnoStatus("looking at " + mount.source);
      raw.is_dir = S_ISDIR(info.st_mode);
    }
    mounts[i] = raw;
  }
  const auto& held = *container.held;
  auto* args = helper->New<InitArgs>();
  *args = InitArgs{};
  args->user_ns = held.pair.user_ns.get();
  args->net_ns = held.pair.net_ns.get();
  args->new_namespaces = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
  if (time_namespaces_) args->new_namespaces |= kNewTimeNamespace;
  args->overlay = overlay;
  args->own_files = held.pair.own_files.get();
  args->overlay_anchor = helper->Copy(overlay_anchor_);
  args->own_anchor = helper->Copy(own_anchor_);
  args->hostname = helper->Copy(plan.hostname);
  args->hostname_size = plan.hostname.size();
  args->mounts = mounts;
  args->mount_count = static_cast<int>(plan.mounts.size());
  args->read_only = plan.read_only;
  args->null_fd = null_fd_.get();
  args->init_fd = init_fd_.get();
  helper->shared()->init = args;
  return OkStatus();
}

Status RuntimeImpl::FillProcess(const lydian::Process& process, const Stdio& stdio, int init_pidfd,
                                Helper* helper) {
  auto* args = helper->New<ProcessArgs>();
  *args = ProcessArgs{};
  args->init_pidfd = init_pidfd;
  args->set_tid = init_pidfd < 0 ? 2 : 0;
  for (int i = 0; i < 4; ++i) args->fds[i] = stdio.child[i].get();
  args->cwd = helper->Copy(process.cwd().empty() ? "/" : process.cwd());
  args->uid = process.uid();
  args->gid = process.gid();
  args->candidates = helper->CopyList(ExecCandidates(process));
  args->argv = helper->CopyList(Words(process.argv()));
  args->envp = helper->CopyList(Words(process.env()));
  helper->shared()->process = args;
  return OkStatus();
}

Status RuntimeImpl::RunHelper(const StartPlan* plan, Container* container, std::unique_ptr<Helper> helper,
                              Process* process, Steps* steps) {
  auto& held = *container->held;
  HelperShared& shared = *helper->shared();
  shared.oom_score_adj = held.oom_score_adj;
  shared.all_namespaces = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC |
                          CLONE_NEWUTS | CLONE_NEWCGROUP | (time_namespaces_ ? kNewTimeNamespace : 0);
  Status status = helper->Run();
  const ChildReport& report = helper->report();
  for (int i = 0; i < report.phase_count; ++i) steps->Done(report.phases[i].name, report.phases[i].end_nanos);
  if (report.init_pidfd >= 0) {
    container->init_pid = report.init_pid;
    container->init_pidfd.reset(report.init_pidfd);
  }
  if (plan != nullptr && held.kept.valid()) {
    for (size_t i = 0; i < plan->mounts.size(); ++i) {
      if (report.made[i]) held.made.push_back(plan->mounts[i].target);
    }
  }
  if (!status.ok()) {
    steps->Begin(helper->step());
    return status;
  }
  process->pid = report.pid;
  process->pidfd.reset(report.pidfd);
  ending_.push_back(std::move(helper));
  steps->Done("handover");
  return OkStatus();
}

Result<RuntimeImpl::Stdio> RuntimeImpl::MakeStdio(const lydian::Process& process, std::vector<UniqueFd> stdio,
                                                  uint32_t base, Process* out) {
  Stdio result;
  auto make_pipe = [&](int number, const char* name, bool child_reads) -> Status {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("making a pipe");
    UniqueFd child(ends[child_reads ? 0 : 1]), ours(ends[child_reads ? 1 : 0]);
    // The container's user must own the pipe, or /dev/stdout could not be opened.
    if (::fchown(child.get(), base + process.uid(), base + process.gid()) != 0)
      return ErrnoStatus("giving a pipe away");
    result.child[number] = std::move(child);
    out->fds[name] = std::move(ours);
    return OkStatus();
  };
  if (process.stdio() == lydian::Process::INHERIT) {
    if (stdio.size() != 3) return InvalidArgument("INHERIT needs three descriptors");
    for (size_t i = 0; i < 3; ++i) result.child[i] = std::move(stdio[i]);
  } else {
    if (process.stdio() == lydian::Process::PIPES_WITH_STDIN) {
      RETURN_IF_ERROR(make_pipe(0, "stdin", true));
    } else {
      ASSIGN_OR_RETURN(result.child[0], Duplicate(null_fd_.get()));
    }
    RETURN_IF_ERROR(make_pipe(1, "stdout", false));
    RETURN_IF_ERROR(make_pipe(2, "stderr", false));
  }
  if (process.control_fd()) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      return ErrnoStatus("making the control socket");
    result.child[3].reset(ends[0]);
    out->fds["control"].reset(ends[1]);
  }
  for (auto& fd : result.child) {
    if (!fd.valid() || fd.get() > 3) continue;
    // 0 to 3 are what they become; a source there would be overwritten before its turn.
    int moved = ::fcntl(fd.get(), F_DUPFD_CLOEXEC, 4);
    if (moved < 0) return ErrnoStatus("moving a descriptor");
    fd.reset(moved);
  }
  return result;
}

Result<Process> RuntimeImpl::Exec(Container& container, const lydian::Process& process,
                                  std::vector<UniqueFd> stdio, StepError* error) {
  Steps steps;
  auto& held = *container.held;
  std::erase_if(held.exec_pidfds, [](const UniqueFd& fd) { return os::PidfdEnded(fd.get()); });
  ReapEnded();
  Process out;
  auto start = [&]() -> Status {
    steps.Begin("job");
    RETURN_IF_ERROR(CheckProcess(process));
    steps.Begin("stdio");
    ASSIGN_OR_RETURN(Stdio fds, MakeStdio(process, std::move(stdio), held.pair.base, &out));
    steps.Begin("cgroup");
    ASSIGN_OR_RETURN(auto helper, MakeHelper(*held.cgroup, Helper::Join::kLate));
    RETURN_IF_ERROR(FillProcess(process, fds, container.init_pidfd.get(), helper.get()));
    return RunHelper(nullptr, &container, std::move(helper), &out, &steps);
  };
  Status status = start();
  if (!status.ok()) {
    if (error != nullptr) *error = {steps.name(), status};
    return std::move(status).With(steps.name());
  }
  ASSIGN_OR_RETURN(UniqueFd copy, Duplicate(out.pidfd.get()));
  held.exec_pidfds.push_back(std::move(copy));
  return out;
}

}  // namespace lydian::runtime
