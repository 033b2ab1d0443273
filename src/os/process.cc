#include "os/process.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

namespace lydian::os {
namespace {

constexpr size_t kPage = 4096;

// clone3 whose child calls run(argument) on the new stack and exits with its result. In assembly, since the
// child must not return into a frame that lies on its parent's stack.
long Clone3(clone_args* args, int (*run)(void*), void* argument) {
#if defined(__x86_64__)
  register long result asm("rax") = SYS_clone3;
  register void* fn asm("r12") = reinterpret_cast<void*>(run);
  register void* arg asm("r13") = argument;
  asm volatile(
      "syscall\n"
      "testq %%rax, %%rax\n"
      "jnz 1f\n"
      "xorl %%ebp, %%ebp\n"
      "movq %%r13, %%rdi\n"
      "callq *%%r12\n"
      "movl %%eax, %%edi\n"
      "movl $60, %%eax\n"
      "syscall\n"
      "ud2\n"
      "1:\n"
      : "+r"(result)
      : "D"(args), "S"(sizeof *args), "r"(fn), "r"(arg)
      : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x0 asm("x0") = reinterpret_cast<long>(args);
  register long x1 asm("x1") = sizeof *args;
  register long x8 asm("x8") = SYS_clone3;
  register void* fn asm("x19") = reinterpret_cast<void*>(run);
  register void* arg asm("x20") = argument;
  asm volatile(
      "svc 0\n"
      "cbnz x0, 1f\n"
      "mov x29, xzr\n"
      "mov x0, x20\n"
      "blr x19\n"
      "mov x8, #93\n"
      "svc 0\n"
      "1:\n"
      : "+r"(x0)
      : "r"(x1), "r"(x8), "r"(fn), "r"(arg)
      : "x30", "memory");
  return x0;
#else
#error "clone3 is written for x86-64 and arm64"
#endif
}

}  // namespace

Stack::Stack(size_t size) : size_(size) {
  mapping_ =
      ::mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  CHECK(mapping_ != MAP_FAILED);
  ::mprotect(mapping_, kPage, PROT_NONE);
  base_ = static_cast<char*>(mapping_) + kPage;
}

Stack::~Stack() { ::munmap(mapping_, size_ + kPage); }

pid_t RawClone(const CloneSpec& spec) {
  clone_args args{};
  args.flags = spec.flags;
  args.exit_signal = static_cast<uint64_t>(spec.exit_signal);
  args.stack = reinterpret_cast<uint64_t>(spec.stack->base());
  args.stack_size = spec.stack->size();
  if (spec.pidfd != nullptr) {
    args.flags |= CLONE_PIDFD;
    args.pidfd = reinterpret_cast<uint64_t>(spec.pidfd);
  }
  if (spec.cgroup_fd >= 0) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = static_cast<uint64_t>(spec.cgroup_fd);
  }
  pid_t set_tid = spec.set_tid;
  if (set_tid != 0) {
    args.set_tid = reinterpret_cast<uint64_t>(&set_tid);
    args.set_tid_size = 1;
  }
  long pid = Clone3(&args, spec.run, spec.argument);
  if (pid < 0) {
    errno = static_cast<int>(-pid);
    return -1;
  }
  return static_cast<pid_t>(pid);
}

Result<UniqueFd> OpenPidfd(pid_t pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd.valid()) return ErrnoStatus("opening a pidfd of process " + std::to_string(pid));
  return fd;
}

Status SignalPidfd(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0) return OkStatus();
  return ErrnoStatus("sending signal " + std::to_string(signal));
}

bool PidfdEnded(int pidfd, int timeout_ms) {
  struct pollfd entry {
    pidfd, POLLIN, 0
  };
  return ::poll(&entry, 1, timeout_ms) > 0;
}

Result<int> WaitPidfd(int pidfd, int timeout_ms) {
  struct pollfd entry {
    pidfd, POLLIN, 0
  };
  int ready;
  while ((ready = ::poll(&entry, 1, timeout_ms)) < 0 && errno == EINTR) {
  }
  if (ready == 0)
    return DeadlineExceeded("the process has not ended after " + std::to_string(timeout_ms) + " ms");
  siginfo_t info{};
  while (::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED | __WALL) != 0) {
    if (errno != EINTR) return ErrnoStatus("waiting for a process");
  }
  if (info.si_code == CLD_EXITED) return W_EXITCODE(info.si_status, 0);
  return W_EXITCODE(0, info.si_status) | (info.si_code == CLD_DUMPED ? WCOREFLAG : 0);
}

std::string FindProgram(const std::string& name) {
  for (const char* dir :
       {"/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"}) {
    std::string path = dir + name;
    if (::access(path.c_str(), X_OK) == 0) return path;
  }
  return "";
}

namespace {

struct CloserArgs {
  int fd, ready;
};

// Keeps only `fd`, so that no pipe or socket of the parent stays open for longer, and waits to be killed.
int HoldOne(void* argument) {
  const auto& args = *static_cast<CloserArgs*>(argument);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a parent that is gone already doesn't read: the write fails then
  unsigned low = static_cast<unsigned>(args.fd < args.ready ? args.fd : args.ready);
  unsigned high = static_cast<unsigned>(args.fd < args.ready ? args.ready : args.fd);
  if (low > 0) ::syscall(SYS_close_range, 0U, low - 1, 0U);
  if (high > low + 1) ::syscall(SYS_close_range, low + 1, high - 1, 0U);
  ::syscall(SYS_close_range, high + 1, ~0U, 0U);
  if (::write(args.ready, "r", 1) != 1) return 1;
  ::close(args.ready);
  while (true) ::pause();
}

}  // namespace

Result<UniqueFd> CloseElsewhere(UniqueFd fd, const Stack& stack) {
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) return ErrnoStatus("making a pipe");
  UniqueFd read_end(pipe[0]), write_end(pipe[1]);
  CloserArgs args{fd.get(), write_end.get()};
  int raw = -1;
  CloneSpec spec{.flags = CLONE_CLEAR_SIGHAND,
                 .exit_signal = SIGCHLD,
                 .pidfd = &raw,
                 .stack = &stack,
                 .run = HoldOne,
                 .argument = &args};
  if (RawClone(spec) < 0) return ErrnoStatus("making a process that closes a descriptor");
  UniqueFd pidfd(raw);
  write_end.reset();
  char ready;
  while (::read(read_end.get(), &ready, 1) < 0 && errno == EINTR) {
  }
  fd.reset();  // the other process has the last one now
  RETURN_IF_ERROR(SignalPidfd(pidfd.get(), SIGKILL));
  return pidfd;
}

namespace {

struct ProgramArgs {
  const char* path;
  char* const* argv;
  int null, out;
};

int ExecProgram(void* argument) {
  auto* args = static_cast<ProgramArgs*>(argument);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::dup2(args->null, 0) < 0 || ::dup2(args->out, 1) < 0 || ::dup2(args->out, 2) < 0) return 126;
  static const char* const env[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", nullptr};
  ::execve(args->path, args->argv, const_cast<char* const*>(env));
  return 127;
}

}  // namespace

Result<ProgramOutput> RunProgram(const std::vector<std::string>& argv) {
  std::string path = FindProgram(argv[0]);
  if (path.empty()) return NotFound("no program " + argv[0] + " on this machine");
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) return ErrnoStatus("making a pipe");
  UniqueFd read_end(pipe[0]), write_end(pipe[1]);
  UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null.valid()) return ErrnoStatus("opening /dev/null");
  std::vector<char*> pointers;
  for (const auto& word : argv) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  ProgramArgs args{path.c_str(), pointers.data(), null.get(), write_end.get()};
  Stack stack;
  int raw_pidfd = -1;
  CloneSpec spec{.flags = CLONE_VM | CLONE_VFORK | CLONE_CLEAR_SIGHAND,
                 .pidfd = &raw_pidfd,
                 .stack = &stack,
                 .run = ExecProgram,
                 .argument = &args};
  if (RawClone(spec) < 0) return ErrnoStatus("starting " + argv[0]);
  UniqueFd pidfd(raw_pidfd);
  write_end.reset();
  ProgramOutput result;
  char buffer[4096];
  while (true) {
    ssize_t n = ::read(read_end.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    if (result.output.size() < (64 << 10)) result.output.append(buffer, static_cast<size_t>(n));
  }
  ASSIGN_OR_RETURN(result.status, WaitPidfd(pidfd.get(), -1));
  return result;
}

}  // namespace lydian::os
