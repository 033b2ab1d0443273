#include <cstdio>
#include <nlohmann/json.hpp>

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

Status DoLogin(const std::string& state) {
  ASSIGN_OR_RETURN(StatePaths paths, FindState(state));
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
