#include "bin/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "bin/launch.h"
#include "bin/listeners.h"
#include "cli/lock_file.h"

namespace lydian::bin {
namespace {

constexpr auto kQuick = std::chrono::seconds(1);
constexpr int kMaxFirstDeaths = 3;      // of a daemon that never served, before `up` gives up
constexpr int kStopTimeoutMs = 10'000;  // then SIGKILL
constexpr size_t kLogTailLines = 8;

SteadyTime Now() { return SystemClock().Now(); }

// The first restart is at once; then ever later, up to a second.
Millis Backoff(int quick_deaths) {
  return quick_deaths == 0 ? Millis(0) : std::min(Millis(1000), Millis(50 << std::min(quick_deaths - 1, 6)));
}

std::string LogTail(const std::string& path) {
  std::string text = ReadFile(path).value_or("");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  size_t at = text.size();
  for (size_t lines = 0; lines < kLogTailLines && at != std::string::npos && at > 0; ++lines)
    at = text.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? text : text.substr(at + 1);
}

}  // namespace

std::string DescribeExit(int wait_status) {
  if (WIFEXITED(wait_status)) return "exit code " + std::to_string(WEXITSTATUS(wait_status));
  int signal = WTERMSIG(wait_status);
  return "killed by signal " + std::to_string(signal) + " (" + ::strsignal(signal) + ")";
}

Supervisor::Supervisor(SupervisorOptions options) : options_(std::move(options)) {
  for (const char* role : {"spawner", "control", "worker"}) daemons_.emplace_back().role = role;
  const cli::StatePaths& paths = options_.paths;
  sockets_.push_back({"api", "control", "api", "", {}});
  sockets_.push_back({"link", "control", "link", paths.link_socket(), {}});
  sockets_.push_back({"control-admin", "control", "admin", paths.control_admin(), {}});
  sockets_.push_back({"worker-admin", "worker", "admin", paths.worker_admin(), {}});
  sockets_.push_back({"spawner", "spawner", "spawner", paths.spawner_socket(), {}});
}

std::string Supervisor::url() const {
  // Where everything is listened on, this machine's own clients take the loopback.
  auto address = ParseHostPort(address_);
  if (!address.ok()) return "http://" + address_;
  if (address->host == "0.0.0.0") return "http://127.0.0.1:" + std::to_string(address->port);
  if (address->host == "::") return "http://[::1]:" + std::to_string(address->port);
  return "http://" + address_;
}

Status Supervisor::Prepare() {
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return ErrnoStatus("becoming a child subreaper");
  (void)WriteExisting("/proc/self/oom_score_adj", "-900");
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  if (::sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) return ErrnoStatus("blocking signals");
  signals_.reset(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_.valid()) return ErrnoStatus("making a signalfd");
  for (Daemon& daemon : daemons_) RETURN_IF_ERROR(Adopt(daemon));
  for (Socket& socket : sockets_) RETURN_IF_ERROR(OpenSocket(socket));
  ASSIGN_OR_RETURN(address_, LocalAddress(sockets_[0].fd.get()));
  return OkStatus();
}

Status Supervisor::Adopt(Daemon& daemon) {
  ASSIGN_OR_RETURN(auto holder, cli::ReadHolder(options_.paths.lock(daemon.role)));
  if (!holder) return OkStatus();
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, holder->pid, 0)));
  if (!pidfd.valid()) {
    if (errno == ESRCH) return OkStatus();
    return ErrnoStatus("watching " + daemon.role + " (pid " + std::to_string(holder->pid) + ")");
  }
  // The pid may have passed to another in between.
  if (cli::ProcessStartTime(holder->pid) != holder->start_time) return OkStatus();
  daemon.pid = holder->pid;
  daemon.pidfd = std::move(pidfd);
  daemon.adopted = daemon.ready = daemon.was_ready = adopted_any_ = true;
  daemon.started = Now();
  LOG_INFO("adopted a daemon that still runs", {{"daemon", daemon.role}, {"pid", daemon.pid}});
  return OkStatus();
}

// From its owner first; else from the spawner, which keeps all of them.
bool Supervisor::TakeSocket(Socket& socket) {
  for (const auto& [role, name] :
       {std::pair(socket.owner, socket.as), std::pair(std::string("spawner"), socket.name)}) {
    auto daemon =
        std::find_if(daemons_.begin(), daemons_.end(), [&](const Daemon& d) { return d.role == role; });
    if (daemon == daemons_.end() || daemon->pid == 0) continue;
    auto holder = cli::ReadHolder(options_.paths.lock(role));
    if (!holder.ok() || !*holder) continue;
    auto fds = cli::ParseFds((*holder)->fds);
    if (!fds.ok() || !fds->contains(name)) continue;
    auto fd = TakeFromProcess(daemon->pid, (*fds)[name]);
    if (!fd.ok()) {
      LOG_WARN("a socket could not be taken over",
               {{"socket", socket.name}, {"from", role}, {"error", fd.status()}});
      continue;
    }
    auto address = LocalAddress(fd->get());
    if (!address.ok() || (!socket.path.empty() && *address != socket.path)) continue;
    socket.fd = std::move(*fd);
    LOG_INFO("took over a socket", {{"socket", socket.name}, {"from", role}, {"address", *address}});
    return true;
  }
  return false;
}

Status Supervisor::OpenSocket(Socket& socket) {
  if (adopted_any_ && TakeSocket(socket)) return OkStatus();
  for (Daemon& daemon : daemons_) {
    // A daemon that keeps its socket to itself can't go on: nobody could reach both it and its successor.
    if (daemon.role == socket.owner && daemon.pid != 0) RETURN_IF_ERROR(StopDaemon(daemon, kStopTimeoutMs));
  }
  if (!socket.path.empty()) {
    ASSIGN_OR_RETURN(socket.fd, ListenUnix(socket.path));
    return OkStatus();
  }
  ASSIGN_OR_RETURN(HostPort address, ParseHostPort(options_.listen));
  ASSIGN_OR_RETURN(socket.fd, ListenTcp(address));
  return OkStatus();
}

Status Supervisor::StopDaemon(Daemon& daemon, int timeout_ms) {
  LOG_WARN("stopping a daemon that can't be adopted", {{"daemon", daemon.role}, {"pid", daemon.pid}});
  ::kill(daemon.pid, SIGTERM);
  if (!WaitForEnd({&daemon}, timeout_ms)) {
    ::kill(daemon.pid, SIGKILL);
    if (!WaitForEnd({&daemon}, timeout_ms))
      return Internal(daemon.role + " (pid " + std::to_string(daemon.pid) + ") can't be stopped");
  }
  return OkStatus();
}

std::vector<std::string> Supervisor::ArgsFor(const std::string& role) const {
  const cli::StatePaths& paths = options_.paths;
  std::vector<std::string> args{"internal", role,     "--instance", options_.instance, "--url",
                                url(),      "--home", paths.root};  // for who looks at a list of processes
  if (role == "control") {
    args.insert(args.end(), {"--state", kControlState});
  } else {
    args.insert(args.end(), {"--state", paths.worker_dir(), "--link", "unix:" + paths.link_socket(),
                             "--spawner", paths.spawner_socket(), "--init", options_.init_path});
  }
  args.insert(args.end(), options_.daemon_args.begin(), options_.daemon_args.end());
  return args;
}

Status Supervisor::Start(Daemon& daemon) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return ErrnoStatus("making a pipe");
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  LaunchSpec spec;
  spec.role = daemon.role;
  spec.executable = options_.executable;
  spec.args = ArgsFor(daemon.role);
  spec.log_path = options_.paths.log(daemon.role);
  // The spawner's end would be that of all containers; these set their own, and go before anything else.
  spec.oom_score_adj = daemon.role == "spawner" ? -900 : -500;
  spec.fds["ready"] = write_end.get();
  for (const Socket& socket : sockets_) {
    if (socket.owner == daemon.role) {
      spec.fds[socket.as] = socket.fd.get();
    } else if (daemon.role == "spawner") {
      spec.fds[socket.name] = socket.fd.get();  // kept there for a later `up`
    }
  }
  if (daemon.role == "control") {
    spec.uid = options_.control_uid;
    spec.gid = options_.control_gid;
    spec.private_state = options_.paths.control_dir();
  }
  daemon.started = Now();
  ASSIGN_OR_RETURN(daemon.pid, LaunchDaemon(spec));
  daemon.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, daemon.pid, 0)));
  if (!daemon.pidfd.valid()) return ErrnoStatus("watching " + daemon.role);
  daemon.ready_pipe = std::move(read_end);
  daemon.adopted = daemon.ready = false;
  LOG_INFO("started", {{"daemon", daemon.role}, {"pid", daemon.pid}});
  return OkStatus();
}

Status Supervisor::StartDue() {
  for (Daemon& daemon : daemons_) {
    if (daemon.pid != 0 || daemon.restart_at > Now()) continue;
    Status status = Start(daemon);
    if (status.ok()) continue;
    LOG_ERROR("a daemon could not be started", {{"daemon", daemon.role}, {"error", status}});
    if (!announced_ && !adopted_any_) return status;
    OnDeath(daemon, status.message());
  }
  return OkStatus();
}

Status Supervisor::Run() {
  Status status;
  Announce();  // all may have been adopted
  while (!stopping_ && status.ok()) {
    status = StartDue();
    if (status.ok()) status = Turn();
  }
  StopAll();
  return status;
}

int Supervisor::PollTimeout() const {
  SteadyTime next = SteadyTime::max();
  for (const Daemon& daemon : daemons_) {
    if (daemon.pid == 0) next = std::min(next, daemon.restart_at);
  }
  if (next == SteadyTime::max()) return -1;
  auto left = std::chrono::ceil<Millis>(next - Now()).count();
  return static_cast<int>(std::max<int64_t>(left, 0));
}

Status Supervisor::Turn() {
  std::vector<pollfd> fds{{signals_.get(), POLLIN, 0}};
  for (const Daemon& daemon : daemons_) {
    fds.push_back({daemon.pid != 0 && daemon.adopted ? daemon.pidfd.get() : -1, POLLIN, 0});
    fds.push_back({daemon.pid != 0 && daemon.ready_pipe.valid() ? daemon.ready_pipe.get() : -1, POLLIN, 0});
  }
  int count = ::poll(fds.data(), fds.size(), PollTimeout());
  if (count < 0 && errno != EINTR) return ErrnoStatus("waiting for events");
  if (count <= 0) return OkStatus();
  for (size_t i = 0; i < daemons_.size(); ++i) {
    if (fds[2 + 2 * i].revents != 0) OnReady(daemons_[i]);
    if (fds[1 + 2 * i].revents != 0) OnDeath(daemons_[i], "it has ended");
  }
  if (fds[0].revents != 0) OnSignals();
  for (const Daemon& daemon : daemons_) RETURN_IF_ERROR(WhyNot(daemon));
  return OkStatus();
}

void Supervisor::OnReady(Daemon& daemon) {
  char byte;
  bool ready = ::read(daemon.ready_pipe.get(), &byte, 1) == 1;
  daemon.ready_pipe.reset();
  if (!ready) return;  // it has died or given up: its exit says the rest
  daemon.ready = daemon.was_ready = true;
  LOG_INFO("serves", {{"daemon", daemon.role}, {"pid", daemon.pid}});
  Announce();
}

void Supervisor::Announce() {
  bool all = std::all_of(daemons_.begin(), daemons_.end(), [](const Daemon& d) { return d.ready; });
  if (all && !announced_) {
    announced_ = true;
    options_.on_ready();
  }
}

void Supervisor::OnSignals() {
  signalfd_siginfo info;
  while (::read(signals_.get(), &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    if (info.ssi_signo == SIGCHLD) continue;
    if (stopping_) hurried_ = true;
    stopping_ = true;
  }
  Reap();
}

void Supervisor::Reap() {
  while (true) {
    int status = 0;
    pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
    if (pid <= 0) return;
    for (Daemon& daemon : daemons_) {
      if (daemon.pid == pid) OnDeath(daemon, DescribeExit(status));
    }
  }
}

void Supervisor::OnDeath(Daemon& daemon, const std::string& how) {
  daemon.quick_deaths = Now() - daemon.started < kQuick ? daemon.quick_deaths + 1 : 0;
  // The first quick death is restarted at once too.
  Millis delay = Backoff(std::max(daemon.quick_deaths - 1, 0));
  daemon.restart_at = Now() + delay;
  pid_t pid = daemon.pid;
  daemon.pid = 0;
  daemon.pidfd.reset();
  daemon.ready_pipe.reset();
  daemon.ready = false;
  if (stopping_) {
    LOG_INFO("stopped", {{"daemon", daemon.role}, {"pid", pid}, {"how", how}});
    return;
  }
  LOG_WARN("a daemon died and is restarted",
           {{"daemon", daemon.role}, {"pid", pid}, {"how", how}, {"delay_ms", delay.count()}});
  if (announced_)
    options_.say(daemon.role + " (pid " + std::to_string(pid) + ") died, " + how + ": restarting it");
}

Status Supervisor::WhyNot(const Daemon& daemon) const {
  if (announced_ || adopted_any_ || stopping_ || daemon.was_ready || daemon.quick_deaths < kMaxFirstDeaths)
    return OkStatus();
  std::string log = options_.paths.log(daemon.role);
  return FailedPrecondition(daemon.role + " does not start. The end of " + log + ":\n" + LogTail(log));
}

bool Supervisor::WaitForEnd(const std::vector<Daemon*>& daemons, int timeout_ms) {
  SteadyTime until = Now() + Millis(timeout_ms);
  while (true) {
    std::vector<pollfd> fds{{signals_.get(), POLLIN, 0}};
    bool any = false;
    for (Daemon* daemon : daemons) {
      fds.push_back({daemon->pid != 0 ? daemon->pidfd.get() : -1, POLLIN, 0});
      any |= daemon->pid != 0;
    }
    if (!any) return true;
    auto left = std::chrono::ceil<Millis>(until - Now()).count();
    if (left <= 0 || hurried_) return false;
    if (::poll(fds.data(), fds.size(), static_cast<int>(left)) <= 0) continue;
    OnSignals();
    for (size_t i = 0; i < daemons.size(); ++i) {
      if (fds[i + 1].revents != 0 && daemons[i]->pid != 0 && daemons[i]->adopted)
        OnDeath(*daemons[i], "it has ended");
    }
  }
}

void Supervisor::StopAll() {
  stopping_ = true;
  LOG_INFO("stopping");
  Daemon* spawner = &daemons_[0];
  for (const std::vector<Daemon*>& group :
       {std::vector<Daemon*>{&daemons_[1], &daemons_[2]}, std::vector<Daemon*>{spawner}}) {
    for (Daemon* daemon : group) {
      if (daemon->pid != 0) ::kill(daemon->pid, SIGTERM);
    }
    if (WaitForEnd(group, kStopTimeoutMs)) continue;
    for (Daemon* daemon : group) {
      if (daemon->pid == 0) continue;
      LOG_WARN("a daemon did not stop and is killed", {{"daemon", daemon->role}, {"pid", daemon->pid}});
      ::kill(daemon->pid, SIGKILL);
    }
    bool hurried = std::exchange(hurried_, false);
    WaitForEnd(group, kStopTimeoutMs);
    hurried_ = hurried;
  }
  for (const Socket& socket : sockets_) {
    if (!socket.path.empty()) ::unlink(socket.path.c_str());
  }
}

}  // namespace lydian::bin
