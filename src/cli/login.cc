#include <poll.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/fd.h"
#include "cli/commands.h"
#include "cli/lock_file.h"
#include "cli/profile.h"
#include "cli/state.h"
#include "cli/verbs.h"

namespace lydian::cli {
namespace {

Result<Profile> ReadFirstToken(const StatePaths& paths) {
  auto text = ReadFile(paths.first_token(), 1 << 20);
  if (!text.ok()) {
    if (text.status().code() == Code::kPermissionDenied)
      return PermissionDenied("`lydian login` reads the first token, and needs to be run as root");
    if (text.status().code() == Code::kNotFound)
      return NotFound("there is no token yet: start Lydian first, with `lydian up`");
    return text.status();
  }
  auto json = nlohmann::json::parse(*text, nullptr, false);
  auto field = [&](const char* name) {
    return json.is_object() && json.contains(name) && json[name].is_string() ? json[name].get<std::string>()
                                                                             : std::string();
  };
  Profile profile{field("url"), field("token_id"), field("token_secret")};
  if (profile.token_id.empty() || profile.token_secret.empty())
    return DataLoss(paths.first_token() + " holds no token");
  return profile;
}

constexpr Millis kFirstStart{60'000};

// While `up` is making the first token: waits for it, for a minute at most. Returns when it is there, when
// there is no `up`, or when that has ended; what is missing then, the reader says.
Status AwaitFirstToken(const StatePaths& paths) {
  if (Exists(paths.first_token())) return OkStatus();
  ASSIGN_OR_RETURN(auto up, ReadHolder(paths.lock("up")));
  if (!up) return OkStatus();
  UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, up->pid, 0)));
  if (!process.valid()) return OkStatus();
  UniqueFd changes(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!changes.valid()) return ErrnoStatus("waiting for " + paths.first_token());
  std::fprintf(stderr, "Lydian is starting for the first time; waiting for its token ...\n");
  const SteadyTime until = std::chrono::steady_clock::now() + kFirstStart;
  while (true) {
    // Watched before it is looked for; its folder may only be there by now.
    for (const std::string& folder : {paths.root, paths.control_dir()})
      (void)::inotify_add_watch(changes.get(), folder.c_str(), IN_CREATE | IN_MOVED_TO);
    if (Exists(paths.first_token())) return OkStatus();
    const auto left = std::chrono::ceil<Millis>(until - std::chrono::steady_clock::now()).count();
    if (left <= 0) {
      return Unavailable("Lydian has made no token within " + std::to_string(kFirstStart.count() / 1000) +
                         " s of waiting; see " + paths.log("control"));
    }
    pollfd fds[] = {{changes.get(), POLLIN, 0}, {process.get(), POLLIN, 0}};
    if (::poll(fds, 2, static_cast<int>(left)) < 0 && errno != EINTR)
      return ErrnoStatus("waiting for " + paths.first_token());
    if (fds[1].revents != 0) return OkStatus();
    char events[4096];
    while (::read(changes.get(), events, sizeof events) > 0) {
    }
  }
}

Status DoLogin(const std::string& state) {
  ASSIGN_OR_RETURN(StatePaths paths, FindState(state));
  RETURN_IF_ERROR(AwaitFirstToken(paths));
  ASSIGN_OR_RETURN(Profile profile, ReadFirstToken(paths));
  // Where it listens now goes before where it did at its first start.
  auto up = ReadHolder(paths.lock("up"));
  if (up.ok() && *up && !(*up)->url.empty()) profile.server_url = (*up)->url;
  if (profile.server_url.empty()) return FailedPrecondition("Lydian is not up: start it with `lydian up`");
  std::string file = ClientConfigPath();
  ASSIGN_OR_RETURN(bool active, WriteProfile(file, profile));
  std::printf("Profile lydian (%s) is in %s.\n", profile.server_url.c_str(), file.c_str());
  if (active) {
    std::printf("It is active: `modal run hello.py` runs here.\n");
  } else {
    std::printf("Another profile stays active. For this one:\n  export MODAL_PROFILE=lydian\n");
  }
  return OkStatus();
}

}  // namespace

int Login(const std::string& state) {
  Status status = DoLogin(state);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace lydian::cli
