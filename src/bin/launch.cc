#include "bin/launch.h"

#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "cli/lock_file.h"

extern char** environ;

namespace lydian::bin {
namespace {

// What the child reports when it can't go on.
struct Failure {
  char step[32];
  int error;
};

[[noreturn]] void Fail(int report, const char* step) {
  Failure failure{};
  failure.error = errno;
  std::strncpy(failure.step, step, sizeof failure.step - 1);
  [[maybe_unused]] ssize_t n = ::write(report, &failure, sizeof failure);
  ::_exit(126);
}

void SetUpDescriptors(const LaunchSpec& spec, int report) {
  int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || ::dup2(null, 0) < 0) Fail(report, "opening /dev/null");
  int log = ::open(spec.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
  if (log < 0 || ::dup2(log, 1) < 0 || ::dup2(log, 2) < 0) Fail(report, "opening the log");
  for (const auto& [name, fd] : spec.fds) {
    if (::fcntl(fd, F_SETFD, 0) != 0) Fail(report, "passing a socket on");
  }
}

// SQLite can't open a file whose folder's parents it may not walk through, and the state may lie below a
// closed one.
void BindState(const LaunchSpec& spec, int report) {
  if (::unshare(CLONE_NEWNS) != 0) Fail(report, "making a mount namespace");
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    Fail(report, "making mounts private");
  if (::mkdir(kControlState, 0755) != 0 && errno != EEXIST) Fail(report, "making /run/lydian-state");
  if (::mount(spec.private_state.c_str(), kControlState, nullptr, MS_BIND, nullptr) != 0)
    Fail(report, "binding the state");
}

void DropRights(const LaunchSpec& spec, int report) {
  if (::setgroups(0, nullptr) != 0) Fail(report, "dropping groups");
  if (::setresgid(spec.gid, spec.gid, spec.gid) != 0) Fail(report, "setting the group");
  if (::setresuid(spec.uid, spec.uid, spec.uid) != 0) Fail(report, "setting the user");
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) Fail(report, "giving up new privileges");
  ::umask(0077);
}

[[noreturn]] void RunChild(const LaunchSpec& spec, int report) {
  if (::setsid() < 0) Fail(report, "starting a session");
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  SetUpDescriptors(spec, report);
  // Not to be had in some containers, and no reason to give up.
  (void)WriteExisting("/proc/self/oom_score_adj", std::to_string(spec.oom_score_adj));
  if (::chdir("/") != 0) Fail(report, "changing to /");
  std::vector<std::string> env;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    // What has no rights needs nothing of the caller's environment, and proxy settings would be taken for
    // loopback too.
    const bool kept =
        std::strncmp(*variable, "PATH=", 5) == 0 || std::strncmp(*variable, "LYDIAN_RPC_RECORD=", 18) == 0;
    if (!spec.private_state.empty() && !kept) continue;
    if (std::strncmp(*variable, "LYDIAN_FDS=", 11) != 0) env.emplace_back(*variable);
  }
  env.push_back("LYDIAN_FDS=" + cli::FormatFds(spec.fds));
  std::vector<char*> argv, envp;
  std::string name = "lydian";
  argv.push_back(name.data());
  for (const std::string& arg : spec.args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  for (std::string& variable : env) envp.push_back(variable.data());
  envp.push_back(nullptr);
  if (!spec.private_state.empty()) {
    BindState(spec, report);
    DropRights(spec, report);
  }
  ::fexecve(spec.executable, argv.data(), envp.data());
  Fail(report, "executing the binary");
}

}  // namespace

Result<pid_t> LaunchDaemon(const LaunchSpec& spec) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("making a pipe");
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus("starting " + spec.role);
  if (pid == 0) RunChild(spec, write_end.get());
  write_end.reset();
  Failure failure{};
  ssize_t n;
  do {
    n = ::read(read_end.get(), &failure, sizeof failure);  // ends at the exec
  } while (n < 0 && errno == EINTR);
  if (n == 0) return pid;
  ::waitpid(pid, nullptr, 0);
  if (n != static_cast<ssize_t>(sizeof failure))
    return Internal("starting " + spec.role + ": it died before it began");
  failure.step[sizeof failure.step - 1] = '\0';
  return ErrnoStatus("starting " + spec.role + ": " + failure.step, failure.error);
}

}  // namespace lydian::bin
