#include "build/host_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <mutex>

#include "base/fd.h"

extern char** environ;

namespace lydian::build {
namespace {

std::vector<std::string> MergedEnv(const std::vector<std::string>& more) {
  std::map<std::string, std::string> merged;
  auto add = [&](const std::string& entry) { merged[entry.substr(0, entry.find('='))] = entry; };
  for (char** entry = environ; *entry != nullptr; ++entry) add(*entry);
  for (const auto& entry : more) add(entry);
  std::vector<std::string> env;
  for (auto& [key, entry] : merged) env.push_back(entry);
  return env;
}

std::vector<char*> Pointers(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Starts argv with stdin /dev/null and both outputs on `out`.
Result<pid_t> Spawn(std::vector<std::string> argv, const HostCommand& command, int out) {
  std::vector<std::string> env = MergedEnv(command.env);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_adddup2(&actions, out, 2);
  posix_spawn_file_actions_addchdir_np(&actions, command.cwd.c_str());
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  pid_t pid = -1;
  int error = ::posix_spawnp(&pid, argv[0].c_str(), &actions, &attributes, Pointers(argv).data(),
                             Pointers(env).data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return ErrnoStatus("starting " + command.argv[0], error);
  return pid;
}

// The process group of a tool: all of it is killed, since `unshare` may die before its child has asked to die
// with it.
class Group {
 public:
  explicit Group(pid_t leader) : leader_(leader) {}
  void Kill() {
    std::lock_guard guard(mutex_);
    if (leader_ > 0) ::kill(-leader_, SIGKILL);
  }
  // Before the leader is reaped: then its number may be another's.
  void Forget() {
    std::lock_guard guard(mutex_);
    leader_ = 0;
  }

 private:
  std::mutex mutex_;  // guards leader_
  pid_t leader_;
};

}  // namespace

Status RunHostCommand(const HostCommand& command, const LogSink& log, CancelToken* cancel) {
  if (cancel) RETURN_IF_ERROR(cancel->Check());
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("making a pipe");
  UniqueFd in(ends[0]), out(ends[1]);
  // The tool is the first process of a pid namespace: when that ends, or this thread (which waits here), all
  // of it ends.
  std::vector<std::string> argv = {"setpriv",      "--pdeathsig",  "KILL",  "--",
                                   "unshare",      "--mount",      "--pid", "--fork",
                                   "--kill-child", "--mount-proc", "--"};
  argv.insert(argv.end(), command.argv.begin(), command.argv.end());
  ASSIGN_OR_RETURN(pid_t pid, Spawn(argv, command, out.get()));
  out.reset();
  auto group = std::make_shared<Group>(pid);
  auto stop = cancel ? cancel->OnCancel([group] { group->Kill(); }) : nullptr;
  Utf8Stream text;
  Tail tail(1500);
  auto emit = [&](const std::string& piece) {
    if (piece.empty()) return;
    tail.Add(piece);
    if (log) log(1, piece);
  };
  char buffer[8192];
  for (;;) {
    ssize_t got = ::read(in.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    emit(text.Feed({buffer, static_cast<size_t>(got)}));
  }
  emit(text.Flush());
  siginfo_t ended{};
  while (::waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
  }
  group->Forget();
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (cancel) RETURN_IF_ERROR(cancel->Check());
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return OkStatus();
  std::string how = WIFEXITED(status) ? "exit code " + std::to_string(WEXITSTATUS(status))
                                      : "killed by signal " + std::to_string(WTERMSIG(status));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
    return NotFound("the tool " + command.argv[0] + " is missing on this machine (" + tail.text() + ")");
  return Internal(command.argv[0] + " failed: " + how + "\n" + tail.text());
}

}  // namespace lydian::build
