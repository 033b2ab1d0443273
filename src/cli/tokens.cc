#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "cli/admin_client.h"
#include "cli/commands.h"
#include "cli/verbs.h"
#include "lydian/admin.pb.h"

namespace lydian::cli {
namespace {

Result<AdminClient> Control(const std::string& state) {
  ASSIGN_OR_RETURN(StatePaths paths, FindState(state));
  return AdminClient::Connect(paths, kControlAdmin);
}

std::string Day(double unix_seconds) {
  if (unix_seconds <= 0) return "never";
  auto seconds = static_cast<time_t>(unix_seconds);
  struct tm parts {};
  ::localtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", &parts);
  return text;
}

}  // namespace

int TokenCreate(const std::string& state, const std::string& workspace, const std::string& name, bool json) {
  auto client = Control(state);
  if (!client.ok()) return Fail(client.status());
  TokenCreateRequest request;
  request.set_workspace(workspace);
  request.set_name(name);
  auto made = client->Call<TokenCreateRequest, TokenCreateResponse>("TokenCreate", request);
  if (!made.ok()) return Fail(made.status());
  if (json) {
    nlohmann::ordered_json out{{"token_id", made->token_id()},
                               {"token_secret", made->token_secret()},
                               {"workspace", made->workspace()}};
    std::printf("%s\n", out.dump().c_str());
  } else {
    std::printf("token id      %s\ntoken secret  %s\nworkspace     %s\nThe secret is shown only now.\n",
                made->token_id().c_str(), made->token_secret().c_str(), made->workspace().c_str());
  }
  return kExitOk;
}

int TokenList(const std::string& state, bool json) {
  auto client = Control(state);
  if (!client.ok()) return Fail(client.status());
  auto list = client->Call<TokenListRequest, TokenListResponse>("TokenList", {});
  if (!list.ok()) return Fail(list.status());
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  if (!json)
    std::printf("%-28s %-16s %-20s %-17s %-17s %s\n", "TOKEN", "WORKSPACE", "NAME", "MADE", "LAST USED", "");
  for (const TokenEntry& token : list->tokens()) {
    if (json) {
      out.push_back({{"token_id", token.token_id()},
                     {"workspace", token.workspace()},
                     {"name", token.name()},
                     {"created_at", token.created_at()},
                     {"last_used_at", token.last_used_at()},
                     {"revoked", token.revoked()}});
    } else {
      std::printf("%-28s %-16s %-20s %-17s %-17s %s\n", token.token_id().c_str(), token.workspace().c_str(),
                  token.name().c_str(), Day(token.created_at()).c_str(), Day(token.last_used_at()).c_str(),
                  token.revoked() ? "revoked" : "");
    }
  }
  if (json) std::printf("%s\n", nlohmann::ordered_json{{"tokens", out}}.dump().c_str());
  return kExitOk;
}

int TokenRevoke(const std::string& state, const std::string& token_id, bool json) {
  auto client = Control(state);
  if (!client.ok()) return Fail(client.status());
  TokenRevokeRequest request;
  request.set_token_id(token_id);
  auto done = client->Call<TokenRevokeRequest, TokenRevokeResponse>("TokenRevoke", request);
  if (!done.ok()) return Fail(done.status());
  if (json) {
    std::printf("%s\n", nlohmann::json{{"token_id", token_id}, {"revoked", true}}.dump().c_str());
  } else {
    std::printf("Token %s is revoked.\n", token_id.c_str());
  }
  return kExitOk;
}

}  // namespace lydian::cli
