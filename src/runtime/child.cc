#include "runtime/child.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "os/caps.h"
#include "os/mount.h"
#include "os/seccomp.h"
#include "runtime/plan.h"

namespace lydian::runtime {
namespace {

constexpr int kFailed = 125;

void CopyText(char* to, size_t size, const char* from) {
  size_t n = ::strnlen(from, size - 1);
  ::memcpy(to, from, n);
  to[n] = '\0';
}

// Notes the first failure; what follows is its consequence.
int Fail(ChildReport* report, const char* step, const char* detail, int error = errno) {
  if (report->error == 0) {
    report->step = step;
    CopyText(report->detail, sizeof report->detail, detail);
    report->error = error != 0 ? error : EIO;
  }
  return kFailed;
}

void Mark(ChildReport* report, const char* name) {
  if (report->phase_count >= ChildReport::kMaxPhases) return;
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  auto& phase = report->phases[report->phase_count++];
  phase.name = name;
  phase.end_nanos = static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void ClearSignalMask() {
  uint64_t none = 0;
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, nullptr, sizeof none);
}

int WriteOwn(const char* path, const char* text) {
  int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = ::write(fd, text, ::strlen(text));
  ::close(fd);
  return n < 0 ? -1 : 0;
}

int JoinCgroup(const HelperShared& shared, ChildReport* report) {
  for (int fd : shared.cgroup_fds) {
    if (fd < 0) break;
    if (::write(fd, "0", 1) != 1) return Fail(report, "cgroup", "joining the control group");
  }
  return 0;
}

int SetOomScore(int value, ChildReport* report) {
  char text[16];
  int at = sizeof text - 1;
  text[at] = '\0';
  for (; value > 0; value /= 10) text[--at] = static_cast<char>('0' + value % 10);
  if (text[at] == '\0' || WriteOwn("/proc/self/oom_score_adj", text + at) == 0) return 0;
  return Fail(report, "cgroup", "setting oom_score_adj");
}

// Raw calls: those of the C library would reach for other threads of the parent.
int BecomeContainerRoot(ChildReport* report) {
  if (::syscall(SYS_setgroups, 0, nullptr) != 0 || ::syscall(SYS_setresgid, 0, 0, 0) != 0 ||
      ::syscall(SYS_setresuid, 0, 0, 0) != 0) {
    return Fail(report, "namespaces", "becoming the container's root");
  }
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
    return Fail(report, "namespaces", "hiding from the container");
  return 0;
}

// --- mounts ---

// Makes what is missing of `path` below `root`: all but the last part as folders, the last as a folder or a
// file.
int MakeTarget(int root, const char* path, bool is_dir) {
  char part[4096];
  size_t size = ::strnlen(path, sizeof part);
  if (size >= sizeof part) {
    errno = ENAMETOOLONG;
    return -1;
  }
  for (size_t at = 1; at <= size; ++at) {
    if (at != size && path[at] != '/') continue;
    if (path[at - 1] == '/') continue;
    CopyText(part, at + 1, path);
    int fd = os::RawOpenInRoot(root, part, O_PATH);
    if (fd >= 0) {
      ::close(fd);
      continue;
    }
    if (errno != ENOENT) return -1;
    size_t slash = at;
    while (slash > 0 && part[slash - 1] != '/') --slash;
    char name[256];
    if (at - slash >= sizeof name) {
      errno = ENAMETOOLONG;
      return -1;
    }
    CopyText(name, sizeof name, part + slash);
    part[slash] = '\0';
    int parent = os::RawOpenInRoot(root, part, O_PATH | O_DIRECTORY);
    if (parent < 0) return -1;
    int failed =
        (at != size || is_dir) ? ::mkdirat(parent, name, 0755) : ::mknodat(parent, name, S_IFREG | 0644, 0);
    int error = errno;
    // A symlink to nothing: what it points to is for the caller to make.
    ::close(parent);
    errno = error;
    if (failed != 0) return -1;
  }
  return 0;
}

// For a target that is a symlink to something missing (resolv.conf in many images): makes what it points to.
int MakeBehindLink(int root, const char* path) {
  int link = os::RawOpenInRoot(root, path, O_PATH | O_NOFOLLOW);
  if (link < 0) return -1;
  char text[2048];
  ssize_t n = ::readlinkat(link, "", text, sizeof text - 1);
  int error = errno;
  ::close(link);
  errno = error;
  if (n <= 0) return -1;
  text[n] = '\0';
  if (text[0] == '/') return MakeTarget(root, text, false);
  char full[4096];
  size_t slash = ::strnlen(path, 2000);
  while (slash > 0 && path[slash - 1] != '/') --slash;
  CopyText(full, slash + 1, path);
  CopyText(full + slash, sizeof full - slash, text);
  return MakeTarget(root, full, false);
}

int OpenTarget(int root, const RawMount& mount, bool is_dir, bool* made) {
  int fd = os::RawOpenInRoot(root, mount.target, O_PATH);
  if (fd >= 0 || errno != ENOENT || mount.optional) return fd;
  if (MakeTarget(root, mount.target, is_dir) != 0) {
    if (errno != EEXIST || is_dir || MakeBehindLink(root, mount.target) != 0) return -1;
  }
  *made = true;
  return os::RawOpenInRoot(root, mount.target, O_PATH);
}

int NewFileSystem(const RawMount& mount) {
  int context = ::fsopen(mount.source, FSOPEN_CLOEXEC);
  if (context < 0) return -1;
  int result = -1;
  bool ok = true;
  for (const char* const* option = mount.options; ok && *option != nullptr; option += 2) {
    ok = ::fsconfig(context, FSCONFIG_SET_STRING, option[0], option[1], 0) == 0;
  }
  if (ok && ::fsconfig(context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) == 0) {
    result = ::fsmount(context, FSMOUNT_CLOEXEC, static_cast<unsigned>(mount.attributes));
  }
  int error = errno;
  ::close(context);
  errno = error;
  return result;
}

// A copy of a mount or a part of one, with attributes.
int Clone(int dir, const char* path, uint64_t attributes) {
  unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (path[0] == '\0' ? AT_EMPTY_PATH : 0);
  int fd = ::open_tree(dir, path, flags);
  if (fd < 0) return -1;
  struct mount_attr attr {};
  attr.attr_set = attributes;
  if (::mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof attr) == 0) return fd;
  int error = errno;
  ::close(fd);
  errno = error;
  return -1;
}

int SourceOf(const RawMount& mount, int own_files, int target) {
  struct stat info {};
  switch (mount.kind) {
    case MountStep::kFileSystem:
      return NewFileSystem(mount);
    case MountStep::kBind:
      return ::fcntl(mount.fd, F_DUPFD_CLOEXEC, 3);
    case MountStep::kOwn:
      return Clone(own_files, mount.source, mount.attributes);
    case MountStep::kSelf:
      return Clone(target, "", mount.attributes);
    case MountStep::kMask:
      if (::fstat(target, &info) != 0) return -1;
      return Clone(own_files, S_ISDIR(info.st_mode) ? "empty" : "dev/null",
                   S_ISDIR(info.st_mode) ? mount.attributes : 0);
  }
  errno = EINVAL;
  return -1;
}

// The kernel's own folders have to be where they are looked for: behind a link, what is masked by its path
// would stay open at another.
const char* LinkInTheWay(int root, const char* target) {
  static constexpr const char* kFolders[][2] = {
      {"/proc", "the image's /proc is a symbolic link, and has to be a folder or missing"},
      {"/sys", "the image's /sys is a symbolic link, and has to be a folder or missing"},
      {"/dev", "the image's /dev is a symbolic link, and has to be a folder or missing"}};
  for (const auto& folder : kFolders) {
    if (::strcmp(target, folder[0]) != 0) continue;
    int fd = os::RawOpenInRoot(root, target, O_PATH | O_NOFOLLOW);
    if (fd < 0) return nullptr;
    struct stat info {};
    bool link = ::fstat(fd, &info) != 0 || S_ISLNK(info.st_mode);
    ::close(fd);
    return link ? folder[1] : nullptr;
  }
  return nullptr;
}

int DoMount(const InitArgs& args, int index, bool* made) {
  const RawMount& mount = args.mounts[index];
  bool is_dir = mount.kind == MountStep::kFileSystem || (mount.kind == MountStep::kBind && mount.is_dir) ||
                (mount.kind == MountStep::kOwn && ::strcmp(mount.source, "dev") == 0);
  int target = OpenTarget(args.overlay, mount, is_dir, made);
  if (target < 0) {
    // A file that isn't there needs no mask; neither does a link that leads nowhere.
    if (mount.optional && (errno == ENOENT || errno == ENOTDIR)) return 0;
    return -1;
  }
  int source = SourceOf(mount, args.own_files, target);
  int failed = source < 0
                   ? -1
                   : ::move_mount(source, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
  int error = errno;
  if (source >= 0) ::close(source);
  ::close(target);
  errno = error;
  return failed;
}

int Pivot(const InitArgs& args) {
  if (args.read_only) {
    struct mount_attr attr {};
    attr.attr_set = MOUNT_ATTR_RDONLY;
    if (::mount_setattr(args.overlay, "", AT_EMPTY_PATH, &attr, sizeof attr) != 0) return -1;
  }
  // The old root lands on top of the new one at ".", and is taken away from there.
  if (::fchdir(args.overlay) != 0 || ::syscall(SYS_pivot_root, ".", ".") != 0) return -1;
  if (::umount2(".", MNT_DETACH) != 0) return -1;
  return ::chdir("/");
}

// --- init ---

int LockDown(uint64_t keep, const std::vector<sock_filter>& filter) {
  if (os::RawSetCaps(keep, keep, 0) != 0) return -1;
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
  return os::RawLoadSeccomp(filter);
}

// A core file would land in the writable layer, or in a program of the host's behind core_pattern. A limit of
// 0 stops files alone; 1 stops both: too small for a file, and the kernel's own sign that a dump is not to be
// piped.
int ForbidCores() {
  struct rlimit limit {
    1, 1
  };
  return ::setrlimit(RLIMIT_CORE, &limit);
}

int RunInit(void* argument) {
  auto& shared = *static_cast<HelperShared*>(argument);
  const InitArgs& args = *shared.init;
  ChildReport* report = &shared.report;
  ::umask(022);
  ::setsid();
  if (ForbidCores() != 0) return Fail(report, "init", "forbidding core dumps");
  Mark(report, "namespaces");
  if (::sethostname(args.hostname, args.hostname_size) != 0) return Fail(report, "hostname", args.hostname);
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return Fail(report, "mount", "/");
  if (::move_mount(args.overlay, "", AT_FDCWD, args.overlay_anchor, MOVE_MOUNT_F_EMPTY_PATH) != 0 ||
      ::move_mount(args.own_files, "", AT_FDCWD, args.own_anchor, MOVE_MOUNT_F_EMPTY_PATH) != 0) {
    return Fail(report, "mount", "moving the root file system in");
  }
  for (int i = 0; i < args.mount_count; ++i) {
    if (const char* link = LinkInTheWay(args.overlay, args.mounts[i].target)) {
      return Fail(report, "mount", link, ENOTDIR);
    }
    if (DoMount(args, i, &report->made[i]) != 0) return Fail(report, "mount", args.mounts[i].target);
  }
  Mark(report, "mounts");
  if (Pivot(args) != 0) return Fail(report, "pivot", "/");
  Mark(report, "pivot");
  if (::dup2(args.null_fd, 0) < 0 || ::dup2(args.null_fd, 1) < 0 || ::dup2(args.null_fd, 2) < 0) {
    return Fail(report, "init", "its descriptors");
  }
  if (::syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) != 0)
    return Fail(report, "init", "closing descriptors");
  // Init can be traced by the container's root, so it may do no more than any process inside.
  if (os::RawDropBounding(0) != 0 || LockDown(0, *shared.filter) != 0)
    return Fail(report, "init", "dropping rights");
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) return Fail(report, "init", "its death signal");
  struct pollfd parent {
    shared.spawner_pidfd, POLLIN, 0
  };
  if (::poll(&parent, 1, 0) != 0) return Fail(report, "init", "the spawner is gone", ESRCH);
  ClearSignalMask();
  // The helper goes on as soon as exec has let go of this memory, a moment before the new one is in its
  // place: it may join the namespaces of a process whose memory isn't dumpable only with rights on the host.
  // No process of the container exists yet that could look.
  if (::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) != 0) return Fail(report, "init", "letting the helper join");
  static char name[] = "lydian-init";
  char* const argv[] = {name, nullptr};
  char* const envp[] = {nullptr};
  ::syscall(SYS_execveat, args.init_fd, "", argv, envp, AT_EMPTY_PATH);
  return Fail(report, "init", "lydian-init");
}

// --- processes ---

// Through no magic link, so that no descriptor of this process is a way out; and what is entered has a path
// inside.
int EnterCwd(const char* cwd) {
  int root = ::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (root < 0) return -1;
  int folder = os::RawOpenInRoot(root, cwd, O_PATH | O_DIRECTORY);
  if (folder < 0 && errno == ENOENT && MakeTarget(root, cwd, true) == 0)
    folder = os::RawOpenInRoot(root, cwd, O_PATH | O_DIRECTORY);
  if (folder < 0 || ::fchdir(folder) != 0) return -1;
  ::close(folder);
  ::close(root);
  char path[4096];
  if (::syscall(SYS_getcwd, path, sizeof path) < 0) return -1;
  if (path[0] == '/') return 0;  // else "(unreachable)/..."
  errno = EXDEV;
  return -1;
}

void SetLimits() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max < 65536 ? limit.rlim_max : 65536;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

int SetFds(const ProcessArgs& args) {
  unsigned next = 3;
  for (int i = 0; i < 3; ++i) {
    if (::dup2(args.fds[i], i) < 0) return -1;
  }
  if (args.fds[3] >= 0) {
    if (::dup2(args.fds[3], 3) < 0) return -1;
    next = 4;
  }
  // Really, not at exec: names of a tenant's making are resolved before that, and /proc/self/fd would lead
  // to whatever the spawner holds.
  return static_cast<int>(::syscall(SYS_close_range, next, ~0U, 0));
}

int BecomeUser(const ProcessArgs& args, const std::vector<sock_filter>& filter) {
  if (os::RawDropBounding(os::ContainerCaps()) != 0) return -1;
  if (args.gid != 0 && ::syscall(SYS_setresgid, args.gid, args.gid, args.gid) != 0) return -1;
  gid_t groups[1] = {args.gid};
  if (::syscall(SYS_setgroups, 1, groups) != 0) return -1;
  if (args.uid != 0 && ::syscall(SYS_setresuid, args.uid, args.uid, args.uid) != 0) return -1;
  return LockDown(args.uid == 0 ? os::ContainerCaps() : 0, filter);
}

int RunProcess(void* argument) {
  auto& shared = *static_cast<HelperShared*>(argument);
  const ProcessArgs& args = *shared.process;
  ChildReport* report = &shared.report;
  ::umask(022);
  ::setsid();
  SetLimits();
  if (ForbidCores() != 0) return Fail(report, "privileges", "forbidding core dumps");
  if (shared.join_late) {
    if (int failed = JoinCgroup(shared, report)) return failed;
  }
  if (SetFds(args) != 0) return Fail(report, "exec", "its descriptors");
  if (EnterCwd(args.cwd) != 0) return Fail(report, "cwd", args.cwd);
  if (BecomeUser(args, *shared.filter) != 0) return Fail(report, "privileges", "dropping rights");
  Mark(report, "privileges");
  ClearSignalMask();
  int error = ENOENT;
  for (const char* const* path = args.candidates; *path != nullptr; ++path) {
    ::execve(*path, const_cast<char* const*>(args.argv), const_cast<char* const*>(args.envp));
    if (errno == ENOENT || errno == ENOTDIR) continue;
    error = errno;
    if (errno != EACCES) break;
  }
  return Fail(report, "exec", args.argv[0], error);
}

// --- the helper ---

int MakeInit(HelperShared* shared) {
  ChildReport* report = &shared->report;
  if (::setns(shared->init->user_ns, CLONE_NEWUSER) != 0)
    return Fail(report, "namespaces", "joining the user namespace");
  if (::setns(shared->init->net_ns, CLONE_NEWNET) != 0)
    return Fail(report, "namespaces", "joining the network namespace");
  if (int failed = BecomeContainerRoot(report)) return failed;
  // Memory of its own: who shares memory stays in the time namespace it came from (until exec, on Linux 6.2
  // and newer).
  os::CloneSpec spec{.flags = CLONE_VFORK | CLONE_PARENT | shared->init->new_namespaces,
                     .pidfd = &report->init_pidfd,
                     .stack = shared->stack,
                     .run = RunInit,
                     .argument = shared};
  report->init_pid = os::RawClone(spec);
  if (report->init_pid < 0) return Fail(report, "namespaces", "making the container's namespaces");
  if (report->error != 0) return kFailed;
  Mark(report, "init");
  // It is already in two of them.
  uint64_t rest = shared->all_namespaces & ~uint64_t{CLONE_NEWUSER | CLONE_NEWNET};
  if (::setns(report->init_pidfd, static_cast<int>(rest)) != 0)
    return Fail(report, "join", "joining the container's namespaces");
  return 0;
}

int JoinContainer(HelperShared* shared) {
  ChildReport* report = &shared->report;
  if (::setns(shared->process->init_pidfd, static_cast<int>(shared->all_namespaces)) != 0) {
    return Fail(report, "join", "joining the container's namespaces");
  }
  return BecomeContainerRoot(report);
}

int Work(HelperShared* shared) {
  ChildReport* report = &shared->report;
  Mark(report, "wake");
  if (int failed = SetOomScore(shared->oom_score_adj, report)) return failed;
  if (int failed = shared->init != nullptr ? MakeInit(shared) : JoinContainer(shared)) return failed;
  Mark(report, "join");
  os::CloneSpec spec{.flags = CLONE_VM | CLONE_VFORK | CLONE_PARENT,
                     .pidfd = &report->pidfd,
                     .set_tid = shared->process->set_tid,
                     .stack = shared->stack,
                     .run = RunProcess,
                     .argument = shared};
  report->pid = os::RawClone(spec);
  if (report->pid < 0) return Fail(report, "exec", "making the process");
  if (report->error != 0) return kFailed;
  Mark(report, "exec");
  return 0;
}

}  // namespace

int RunHelper(void* argument) {
  auto* shared = static_cast<HelperShared*>(argument);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  struct pollfd parent {
    shared->spawner_pidfd, POLLIN, 0
  };
  if (::poll(&parent, 1, 0) != 0) return kFailed;
  int result = shared->join_late ? 0 : JoinCgroup(*shared, &shared->report);
  uint64_t count = 0;
  while (::read(shared->go_fd, &count, sizeof count) < 0 && errno == EINTR) {
  }
  if (result == 0) result = Work(shared);
  count = 1;
  if (::write(shared->done_fd, &count, sizeof count) < 0) result = kFailed;
  return result;
}

}  // namespace lydian::runtime
