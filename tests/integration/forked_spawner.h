// The real spawner over the real runtime, as a child of a test program: to be started before any thread.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/fd.h"
#include "base/log.h"
#include "runtime/runtime.h"
#include "spawner/server.h"

namespace lydian::testing {

class ForkedSpawner {
 public:
  ForkedSpawner(const std::string& state_dir, const std::string& instance, const std::string& init_path,
                const std::string& range)
      : socket_(state_dir + "/spawner.sock") {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_.c_str());
    UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(listener.get(), 16) != 0)
      return;
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::_exit(Serve(state_dir, instance, init_path, range, std::move(listener)));
  }
  ~ForkedSpawner() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  const std::string& socket() const { return socket_; }

 private:
  static int Serve(const std::string& state_dir, const std::string& instance, const std::string& init_path,
                   const std::string& range, UniqueFd listener) {
    runtime::RuntimeOptions options;
    options.state_dir = state_dir;
    options.instance = instance;
    options.init_path = init_path;
    options.address_range = range;
    options.network_pool = 1;
    options.quota_pool = 0;
    auto runtime = runtime::Runtime::Create(std::move(options));
    if (!runtime.ok()) {
      std::fprintf(stderr, "the test's runtime: %s\n", runtime.status().ToString().c_str());
      return 1;
    }
    (void)(*runtime)->CleanLeftovers();
    auto server = spawner::Server::Create(
        {.listener = std::move(listener), .instance = instance, .peer_uid = ::geteuid()},
        std::move(*runtime));
    if (!server.ok() || !(*server)->Run().ok()) return 1;
    return 0;
  }

  std::string socket_;
  pid_t pid_ = -1;
};

}  // namespace lydian::testing
