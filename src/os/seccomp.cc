#include "os/seccomp.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <set>

#include "base/fd.h"

namespace lydian::os {
namespace {

// By purpose. A name that this libseccomp or this machine doesn't know is left out.
constexpr const char* kAllowed[] = {
    // files
    "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup",
    "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod",
    "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr",
    "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs",
    "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64",
    "getxattr", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "ioctl", "lchown",
    "lchown32", "lgetxattr", "link", "linkat", "listxattr", "llistxattr", "lremovexattr", "lseek", "_llseek",
    "lsetxattr", "lstat", "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at",
    "newfstatat", "open", "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev",
    "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr", "rename", "renameat",
    "renameat2", "rmdir", "sendfile", "sendfile64", "setxattr", "splice", "stat", "stat64", "statfs",
    "statfs64", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate",
    "truncate64", "umask", "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes",
    "vmsplice", "write", "writev", "fanotify_mark", "chroot", "cachestat",
    // polling and events
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "_newselect", "pipe", "pipe2", "poll", "ppoll",
    "pselect6", "select", "signalfd", "signalfd4", "timerfd_create", "timerfd_gettime", "timerfd_settime",
    // memory
    "brk", "get_mempolicy", "madvise", "map_shadow_stack", "mbind", "membarrier", "memfd_create",
    "memfd_secret", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal",
    "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "process_madvise",
    "process_mrelease", "process_vm_readv", "process_vm_writev", "remap_file_pages", "set_mempolicy",
    "set_mempolicy_home_node",
    // processes, threads, signals
    "alarm", "arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex",
    "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list",
    "get_thread_area", "getcpu", "getegid", "geteuid", "getgid", "getgroups", "getitimer", "getpgid",
    "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresuid", "getrlimit", "getrusage",
    "getsid", "gettid", "getuid", "ioprio_get", "ioprio_set", "kcmp", "kill", "landlock_add_rule",
    "landlock_create_ruleset", "landlock_restrict_self", "modify_ldt", "nice", "pause", "pidfd_getfd",
    "pidfd_open", "pidfd_send_signal", "prctl", "ptrace", "restart_syscall", "rseq", "rt_sigaction",
    "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
    "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity",
    "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list",
    "set_thread_area", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups", "setitimer",
    "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setsid", "setuid",
    "sigaltstack", "tgkill", "time", "times", "tkill", "uname", "sysinfo", "vfork", "wait4", "waitid",
    "waitpid", "rt_sigtimedwait_time64", "riscv_flush_icache", "riscv_hwprobe",
    // time
    "clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "timer_create",
    "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime",
    // sockets (socket and socketpair by family, below)
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
    "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
    // System V and POSIX IPC
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl",
    "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt",
    "shmget", "getrandom"};

// Known, and refused: EPERM says so to programs that try.
constexpr const char* kRefused[] = {"acct",          "add_key",         "adjtimex",
                                    "bpf",           "clock_adjtime",   "clock_settime",
                                    "delete_module", "fanotify_init",   "finit_module",
                                    "fsconfig",      "fsmount",         "fsopen",
                                    "fspick",        "init_module",     "ioperm",
                                    "iopl",          "kexec_file_load", "kexec_load",
                                    "keyctl",        "lookup_dcookie",  "migrate_pages",
                                    "mount",         "mount_setattr",   "move_mount",
                                    "move_pages",    "nfsservctl",      "open_by_handle_at",
                                    "open_tree",     "perf_event_open", "pivot_root",
                                    "quotactl",      "quotactl_fd",     "reboot",
                                    "request_key",   "setdomainname",   "sethostname",
                                    "setns",         "settimeofday",    "stime",
                                    "swapoff",       "swapon",          "syslog",
                                    "umount",        "umount2",         "userfaultfd",
                                    "vhangup"};

constexpr uint64_t kNewNamespaces =
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP;
constexpr uint64_t kNewTime =
    0x80;  // CLONE_NEWTIME; for unshare alone (in clone it is part of the signal number)

struct Release {
  void operator()(void* context) const { ::seccomp_release(context); }
};

class Builder {
 public:
  explicit Builder(scmp_filter_ctx context) : context_(context) {}
  void Add(uint32_t action, const char* name) { Add(action, name, {}); }
  void Add(uint32_t action, const char* name, std::vector<scmp_arg_cmp> tests) {
    int number = ::seccomp_syscall_resolve_name(name);
    if (number == __NR_SCMP_ERROR || number < 0 || error_ != 0) return;
    int failed =
        ::seccomp_rule_add_array(context_, action, number, static_cast<unsigned>(tests.size()), tests.data());
    if (failed != 0) {
      error_ = -failed;
      name_ = name;
    }
  }
  Status status() const {
    return error_ == 0 ? OkStatus() : ErrnoStatus(std::string("a seccomp rule for ") + name_, error_);
  }

 private:
  scmp_filter_ctx context_;
  int error_ = 0;
  const char* name_ = "";
};

constexpr uint64_t kInt = 0xffffffff;  // the part of a register that the kernel looks at

// `call`'s first argument has to be one of `allowed`; all other families that there are answer EAFNOSUPPORT.
void AddFamilies(Builder* rules, const char* call, const std::set<uint64_t>& allowed) {
  const uint32_t refused = SCMP_ACT_ERRNO(EAFNOSUPPORT);
  for (uint64_t family = 0; family <= AF_PACKET; ++family) {
    // Netlink by its protocols.
    if (allowed.contains(family) && family == AF_NETLINK) continue;
    rules->Add(allowed.contains(family) ? SCMP_ACT_ALLOW : refused, call,
               {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kInt, family)});
  }
  rules->Add(refused, call, {SCMP_A0_64(SCMP_CMP_GT, AF_PACKET)});
}

void AddSocketRules(Builder* rules) {
  AddFamilies(rules, "socket", {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK});
  AddFamilies(rules, "socketpair", {AF_UNIX});
  // Netlink: addresses and routes (every C library asks for them), events of devices, and the generic kind. A
  // protocol is a module that the kernel loads when it is asked for.
  const std::set<uint64_t> protocols = {NETLINK_ROUTE, NETLINK_KOBJECT_UEVENT, NETLINK_GENERIC};
  for (uint64_t protocol = 0; protocol < MAX_LINKS; ++protocol) {
    rules->Add(
        protocols.contains(protocol) ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO(EPROTONOSUPPORT), "socket",
        {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kInt, AF_NETLINK), SCMP_A2_64(SCMP_CMP_MASKED_EQ, kInt, protocol)});
  }
  rules->Add(SCMP_ACT_ERRNO(EPROTONOSUPPORT), "socket",
             {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kInt, AF_NETLINK), SCMP_A2_64(SCMP_CMP_GE, MAX_LINKS)});
}

// The limit of core files stays as it was given (runtime/child.cc): a program that sets it is told that it
// did, since many set it to nothing, which is what it means anyway.
void AddLimitRules(Builder* rules) {
  const uint32_t nothing_done = SCMP_ACT_ERRNO(0);
  rules->Add(nothing_done, "setrlimit", {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kInt, RLIMIT_CORE)});
  rules->Add(nothing_done, "prlimit64",
             {SCMP_A1_64(SCMP_CMP_MASKED_EQ, kInt, RLIMIT_CORE), SCMP_A2_64(SCMP_CMP_NE, 0)});
  rules->Add(SCMP_ACT_ALLOW, "prlimit64",
             {SCMP_A1_64(SCMP_CMP_MASKED_EQ, kInt, RLIMIT_CORE), SCMP_A2_64(SCMP_CMP_EQ, 0)});
  for (uint64_t limit = 0; limit < RLIM_NLIMITS; ++limit) {
    if (limit == RLIMIT_CORE) continue;
    rules->Add(SCMP_ACT_ALLOW, "setrlimit", {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kInt, limit)});
    rules->Add(SCMP_ACT_ALLOW, "prlimit64", {SCMP_A1_64(SCMP_CMP_MASKED_EQ, kInt, limit)});
  }
  rules->Add(SCMP_ACT_ERRNO(EINVAL), "setrlimit", {SCMP_A0_64(SCMP_CMP_GE, RLIM_NLIMITS)});
  rules->Add(SCMP_ACT_ERRNO(EINVAL), "prlimit64", {SCMP_A1_64(SCMP_CMP_GE, RLIM_NLIMITS)});
}

void AddRules(Builder* rules) {
  const uint32_t eperm = SCMP_ACT_ERRNO(EPERM);
  for (const char* name : kAllowed) rules->Add(SCMP_ACT_ALLOW, name);
  for (const char* name : kRefused) rules->Add(eperm, name);
  // No new namespaces. clone3 hides its flags behind a pointer: with ENOSYS, C libraries use clone.
  rules->Add(SCMP_ACT_ALLOW, "clone", {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kNewNamespaces, 0)});
  rules->Add(SCMP_ACT_ALLOW, "unshare", {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kNewNamespaces | kNewTime, 0)});
  for (uint64_t flag = 1; flag <= kNewNamespaces; flag <<= 1) {
    if ((kNewNamespaces & flag) != 0) {
      rules->Add(eperm, "clone", {SCMP_A0_64(SCMP_CMP_MASKED_EQ, flag, flag)});
      rules->Add(eperm, "unshare", {SCMP_A0_64(SCMP_CMP_MASKED_EQ, flag, flag)});
    }
  }
  rules->Add(eperm, "unshare", {SCMP_A0_64(SCMP_CMP_MASKED_EQ, kNewTime, kNewTime)});
  AddSocketRules(rules);
  AddLimitRules(rules);
  // personality: query, Linux, 32-bit addresses, no randomisation (debuggers), and both.
  for (uint64_t persona : {0x0ULL, 0x8ULL, 0x20000ULL, 0x20008ULL, 0x40000ULL, 0xffffffffULL}) {
    rules->Add(SCMP_ACT_ALLOW, "personality", {SCMP_A0_64(SCMP_CMP_EQ, persona)});
  }
}

}  // namespace

Result<std::vector<sock_filter>> BuildSeccompFilter() {
  std::unique_ptr<void, Release> context(::seccomp_init(SCMP_ACT_ERRNO(ENOSYS)));
  if (context == nullptr) return Internal("no seccomp context");
  // A binary tree: a system call costs some ten instructions instead of hundreds.
  (void)::seccomp_attr_set(context.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  (void)::seccomp_attr_set(context.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS));
  Builder rules(context.get());
  AddRules(&rules);
  RETURN_IF_ERROR(rules.status());
  UniqueFd file(::memfd_create("seccomp", MFD_CLOEXEC));
  if (!file.valid()) return ErrnoStatus("making a memory file");
  if (int failed = ::seccomp_export_bpf(context.get(), file.get()); failed != 0) {
    return ErrnoStatus("compiling the seccomp filter", -failed);
  }
  off_t size = ::lseek(file.get(), 0, SEEK_END);
  std::vector<sock_filter> program(static_cast<size_t>(size) / sizeof(sock_filter));
  if (::pread(file.get(), program.data(), static_cast<size_t>(size), 0) != size)
    return ErrnoStatus("reading the filter");
  return program;
}

int RawLoadSeccomp(const std::vector<sock_filter>& program) {
  sock_fprog raw{static_cast<unsigned short>(program.size()), const_cast<sock_filter*>(program.data())};
  return static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw));
}

}  // namespace lydian::os
