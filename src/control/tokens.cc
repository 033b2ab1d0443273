#include "control/tokens.h"

#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"

namespace lydian::control {

namespace {

constexpr double kUseGrain = 60;  // seconds: "last used" isn't kept finer than that
constexpr char kMend[] =
    "; run `lydian login` on this machine, or `lydian token create` and `modal token set`";

bool GoodName(const std::string& name) {
  if (name.empty() || name.size() > 64) return false;
  for (char c : name) {
    if (!isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') return false;
  }
  return true;
}

}  // namespace

Status Tokens::Load(const std::string& first_token_path) {
  bool alive = false;
  {
    std::unique_lock lock(mutex_);
    ASSIGN_OR_RETURN(auto workspaces, db_->Query("SELECT id, name FROM workspace"));
    for (auto& row : workspaces) workspaces_[row.Text(0)] = row.Text(1);
    ASSIGN_OR_RETURN(
        auto rows,
        db_->Query(
            "SELECT id, workspace_id, name, secret_hash, created_at, revoked, last_used_at FROM token"));
    for (auto& row : rows) {
      Entry entry;
      entry.info = {row.Text(0), row.Text(1), workspaces_[row.Text(1)], row.Text(2),
                    row.Real(4), row.Real(6), row.Int(5) != 0};
      entry.hash = row.Text(3);
      alive = alive || !entry.info.revoked;
      tokens_[row.Text(0)] = std::move(entry);
    }
    CountLocked();
  }
  if (alive || (!tokens_.empty() && Exists(first_token_path))) return OkStatus();
  ASSIGN_OR_RETURN(NewToken token, Create("main", "first token"));
  nlohmann::json json = {
      {"token_id", token.token_id}, {"token_secret", token.token_secret}, {"workspace", token.workspace}};
  RETURN_IF_ERROR(
      WriteFileAtomic(first_token_path, json.dump() + "\n", 0600, /*durable=*/true).With("the first token"));
  LOG_INFO("made the first token", {{"token_id", token.token_id}, {"workspace", token.workspace}});
  return OkStatus();
}

Result<TokenInfo> Tokens::Authenticate(std::string_view token_id, std::string_view secret) {
  if (token_id.empty() || secret.empty())
    return Unauthenticated(std::string("this call carries no token") + kMend);
  std::string hash = Sha256Hex(secret);
  double now = clock_->UnixSeconds();
  TokenInfo info;
  bool note = false;
  {
    std::shared_lock lock(mutex_);
    auto it = tokens_.find(token_id);
    // One text for both: a guesser must not learn which ids exist.
    if (it == tokens_.end() || !ConstantTimeEqual(it->second.hash, hash)) {
      return Unauthenticated("the token " + std::string(token_id.substr(0, 40)) + " is not known here" +
                             kMend);
    }
    if (it->second.info.revoked) {
      return Unauthenticated("the token " + std::string(token_id) + " was revoked" + kMend);
    }
    info = it->second.info;
    note = now - info.last_used_at > kUseGrain;
  }
  if (note) {
    std::unique_lock lock(mutex_);
    Entry& entry = tokens_.find(token_id)->second;
    entry.info.last_used_at = now;
    entry.dirty = true;
  }
  return info;
}

Result<std::string> Tokens::EnsureWorkspace(const std::string& name) {
  if (!GoodName(name)) {
    return InvalidArgument("'" + name.substr(0, 80) +
                           "' can't name a workspace: 1 to 64 letters, digits, '-', '_' and '.'");
  }
  std::string id = NewId("ac");
  double now = clock_->UnixSeconds();
  RETURN_IF_ERROR(db_->Transaction([&](store::Session& session) -> Status {
    ASSIGN_OR_RETURN(auto rows, session.Query("SELECT id FROM workspace WHERE name = ?", {name}));
    if (!rows.empty()) {
      id = rows[0].Text(0);
      return OkStatus();
    }
    RETURN_IF_ERROR(
        session.Execute("INSERT INTO workspace (id, name, created_at) VALUES (?, ?, ?)", {id, name, now}));
    return session.Execute(
        "INSERT INTO environment (id, workspace_id, name, webhook_suffix, builder_version, is_default, "
        "created_at) "
        "VALUES (?, ?, 'main', '', '2025.06', 1, ?)",
        {NewId("en"), id, now});
  }));
  std::unique_lock lock(mutex_);
  workspaces_[id] = name;
  return id;
}

Result<NewToken> Tokens::Create(const std::string& workspace, const std::string& name) {
  std::string workspace_name = workspace.empty() ? "main" : workspace;
  ASSIGN_OR_RETURN(std::string workspace_id, EnsureWorkspace(workspace_name));
  std::string token_id = NewId("ak"), secret = NewId("as");
  Entry entry;
  entry.info = {token_id, workspace_id, workspace_name, name.substr(0, 200), clock_->UnixSeconds(), 0, false};
  entry.hash = Sha256Hex(secret);
  RETURN_IF_ERROR(db_->Execute(
      "INSERT INTO token (id, workspace_id, name, secret_hash, created_at) VALUES (?, ?, ?, ?, ?)",
      {token_id, workspace_id, entry.info.name, entry.hash, entry.info.created_at}));
  RETURN_IF_ERROR(db_->Sync());
  std::unique_lock lock(mutex_);
  tokens_[token_id] = std::move(entry);
  CountLocked();
  return NewToken{token_id, secret, workspace_name};
}

Status Tokens::Revoke(const std::string& token_id) {
  ASSIGN_OR_RETURN(int64_t changed, db_->Change("UPDATE token SET revoked = 1 WHERE id = ?", {token_id}));
  if (changed == 0)
    return NotFound("no token " + token_id.substr(0, 80) + "; `lydian token list` shows them");
  {
    std::unique_lock lock(mutex_);
    tokens_[token_id].info.revoked = true;
    CountLocked();
  }
  return db_->Sync();
}

void Tokens::CountLocked() {
  std::set<std::string_view> workspaces;
  for (const auto& [id, entry] : tokens_) {
    if (!entry.info.revoked) workspaces.insert(entry.info.workspace_id);
  }
  workspaces_in_use_ = workspaces.size();
}

std::vector<TokenInfo> Tokens::List() const {
  std::shared_lock lock(mutex_);
  std::vector<TokenInfo> all;
  for (const auto& [id, entry] : tokens_) all.push_back(entry.info);
  return all;
}

Result<TokenInfo> Tokens::Get(const std::string& token_id) const {
  std::shared_lock lock(mutex_);
  auto it = tokens_.find(token_id);
  if (it == tokens_.end()) return NotFound("no token " + token_id);
  return it->second.info;
}

Result<std::string> Tokens::WorkspaceName(const std::string& workspace_id) const {
  std::shared_lock lock(mutex_);
  auto it = workspaces_.find(workspace_id);
  if (it == workspaces_.end()) return NotFound("no workspace " + workspace_id);
  return it->second;
}

std::vector<std::string> Tokens::WorkspaceIds() const {
  std::shared_lock lock(mutex_);
  std::vector<std::string> ids;
  for (const auto& [id, name] : workspaces_) ids.push_back(id);
  return ids;
}

Status Tokens::Flush() {
  std::vector<TokenInfo> used;
  {
    std::unique_lock lock(mutex_);
    for (auto& [id, entry] : tokens_) {
      if (entry.dirty) used.push_back(entry.info);
      entry.dirty = false;
    }
  }
  for (const auto& info : used) {
    RETURN_IF_ERROR(
        db_->Execute("UPDATE token SET last_used_at = ? WHERE id = ?", {info.last_used_at, info.token_id}));
  }
  return OkStatus();
}

}  // namespace lydian::control
