#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "bin/daemons.h"
#include "cli/lock_file.h"
#include "rpc/budget.h"
#include "runtime/plan.h"

namespace lydian::bin {
namespace {

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

template <typename T>
Status ParseNumber(const std::string& key, const std::string& text, T* out) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  if (error != std::errc() || end != text.data() + text.size())
    return InvalidArgument(key + " is no number: " + text);
  return OkStatus();
}

// Our own `up` has written these: key and value in turn.
Result<DaemonArgs> ParseArgs(int argc, char** argv) {
  DaemonArgs args;
  if (argc < 1) return InvalidArgument("which daemon?");
  args.role = argv[0];
  std::map<std::string, std::string*> strings{{"--state", &args.state_dir},
                                              {"--instance", &args.instance},
                                              {"--url", &args.url},
                                              {"--link", &args.link_target},
                                              {"--spawner", &args.spawner_socket},
                                              {"--init", &args.init_path},
                                              {"--address-range", &args.address_range}};
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (auto found = strings.find(key); found != strings.end()) {
      *found->second = value;
    } else if (key == "--memory-reserve") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.memory_reserve_bytes));
    } else if (key == "--disk") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.disk_bytes));
    } else if (key == "--pids") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.pids));
    } else if (key == "--lend-host-settings") {
      args.lend_host_settings = value == "1";
    } else if (key == "--step-timeout") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.step_timeout_s));
    } else if (key == "--build-timeout") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.build_timeout_s));
    } else if (key == "--deny-network") {
      args.denied_networks.push_back(value);
    } else if (key == "--deny-private") {
      args.deny_private = value == "1";
    } else if (key == "--queued-inputs") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.queued_inputs));
    } else if (key == "--queued-bytes") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.queued_bytes));
    } else if (key == "--list-stopped") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.list_stopped_s));
    } else if (key == "--app-log-quota") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.app_log_bytes));
    } else if (key == "--log-quota") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.log_bytes));
    } else if (key == "--log-age") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.log_age_s));
    } else if (key == "--keep-files") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.keep_files_s));
    } else if (key == "--keep-images") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.keep_images_s));
    } else if (key == "--keep-apps") {
      RETURN_IF_ERROR(ParseNumber(key, value, &args.keep_apps_s));
    }  // else: of a newer `up`
  }
  if (args.state_dir.empty() || args.instance.empty())
    return InvalidArgument("`lydian internal` is for `lydian up`");
  return args;
}

std::string LockPath(const DaemonArgs& args) { return args.state_dir + "/" + args.role + ".lock"; }

Result<DaemonArgs> Prepare(int argc, char** argv, cli::LockFile* lock) {
  ASSIGN_OR_RETURN(DaemonArgs args, ParseArgs(argc, argv));
  const char* fds = std::getenv("LYDIAN_FDS");
  if (fds == nullptr) return InvalidArgument("LYDIAN_FDS is not set: `lydian internal` is for `lydian up`");
  ASSIGN_OR_RETURN(args.fds, cli::ParseFds(fds));
  ::unsetenv("LYDIAN_FDS");
  for (const auto& [name, fd] : args.fds) {
    if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
      return ErrnoStatus("descriptor " + std::to_string(fd) + " (" + name + ")");
  }
  RETURN_IF_ERROR(InitLogging({.role = args.role}));
  ::prctl(PR_SET_NAME, ("lydian-" + args.role).c_str());
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t signals = StopSignals();
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  cli::Holder self;
  auto listening = args.fds;
  listening.erase("ready");
  self.fds = cli::FormatFds(listening);
  auto taken = cli::LockFile::Take(LockPath(args), self);
  if (!taken.ok()) return std::move(taken).With("another " + args.role + " runs on this state").status();
  *lock = std::move(*taken);
  return args;
}

}  // namespace

int DaemonArgs::fd(const std::string& name) const {
  auto found = fds.find(name);
  return found == fds.end() ? -1 : found->second;
}

void DaemonArgs::NotifyReady() const {
  int ready = fd("ready");
  if (ready < 0) return;
  char byte = 1;
  // `up` may be gone; that changes nothing for us.
  if (::write(ready, &byte, 1) != 1) LOG_DEBUG("nobody waits for this daemon to be ready");
  ::close(ready);
}

void DaemonArgs::WaitForStop() const {
  sigset_t signals = StopSignals();
  int signal = 0;
  while (::sigwait(&signals, &signal) == EINTR) {
  }
  LOG_INFO("stopping", {{"signal", signal}});
}

MemoryShares SharesOfMemory(const DaemonArgs& args) {
  const uint64_t all = runtime::DaemonMemory(args.memory_reserve_bytes, runtime::TotalMemory());
  return {.calls = all / 4, .queued = all / 8, .chunks = all / 10, .results = all / 10};
}

int RunDaemon(int argc, char** argv) {
  cli::LockFile lock;  // for as long as the process lives
  auto args = Prepare(argc, argv, &lock);
  if (!args.ok()) {
    LOG_ERROR("the daemon can't start", {{"error", args.status()}});
    return 1;
  }
  LOG_INFO("starting", {{"pid", ::getpid()}, {"instance", args->instance}});
  rpc::MemoryBudget::OfProcess()->Limit(SharesOfMemory(*args).calls);
  if (args->role == "control") return ControlMain(*args);
  if (args->role == "worker") return WorkerMain(*args);
  if (args->role == "spawner") return SpawnerMain(*args);
  LOG_ERROR("there is no such daemon", {{"role", args->role}});
  return 1;
}

}  // namespace lydian::bin
