#include "control/environments.h"

#include "base/ids.h"

namespace lydian::control {

namespace {

constexpr char kBuilderVersion[] = "2025.06";  // of new environments

Status CheckName(const std::string& name) {
  bool good = !name.empty() && name.size() <= 64 && name.rfind("en-", 0) != 0;
  for (char c : name)
    good = good && (isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.');
  if (good) return OkStatus();
  return InvalidArgument(
      "'" + name.substr(0, 80) +
      "' can't name an environment: 1 to 64 letters, digits, '-', '_' and '.', not beginning with \"en-\"");
}

// Those that a client of today knows; which of them a build can use is the image service's business.
Status CheckBuilderVersion(const std::string& version) {
  for (const char* known : {"2023.12", "2024.04", "2024.10", "2025.06", "2026.10", "PREVIEW"}) {
    if (version == known) return OkStatus();
  }
  return InvalidArgument("'" + version.substr(0, 40) + "' is not an image builder version; 2025.06 is one");
}

Environment FromRow(store::Row& row) {
  return {row.Text(0), row.Text(1), row.Text(2), row.Text(3), row.Text(4), row.Int(5) != 0, row.Real(6)};
}

constexpr char kColumns[] =
    "SELECT id, workspace_id, name, webhook_suffix, builder_version, is_default, created_at FROM "
    "environment ";

}  // namespace

Status NoSuch(const std::string& kind, const std::string& prefix, const std::string& id) {
  if (id.empty()) return NotFound("the request names no " + kind);
  if (IdPrefix(id) != prefix)
    return NotFound("'" + id.substr(0, 80) + "' is not the id of a " + kind + " (" + prefix + "-...)");
  return NotFound("no " + kind + " " + id.substr(0, 80));
}

Result<std::vector<Environment>> Environments::Select(std::string_view where, const store::Params& params) {
  std::vector<Environment> found;
  RETURN_IF_ERROR(db_->ForEach(kColumns + std::string(where), params, [&](store::Row& row) {
    found.push_back(FromRow(row));
    return OkStatus();
  }));
  return found;
}

Result<Environment> Environments::ById(const std::string& id) {
  ASSIGN_OR_RETURN(auto found, Select("WHERE id = ?", {id}));
  if (found.empty()) return NoSuch("environment", "en", id);
  return found[0];
}

Result<Environment> Environments::ByName(const std::string& workspace_id, const std::string& name) {
  if (name.empty()) {
    ASSIGN_OR_RETURN(auto found, Select("WHERE workspace_id = ? AND is_default = 1", {workspace_id}));
    if (found.empty()) return NotFound("this workspace has no default environment; name one");
    return found[0];
  }
  ASSIGN_OR_RETURN(auto found, Select("WHERE workspace_id = ? AND name = ?", {workspace_id, name}));
  if (found.empty()) {
    return NotFound("no environment '" + name.substr(0, 80) +
                    "'; `modal environment list` shows those there are");
  }
  return found[0];
}

Result<Environment> Environments::Resolve(const Scope& scope, const std::string& name) {
  if (scope.environment_id.empty()) return ByName(scope.workspace_id, name);
  ASSIGN_OR_RETURN(Environment own, ById(scope.environment_id));
  if (!name.empty() && name != own.name) {
    return PermissionDenied("a container acts in its own environment '" + own.name + "', not in '" +
                            name.substr(0, 80) + "'");
  }
  return own;
}

Result<std::vector<Environment>> Environments::List(const std::string& workspace_id) {
  return Select("WHERE workspace_id = ? ORDER BY name", {workspace_id});
}

Result<Environment> Environments::Create(const std::string& workspace_id, const std::string& name,
                                         const std::string& webhook_suffix,
                                         const std::string& builder_version) {
  RETURN_IF_ERROR(CheckName(name));
  Environment made{NewId("en"),
                   workspace_id,
                   name,
                   webhook_suffix,
                   builder_version.empty() ? kBuilderVersion : builder_version,
                   false,
                   clock_->UnixSeconds()};
  RETURN_IF_ERROR(CheckBuilderVersion(made.builder_version));
  ASSIGN_OR_RETURN(auto all, List(workspace_id));
  for (const auto& other : all) {
    if (other.name == name) return AlreadyExists("there is an environment '" + name + "' already");
  }
  made.is_default = all.empty();
  RETURN_IF_ERROR(db_->Execute(
      "INSERT INTO environment (id, workspace_id, name, webhook_suffix, builder_version, is_default, "
      "created_at) "
      "VALUES (?, ?, ?, ?, ?, ?, ?)",
      {made.id, workspace_id, name, webhook_suffix, made.builder_version, made.is_default, made.created_at}));
  return made;
}

Status Environments::RequireIdle(const Environment& environment, const std::string& what) {
  ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT COUNT(*) FROM app WHERE environment_id = ? AND state != 5",
                                         {environment.id}));
  if (rows[0].Int(0) == 0) return OkStatus();
  return FailedPrecondition("the environment '" + environment.name + "' can't be " + what + " while " +
                            std::to_string(rows[0].Int(0)) +
                            " apps live in it; stop them first (`modal app list`)");
}

Result<Environment> Environments::Update(const std::string& workspace_id, const std::string& name,
                                         const Change& change) {
  ASSIGN_OR_RETURN(Environment now, ByName(workspace_id, name));
  if (change.name && *change.name != now.name) {
    RETURN_IF_ERROR(CheckName(*change.name));
    RETURN_IF_ERROR(RequireIdle(now, "renamed"));
    if (ByName(workspace_id, *change.name).ok()) {
      return AlreadyExists("there is an environment '" + *change.name + "' already");
    }
    now.name = *change.name;
  }
  if (change.webhook_suffix) now.webhook_suffix = *change.webhook_suffix;
  if (change.builder_version) {
    RETURN_IF_ERROR(CheckBuilderVersion(*change.builder_version));
    now.builder_version = *change.builder_version;
  }
  RETURN_IF_ERROR(
      db_->Execute("UPDATE environment SET name = ?, webhook_suffix = ?, builder_version = ? WHERE id = ?",
                   {now.name, now.webhook_suffix, now.builder_version, now.id}));
  return now;
}

Status Environments::Delete(const std::string& workspace_id, const std::string& name) {
  if (name.empty()) return InvalidArgument("the request names no environment");
  ASSIGN_OR_RETURN(Environment gone, ByName(workspace_id, name));
  if (gone.is_default)
    return FailedPrecondition("'" + name + "' is the default environment, which can't be deleted");
  RETURN_IF_ERROR(RequireIdle(gone, "deleted"));
  return db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute("DELETE FROM secret WHERE environment_id = ?", {gone.id}));
    RETURN_IF_ERROR(session.Execute("DELETE FROM mount WHERE environment_id = ?", {gone.id}));
    RETURN_IF_ERROR(session.Execute(
        "DELETE FROM recipe WHERE image_id IN (SELECT id FROM image WHERE environment_id = ?)", {gone.id}));
    RETURN_IF_ERROR(session.Execute("DELETE FROM image WHERE environment_id = ?", {gone.id}));
    return session.Execute("DELETE FROM environment WHERE id = ?", {gone.id});
  });
}

}  // namespace lydian::control
