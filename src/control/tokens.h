// Workspaces and the tokens that open them. Secrets of tokens are kept as SHA-256 only (they are 130 random
// bits: nothing to guess); all tokens are in memory, so that Authenticate never waits.
//
// Thread-safety: every method from any thread. Create and Revoke block on the disk.
#pragma once

#include <atomic>
#include <map>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "store/database.h"

namespace lydian::control {

struct TokenInfo {
  std::string token_id, workspace_id, workspace, name;
  double created_at = 0, last_used_at = 0;
  bool revoked = false;
};

struct NewToken {
  std::string token_id, token_secret, workspace;
};

class Tokens {
 public:
  Tokens(store::Database* db, Clock* clock) : db_(db), clock_(clock) {}

  // Reads all tokens. On the first start it makes the workspace "main" and a token, written to
  // `first_token_path` (0600, {"token_id", "token_secret", "workspace"}); again whenever no token is left
  // that isn't revoked and the file is gone.
  Status Load(const std::string& first_token_path);

  // UNAUTHENTICATED with the way out when the token is unknown, wrong or revoked.
  Result<TokenInfo> Authenticate(std::string_view token_id, std::string_view secret);
  // Makes the workspace if it is new.
  Result<NewToken> Create(const std::string& workspace, const std::string& name);
  Status Revoke(const std::string& token_id);
  std::vector<TokenInfo> List() const;
  Result<TokenInfo> Get(const std::string& token_id) const;
  // "main" of "ac-...".
  Result<std::string> WorkspaceName(const std::string& workspace_id) const;
  std::vector<std::string> WorkspaceIds() const;
  // Of how many a token isn't revoked. Cheap.
  size_t workspaces_in_use() const { return workspaces_in_use_.load(std::memory_order_relaxed); }
  // Writes when tokens were last used; called now and then and at the end.
  Status Flush();

 private:
  struct Entry {
    TokenInfo info;
    std::string hash;
    bool dirty = false;
  };
  Result<std::string> EnsureWorkspace(const std::string& name);
  void CountLocked();

  store::Database* db_;
  Clock* clock_;
  mutable std::shared_mutex mutex_;  // guards the maps
  std::map<std::string, Entry, std::less<>> tokens_;
  std::map<std::string, std::string> workspaces_;  // id -> name
  std::atomic<size_t> workspaces_in_use_{0};
};

}  // namespace lydian::control
