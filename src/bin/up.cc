#include "bin/up.h"

#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "base/fd.h"
#include "base/log.h"
#include "bin/preflight.h"
#include "bin/supervisor.h"
#include "cli/commands.h"
#include "cli/lock_file.h"
#include "os/cgroup.h"
#include "runtime/plan.h"
#include "runtime/runtime.h"

namespace lydian::bin {
namespace {

constexpr int kDownTimeoutMs = 60'000;

// Where lines for the person go: the terminal, or (detached) a pipe to the process that waits for us there.
class Announcer {
 public:
  explicit Announcer(int pipe) : pipe_(pipe) {}
  void Say(const std::string& text) {
    if (!detached_) (void)WriteAll(pipe_ >= 0 ? pipe_ : 1, text + "\n");
  }
  void Complain(const std::string& text) {
    if (!detached_) (void)WriteAll(pipe_ >= 0 ? pipe_ : 2, "lydian: " + text + "\n");
  }
  // The last word to the waiting process: its exit code.
  void Finish(int code) {
    if (pipe_ < 0) return;
    char end[2] = {'\0', static_cast<char>(code)};
    (void)WriteAll(pipe_, std::string_view(end, 2));
    ::close(pipe_);
    pipe_ = -1;
    detached_ = true;
  }
  bool logging = false;  // to a file: before, a log line would come to the terminal too

 private:
  int pipe_;
  bool detached_ = false;
};

std::string TimeText(double unix_seconds) {
  auto seconds = static_cast<time_t>(unix_seconds);
  struct tm parts {};
  ::localtime_r(&seconds, &parts);
  char text[64];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

Result<passwd> FindUser(const std::string& name) {
  errno = 0;
  if (passwd* found = ::getpwnam(name.c_str())) return *found;
  pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus("starting useradd");
  if (pid == 0) {
    ::execlp("useradd", "useradd", "--system", "--user-group", "--no-create-home", "--home-dir",
             "/nonexistent", "--shell", "/usr/sbin/nologin", name.c_str(), nullptr);
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  if (passwd* found = ::getpwnam(name.c_str())) return *found;
  return FailedPrecondition("the system user " + name +
                            " could not be made (useradd: " + DescribeExit(status) +
                            "); make it by hand: useradd --system --shell /usr/sbin/nologin " + name);
}

// Makes or corrects a folder that is ours; what lies there in the form of a link is refused.
Status OwnFolder(const std::string& path, int mode, uid_t uid, gid_t gid) {
  if (::mkdir(path.c_str(), static_cast<mode_t>(mode)) != 0 && errno != EEXIST)
    return ErrnoStatus("creating folder " + path);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("opening folder " + path);
  if (::fchown(fd.get(), uid, gid) != 0 || ::fchmod(fd.get(), static_cast<mode_t>(mode)) != 0) {
    return ErrnoStatus("setting the owner of " + path);
  }
  return OkStatus();
}

Result<cli::StatePaths> MakeState(const std::string& folder) {
  RETURN_IF_ERROR(MakeDirs(folder));
  ASSIGN_OR_RETURN(cli::StatePaths paths, cli::FindState(folder));
  RETURN_IF_ERROR(OwnFolder(paths.root, 0755, 0, 0));
  RETURN_IF_ERROR(OwnFolder(paths.log_dir(), 0755, 0, 0));
  RETURN_IF_ERROR(OwnFolder(paths.worker_dir(), 0700, 0, 0));
  RETURN_IF_ERROR(WriteFileAtomic(paths.instance(), cli::InstanceName(paths.root) + "\n"));
  return paths;
}

// lydian-init lies beside the binary, in the build tree beside its folder, or where packages put it.
Result<std::string> FindInit() {
  char self[PATH_MAX];
  ssize_t n = ::readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) return ErrnoStatus("finding this program's own file");
  std::string path(self, static_cast<size_t>(n));
  std::string folder = path.substr(0, path.rfind('/'));
  for (const char* place :
       {"/lydian-init", "/../../guest/init/lydian-init", "/../libexec/lydian/lydian-init"}) {
    if (::access((folder + place).c_str(), X_OK) == 0) return folder + place;
  }
  return NotFound("lydian-init, which every container starts with, is not beside " + path);
}

void RaiseFileLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max = std::max<rlim_t>(limit.rlim_max, 1 << 20);
  if (::setrlimit(RLIMIT_NOFILE, &limit) == 0) return;
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

std::string ReadyText(const Supervisor& supervisor, const cli::StatePaths& paths, const UpOptions& options) {
  std::string state = paths.root == cli::kDefaultState ? "" : " --state " + paths.root;
  std::string text = "Lydian is up.\n  API and pages  " + supervisor.url() + "\n  state          " +
                     paths.root + "\n  logs           " + paths.log_dir() +
                     "\n  log in         lydian login" + state + "\n  stop           " +
                     (options.detach ? "lydian down" + state : "Ctrl-C, or lydian down" + state);
  return text;
}

Status AlreadyUp(const cli::Holder& holder) {
  return FailedPrecondition("Lydian is already up: pid " + std::to_string(holder.pid) + " since " +
                            TimeText(holder.since) +
                            (holder.listen.empty() ? "" : ", listening on " + holder.listen));
}

// Memory for this process and all that it starts, apart from the containers': neither can take the other's,
// and what goes wrong in one of ours ends one of ours.
class OwnMemory {
 public:
  OwnMemory() = default;
  ~OwnMemory() {
    if (!group_) return;
    Status status = group_->LeaveAndRemove();
    if (!status.ok() && status.error() != EBUSY) LOG_WARN("a control group stays", {{"error", status}});
  }
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;

  void Enter(const std::string& instance, uint64_t reserve_bytes) {
    const uint64_t bytes = runtime::DaemonMemory(reserve_bytes, runtime::TotalMemory());
    auto group = os::MemoryGroup::Open(runtime::DaemonGroup(instance), bytes);
    Status status = group.status();
    // What is started later is in it from the start.
    if (status.ok() && ::write(group->join_fd(), "0", 1) != 1) status = ErrnoStatus("joining it");
    if (!status.ok()) {
      LOG_WARN("the daemons have no memory of their own: when it runs short, containers may end for them",
               {{"error", status}});
      return;
    }
    group_.emplace(std::move(*group));
    LOG_INFO("memory of the daemons", {{"most", bytes}});
  }

 private:
  std::optional<os::MemoryGroup> group_;
};

Status Supervise(const UpOptions& options, Announcer& announcer) {
  RETURN_IF_ERROR(CheckMachine(options));
  ASSIGN_OR_RETURN(cli::StatePaths paths, MakeState(options.state));
  std::optional<cli::Holder> other;
  auto lock = cli::LockFile::Take(paths.lock("up"), {}, &other);
  if (!lock.ok()) return other ? AlreadyUp(*other) : lock.status();
  RETURN_IF_ERROR(InitLogging({.role = "up", .path = paths.log("up")}));
  announcer.logging = true;
  std::string init_path;
  OwnMemory memory;
  if (options.check_runtime) {
    ASSIGN_OR_RETURN(init_path, FindInit());
    RETURN_IF_ERROR(CheckKernel(options, paths, init_path));
  }
  ASSIGN_OR_RETURN(passwd user, FindUser(options.user));
  RETURN_IF_ERROR(OwnFolder(paths.control_dir(), 0700, user.pw_uid, user.pw_gid));
  RaiseFileLimit();
  memory.Enter(cli::InstanceName(paths.root), options.memory_reserve_bytes);
  // Held open: what is restarted later is this program, whatever has happened to its file.
  UniqueFd executable(::open("/proc/self/exe", O_PATH | O_CLOEXEC));
  if (!executable.valid()) return ErrnoStatus("opening this program's own file");

  SupervisorOptions supervisor_options;
  supervisor_options.paths = paths;
  supervisor_options.instance = cli::InstanceName(paths.root);
  supervisor_options.listen = options.listen;
  supervisor_options.executable = executable.get();
  supervisor_options.init_path = init_path;
  supervisor_options.daemon_args = {"--address-range",
                                    options.address_range,
                                    "--memory-reserve",
                                    std::to_string(options.memory_reserve_bytes),
                                    "--disk",
                                    std::to_string(options.disk_bytes),
                                    "--pids",
                                    std::to_string(options.pids),
                                    "--lend-host-settings",
                                    std::to_string(options.lend_host_settings ? 1 : 0),
                                    "--step-timeout",
                                    std::to_string(options.step_timeout_s),
                                    "--build-timeout",
                                    std::to_string(options.build_timeout_s),
                                    "--queued-inputs",
                                    std::to_string(options.queued_inputs),
                                    "--queued-bytes",
                                    std::to_string(options.queued_bytes),
                                    "--list-stopped",
                                    std::to_string(options.list_stopped_s),
                                    "--app-log-quota",
                                    std::to_string(options.app_log_bytes),
                                    "--log-quota",
                                    std::to_string(options.log_bytes),
                                    "--log-age",
                                    std::to_string(options.log_age_s),
                                    "--keep-files",
                                    std::to_string(options.keep_files_s),
                                    "--keep-images",
                                    std::to_string(options.keep_images_s),
                                    "--keep-apps",
                                    std::to_string(options.keep_apps_s),
                                    "--deny-private",
                                    options.deny_private ? "1" : "0"};
  for (const auto& network : options.denied_networks) {
    supervisor_options.daemon_args.insert(supervisor_options.daemon_args.end(), {"--deny-network", network});
  }
  supervisor_options.control_uid = user.pw_uid;
  supervisor_options.control_gid = user.pw_gid;
  supervisor_options.say = [&](const std::string& line) { announcer.Say(line); };
  Supervisor* running = nullptr;
  supervisor_options.on_ready = [&] {
    announcer.Say(ReadyText(*running, paths, options));
    announcer.Finish(0);
  };
  Supervisor supervisor(std::move(supervisor_options));
  running = &supervisor;
  RETURN_IF_ERROR(supervisor.Prepare());
  cli::Holder self;
  self.listen = supervisor.address();
  self.url = supervisor.url();
  RETURN_IF_ERROR(lock->Update(self));
  if (auto wanted = options.listen; supervisor.address() != wanted && supervisor.adopted()) {
    announcer.Say("Lydian's processes still run from before and listen on " + supervisor.address() + ".");
  }
  return supervisor.Run();
}

int RunAndTell(const UpOptions& options, Announcer& announcer) {
  Status status = Supervise(options, announcer);
  if (!status.ok()) {
    if (announcer.logging) LOG_ERROR("up ends", {{"error", status}});
    announcer.Complain(status.message());
  }
  announcer.Finish(status.ok() ? 0 : 1);
  return status.ok() ? 0 : 1;
}

// Passes on what the detached process says, until it says that it is ready or that it has failed.
int RelayUntilReady(int pipe, pid_t child) {
  std::string text;
  char buffer[4096];
  while (true) {
    ssize_t n = ::read(pipe, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      int status = 0;
      ::waitpid(child, &status, 0);
      std::fprintf(stderr, "lydian: the background process ended before it was ready: %s\n",
                   DescribeExit(status).c_str());
      return 1;
    }
    text.append(buffer, static_cast<size_t>(n));
    size_t end = text.find('\0');
    bool over = end != std::string::npos && end + 1 < text.size();
    int code = over ? text[end + 1] : 0;
    (void)WriteAll(over && code != 0 ? 2 : 1, std::string_view(text).substr(0, end));
    if (over) return code;
    text.erase(0, end == std::string::npos ? text.size() : end);
  }
}

int Detach(const UpOptions& options) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    std::fprintf(stderr, "lydian: %s\n", ErrnoStatus("making a pipe").message().c_str());
    return 1;
  }
  pid_t child = ::fork();
  if (child < 0) {
    std::fprintf(stderr, "lydian: %s\n", ErrnoStatus("starting in the background").message().c_str());
    return 1;
  }
  if (child != 0) {
    ::close(ends[1]);
    return RelayUntilReady(ends[0], child);
  }
  ::close(ends[0]);
  ::setsid();
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd : {0, 1, 2}) ::dup2(null.get(), fd);
  if (::chdir("/") != 0) return 1;
  Announcer announcer(ends[1]);
  return RunAndTell(options, announcer);
}

// Control groups and networks of daemons that were killed before they could put them away.
void RemoveLeftovers(const cli::StatePaths& paths) {
  auto instance = ReadFile(paths.instance(), 100);
  if (!instance.ok()) return;  // it never was up
  auto lock = cli::LockFile::Take(paths.lock("up"), {});
  if (!lock.ok()) return;  // it is starting again
  runtime::RuntimeOptions options;
  options.instance = instance->substr(0, instance->find('\n'));
  options.state_dir = paths.worker_dir();
  if (Status removed = runtime::RemoveInstance(options); !removed.ok())
    std::fprintf(stderr, "lydian: left behind: %s\n", removed.message().c_str());
}

// The daemons without `up`, which was killed.
int StopOrphans(const cli::StatePaths& paths) {
  bool any = false;
  for (const char* role : {"control", "worker", "spawner"}) {
    auto holder = cli::ReadHolder(paths.lock(role));
    if (!holder.ok() || !*holder) continue;
    any = true;
    UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, (*holder)->pid, 0)));
    if (!pidfd.valid()) continue;
    ::kill((*holder)->pid, SIGTERM);
    pollfd wait{pidfd.get(), POLLIN, 0};
    if (::poll(&wait, 1, kDownTimeoutMs / 4) == 0) {
      ::kill((*holder)->pid, SIGKILL);
      ::poll(&wait, 1, kDownTimeoutMs / 4);
    }
  }
  RemoveLeftovers(paths);
  std::printf(any ? "Lydian is stopped.\n" : "Lydian is not up.\n");
  return 0;
}

}  // namespace

int RunUp(const UpOptions& options) {
  ::signal(SIGPIPE, SIG_IGN);
  ::umask(0022);  // whatever the caller's is
  UpOptions absolute = options;
  if (char* folder = options.state.starts_with('/') ? nullptr : ::getcwd(nullptr, 0); folder != nullptr) {
    absolute.state = std::string(folder) + "/" + options.state;
    std::free(folder);
  }
  if (options.detach) return Detach(absolute);
  Announcer announcer(-1);
  return RunAndTell(absolute, announcer);
}

int RunDown(const std::string& state) {
  auto paths = cli::FindState(state);
  if (!paths.ok()) {
    std::fprintf(stderr, "lydian: %s\n", paths.status().message().c_str());
    return 1;
  }
  auto holder = cli::ReadHolder(paths->lock("up"));
  if (!holder.ok()) {
    std::fprintf(stderr, "lydian: %s\n", holder.status().message().c_str());
    return 1;
  }
  if (!*holder) return StopOrphans(*paths);
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, (*holder)->pid, 0)));
  if (!pidfd.valid() && errno == ESRCH) return StopOrphans(*paths);
  if (!pidfd.valid() || ::kill((*holder)->pid, SIGTERM) != 0) {
    std::fprintf(stderr, "lydian: %s\n",
                 ErrnoStatus("stopping process " + std::to_string((*holder)->pid)).message().c_str());
    return 1;
  }
  pollfd wait{pidfd.get(), POLLIN, 0};
  if (::poll(&wait, 1, kDownTimeoutMs) != 1) {
    std::fprintf(stderr, "lydian: process %d does not stop; its log is %s\n", (*holder)->pid,
                 paths->log("up").c_str());
    return 1;
  }
  std::printf("Lydian is stopped.\n");
  return 0;
}

}  // namespace lydian::bin
