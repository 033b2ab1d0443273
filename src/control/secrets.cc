#include "control/secrets.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "base/log.h"

namespace lydian::control {

namespace {

constexpr size_t kMostMissing = 1000;    // bytes of names in an error
constexpr size_t kMaxBytes = 256 << 10;  // of one secret; an environment must fit into exec's limits

constexpr char kColumns[] =
    "SELECT secret.id, secret.workspace_id, secret.environment_id, environment.name, secret.name, "
    "secret.created_by, secret.keys, "
    "secret.digest, secret.created_at, secret.last_used_at FROM secret JOIN environment ON environment.id = "
    "secret.environment_id ";

// Text for SQL and the seal. Keys and values may be any valid UTF-8; the caller has checked (protobuf strings
// are).
std::string ToJson(const EnvMap& values) { return nlohmann::json(values).dump(); }

std::string KeysJson(const EnvMap& values) {
  nlohmann::json keys = nlohmann::json::array();
  for (const auto& [key, value] : values) keys.push_back(key);
  return keys.dump();
}

Status CheckValues(const EnvMap& values) {
  size_t bytes = 0;
  for (const auto& [key, value] : values) {
    if (key.empty() || key.find('=') != std::string::npos || key.find('\0') != std::string::npos) {
      return InvalidArgument("'" + key.substr(0, 80) + "' can't name an environment variable");
    }
    if (value.find('\0') != std::string::npos)
      return InvalidArgument("the value of " + key + " holds a zero byte");
    bytes += key.size() + value.size() + 2;
  }
  if (bytes > kMaxBytes)
    return InvalidArgument("a secret may hold 256 KiB; this one has " + std::to_string(bytes) + " bytes");
  return OkStatus();
}

Status CheckName(const std::string& name) {
  bool good = !name.empty() && name.size() <= 64;
  for (char c : name)
    good = good && (isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.');
  if (good) return OkStatus();
  return InvalidArgument("'" + name.substr(0, 80) +
                         "' can't name a secret: 1 to 64 letters, digits, '-', '_' and '.'");
}

Secret FromRow(store::Row& row) {
  Secret secret;
  secret.id = row.Text(0), secret.workspace_id = row.Text(1), secret.environment_id = row.Text(2),
  secret.environment = row.Text(3);
  secret.name = row.Text(4), secret.created_by = row.Text(5), secret.digest = row.Text(7);
  secret.created_at = row.Real(8), secret.last_used_at = row.Real(9);
  auto keys = nlohmann::json::parse(row.Text(6), nullptr, false);
  if (keys.is_array()) {
    for (const auto& key : keys) {
      if (key.is_string()) secret.keys.push_back(key.get<std::string>());
    }
  }
  return secret;
}

}  // namespace

Result<std::vector<Secret>> Secrets::Select(std::string_view where, const store::Params& params) {
  std::vector<Secret> found;
  RETURN_IF_ERROR(db_->ForEach(kColumns + std::string(where), params, [&](store::Row& row) {
    found.push_back(FromRow(row));
    return OkStatus();
  }));
  return found;
}

Result<Secret> Secrets::Insert(const Scope& scope, const std::string& environment_id, const std::string* name,
                               const std::string& app_id, const EnvMap& values) {
  RETURN_IF_ERROR(CheckValues(values));
  std::string id = NewId("st"), json = ToJson(values);
  ASSIGN_OR_RETURN(std::string sealed, key_->Seal(json, id));
  store::Param name_param = nullptr;
  if (name != nullptr) name_param = *name;
  RETURN_IF_ERROR(
      db_->Execute("INSERT INTO secret (id, workspace_id, environment_id, name, app_id, keys, sealed, "
                   "digest, created_at, created_by) "
                   "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                   {id, scope.workspace_id, environment_id, name_param, app_id, KeysJson(values),
                    store::Blob{sealed}, key_->Mac("secret", json), clock_->UnixSeconds(), scope.who}));
  return Get(scope, id);
}

Result<Secret> Secrets::CreateNamed(const Scope& scope, const std::string& environment_id,
                                    const std::string& name, const EnvMap& values, Mode mode) {
  RETURN_IF_ERROR(CheckName(name));
  ASSIGN_OR_RETURN(auto found,
                   Select("WHERE secret.environment_id = ? AND secret.name = ?", {environment_id, name}));
  if (found.empty()) return Insert(scope, environment_id, &name, "", values);
  if (mode == Mode::kIfMissing) return found[0];
  if (mode == Mode::kFailIfExists) {
    return AlreadyExists("the secret '" + name + "' exists already in the environment '" +
                         found[0].environment + "'; overwrite it with --force");
  }
  RETURN_IF_ERROR(CheckValues(values));
  RETURN_IF_ERROR(Store(found[0].id, values));
  return Get(scope, found[0].id);
}

Result<Secret> Secrets::CreateAnonymous(const Scope& scope, const std::string& environment_id,
                                        const std::string& app_id, const EnvMap& values) {
  return Insert(scope, environment_id, nullptr, app_id, values);
}

Result<Secret> Secrets::Find(const Scope& scope, const std::string& environment_id,
                             const std::string& environment, const std::string& name,
                             const std::vector<std::string>& required_keys) {
  ASSIGN_OR_RETURN(auto found,
                   Select("WHERE secret.environment_id = ? AND secret.name = ?", {environment_id, name}));
  if (found.empty() || !scope.Sees(found[0].workspace_id, environment_id)) {
    return NotFound("Secret '" + name.substr(0, 80) + "' not found in environment '" + environment +
                    "'; `modal secret create` makes one");
  }
  std::string missing;
  for (const auto& key : required_keys) {
    if (std::find(found[0].keys.begin(), found[0].keys.end(), key) != found[0].keys.end()) continue;
    if (missing.size() > kMostMissing) break;
    missing += (missing.empty() ? "" : ", ") + key.substr(0, 80);
  }
  if (missing.empty()) return found[0];
  return FailedPrecondition("Secret is missing key(s): " + missing + " ('" + name + "' in environment '" +
                            environment + "')");
}

Result<Secret> Secrets::Get(const Scope& scope, const std::string& secret_id) {
  ASSIGN_OR_RETURN(auto found, Select("WHERE secret.id = ?", {secret_id}));
  if (found.empty() || !scope.Sees(found[0].workspace_id, found[0].environment_id))
    return NoSuch("secret", "st", secret_id);
  return found[0];
}

Result<std::vector<Secret>> Secrets::List(const std::string& environment_id, double before, int most) {
  if (before <= 0) before = clock_->UnixSeconds() + 1;
  if (most <= 0 || most > 100) most = 100;
  return Select(
      "WHERE secret.environment_id = ? AND secret.name IS NOT NULL AND secret.created_at < ? "
      "ORDER BY secret.created_at DESC LIMIT ?",
      {environment_id, before, most});
}

Status Secrets::Delete(const Scope& scope, const std::string& secret_id) {
  ASSIGN_OR_RETURN(Secret secret, Get(scope, secret_id));
  return db_->Execute("DELETE FROM secret WHERE id = ?", {secret.id});
}

Status Secrets::Update(const Scope& scope, const std::string& secret_id,
                       const std::vector<std::pair<std::string, std::optional<std::string>>>& changes) {
  ASSIGN_OR_RETURN(Secret secret, Get(scope, secret_id));
  ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT sealed FROM secret WHERE id = ?", {secret.id}));
  ASSIGN_OR_RETURN(EnvMap values, Unseal(secret.id, rows[0].Text(0)));
  for (const auto& [key, value] : changes) {
    if (value) {
      values[key] = *value;
    } else {
      values.erase(key);
    }
  }
  RETURN_IF_ERROR(CheckValues(values));
  return Store(secret.id, values);
}

void Secrets::DropOfApp(const std::string& app_id) {
  if (app_id.empty()) return;
  Status dropped = db_->Execute("DELETE FROM secret WHERE app_id = ? AND name IS NULL", {app_id});
  if (!dropped.ok())
    LOG_WARN("could not drop the secrets of an app", {{"app_id", app_id}, {"error", dropped}});
}

Status Secrets::Store(const std::string& id, const EnvMap& values) {
  std::string json = ToJson(values);
  ASSIGN_OR_RETURN(std::string sealed, key_->Seal(json, id));
  return db_->Execute("UPDATE secret SET sealed = ?, keys = ?, digest = ? WHERE id = ?",
                      {store::Blob{sealed}, KeysJson(values), key_->Mac("secret", json), id});
}

Result<EnvMap> Secrets::Unseal(const std::string& id, const std::string& sealed) {
  ASSIGN_OR_RETURN(std::string plain, key_->Open(sealed, id).With("secret " + id));
  auto json = nlohmann::json::parse(plain, nullptr, false);
  if (!json.is_object()) return DataLoss("the secret " + id + " is damaged");
  EnvMap values;
  for (const auto& [key, value] : json.items()) {
    if (value.is_string()) values[key] = value.get<std::string>();
  }
  return values;
}

Result<EnvMap> Secrets::Values(const std::vector<std::string>& secret_ids) {
  EnvMap merged;
  for (const auto& id : secret_ids) {
    ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT sealed FROM secret WHERE id = ?", {id}));
    if (rows.empty()) return FailedPrecondition("the secret " + id + " was deleted");
    ASSIGN_OR_RETURN(EnvMap values, Unseal(id, rows[0].Text(0)));
    for (auto& [key, value] : values) merged[key] = std::move(value);
    RETURN_IF_ERROR(
        db_->Execute("UPDATE secret SET last_used_at = ? WHERE id = ?", {clock_->UnixSeconds(), id}));
  }
  return merged;
}

}  // namespace lydian::control
