// The heart of `lydian up`: owns the listening sockets, starts control, worker and spawner, restarts what
// dies, adopts what an earlier `up` that was killed has left running, and stops everything.
//
// Not thread-safe, in a process with one thread, which calls no gRPC. It is a child subreaper and reaps
// strangers. Errors: a status for the person who called `lydian up`.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/status.h"
#include "cli/state.h"

namespace lydian::bin {

struct SupervisorOptions {
  cli::StatePaths paths;
  std::string instance;
  std::string listen;   // HOST:PORT for a new socket
  int executable = -1;  // what daemons execute
  std::string init_path;
  std::vector<std::string> daemon_args;  // for every daemon: "--pids", "4096", ...
  uid_t control_uid = 0;
  gid_t control_gid = 0;
  std::function<void(const std::string&)> say;  // one line for the person at the terminal
  std::function<void()> on_ready;               // all three serve; once
};

class Supervisor {
 public:
  explicit Supervisor(SupervisorOptions options);

  // Finds daemons that still run and takes their listening sockets; opens those that are missing.
  Status Prepare();
  // "127.0.0.1:7070": after Prepare.
  const std::string& address() const { return address_; }
  std::string url() const;
  // Whether daemons of an earlier `up` were found running.
  bool adopted() const { return adopted_any_; }
  // Until SIGTERM, SIGINT or SIGHUP; then stops all daemons. An error when a daemon can't be started at all.
  Status Run();

 private:
  struct Daemon {
    std::string role;
    pid_t pid = 0;  // 0: does not run
    UniqueFd pidfd;
    bool adopted = false;  // not our child: its pidfd tells that it has ended
    bool ready = false;
    bool was_ready = false;  // ever
    UniqueFd ready_pipe;     // a byte comes when it serves
    SteadyTime started;
    SteadyTime restart_at;
    int quick_deaths = 0;  // in a row, within a second of their start
  };
  struct Socket {
    std::string name;   // "api", "control-admin"
    std::string owner;  // the role that serves it
    std::string as;     // its name there: "admin"
    std::string path;   // of a unix socket
    UniqueFd fd;
  };

  Status Adopt(Daemon& daemon);
  Status OpenSocket(Socket& socket);
  bool TakeSocket(Socket& socket);
  Status StopDaemon(Daemon& daemon, int timeout_ms);
  Status Start(Daemon& daemon);
  Status StartDue();
  Status Turn();
  void OnSignals();
  void Reap();
  void OnReady(Daemon& daemon);
  void Announce();  // once, when all serve
  void OnDeath(Daemon& daemon, const std::string& how);
  Status WhyNot(const Daemon& daemon) const;
  void StopAll();
  bool WaitForEnd(const std::vector<Daemon*>& daemons, int timeout_ms);
  int PollTimeout() const;
  std::vector<std::string> ArgsFor(const std::string& role) const;

  SupervisorOptions options_;
  std::vector<Daemon> daemons_;
  std::vector<Socket> sockets_;
  std::string address_;
  UniqueFd signals_;
  bool adopted_any_ = false, announced_ = false, stopping_ = false, hurried_ = false;
};

// "exit code 3", "killed by signal 9 (Killed)".
std::string DescribeExit(int wait_status);

}  // namespace lydian::bin
