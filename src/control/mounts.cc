#include "control/mounts.h"

#include <algorithm>

#include "base/ids.h"
#include "control/references.h"

namespace lydian::control {

namespace {

bool IsSha256(const std::string& text) {
  if (text.size() != 64) return false;
  for (char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

}  // namespace

Status CheckAbsolutePath(const std::string& path) {
  Status bad = InvalidArgument("'" + path.substr(0, 200) + "' is not an absolute path without '.' and '..'");
  if (path.size() < 2 || path.size() > 4096 || path[0] != '/' || path.find('\0') != std::string::npos)
    return bad;
  for (size_t at = 1; at <= path.size();) {
    size_t end = std::min(path.find('/', at), path.size());
    std::string part = path.substr(at, end - at);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return bad;
    at = end + 1;
  }
  return path.back() == '/' ? bad : OkStatus();
}

Result<std::vector<std::string>> Mounts::Missing(const std::string& workspace_id,
                                                 const std::vector<std::string>& sha256) {
  std::vector<std::string> missing;
  for (const auto& hash : sha256) {
    if (!IsSha256(hash)) return InvalidArgument("'" + hash.substr(0, 80) + "' is not a SHA-256 in hex");
    const std::string target = ObjectTarget(workspace_id, hash);
    ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT EXISTS (SELECT 1 FROM orphan WHERE kind = 'object' AND "
                                           "target = ?) FROM object WHERE workspace_id = ? AND sha256 = ?",
                                           {target, workspace_id, hash}));
    if (rows.empty()) {
      missing.push_back(hash);
    } else if (rows[0].Int(0) != 0) {  // the client won't bring it, and mounts it soon
      RETURN_IF_ERROR(Keep(*db_, RefKind::kObject, target));
    }
  }
  return missing;
}

Status Mounts::NoteObject(const std::string& workspace_id, const std::string& sha256, uint64_t size) {
  return db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO object (workspace_id, sha256, size) VALUES (?, ?, ?) ON CONFLICT (workspace_id, sha256) "
        "DO NOTHING",
        {workspace_id, sha256, size}));
    return Keep(session, RefKind::kObject, ObjectTarget(workspace_id, sha256));
  });
}

Result<Mount> Mounts::Create(const Scope& scope, const std::string& environment_id,
                             std::vector<ContextFile> files) {
  std::sort(files.begin(), files.end(),
            [](const ContextFile& a, const ContextFile& b) { return a.path() < b.path(); });
  std::string content, list;
  GetMountResponse stored;
  for (size_t i = 0; i < files.size(); ++i) {
    ContextFile& file = files[i];
    RETURN_IF_ERROR(CheckAbsolutePath(file.path()));
    if (!IsSha256(file.sha256()))
      return InvalidArgument(file.path() + ": its content hash is not a SHA-256 in hex");
    if (i > 0 && files[i - 1].path() == file.path())
      return InvalidArgument(file.path() + " is named twice in one mount");
    ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT size FROM object WHERE workspace_id = ? AND sha256 = ?",
                                           {scope.workspace_id, file.sha256()}));
    if (rows.empty()) return FailedPrecondition("the content of " + file.path() + " was not uploaded");
    file.set_size(static_cast<uint64_t>(rows[0].Int(0)));
    content += file.path() + '\0' + file.sha256() + '\0' + std::to_string(file.mode()) + '\n';
    *stored.add_files() = file;
  }
  Mount mount{DigestId("mo", scope.workspace_id + '\0' + environment_id + '\0' + content), scope.workspace_id,
              environment_id, "", Sha256Hex(content)};
  std::string bytes = stored.SerializeAsString();
  RETURN_IF_ERROR(db_->Transaction([&](store::Session& session) -> Status {
    ASSIGN_OR_RETURN(
        int64_t made,
        session.Change("INSERT INTO mount (id, workspace_id, environment_id, checksum, files, created_at) "
                       "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                       {mount.id, mount.workspace_id, environment_id, mount.checksum, store::Blob{bytes},
                        clock_->UnixSeconds()}));
    if (made == 0) return Keep(session, RefKind::kMount, mount.id);
    return Refer(session, mount.id, ReferencesOfMount(mount.id, mount.workspace_id, stored));
  }));
  return mount;
}

Result<Mount> Mounts::ById(const std::string& mount_id) {
  ASSIGN_OR_RETURN(
      auto rows,
      db_->Query("SELECT workspace_id, environment_id, client_version, checksum FROM mount WHERE id = ?",
                 {mount_id}));
  if (rows.empty()) return NoSuch("mount", "mo", mount_id);
  return Mount{mount_id, rows[0].Text(0), rows[0].Text(1), rows[0].Text(2), rows[0].Text(3)};
}

Result<std::vector<ContextFile>> Mounts::FilesOf(const Mount& mount) {
  ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT files FROM mount WHERE id = ?", {mount.id}));
  GetMountResponse stored;
  if (rows.empty() || !stored.ParseFromString(rows[0].Text(0)))
    return DataLoss("the file list of " + mount.id + " is damaged");
  return std::vector<ContextFile>(stored.files().begin(), stored.files().end());
}

Result<Mount> Mounts::Get(const Scope& scope, const std::string& mount_id) {
  ASSIGN_OR_RETURN(Mount mount, ById(mount_id));
  if (mount.client_version.empty() && !scope.Sees(mount.workspace_id, mount.environment_id)) {
    return NoSuch("mount", "mo", mount_id);
  }
  return mount;
}

Result<Mount> Mounts::ClientMount(const std::string& version) {
  Mount mount{DigestId("mo", "client mount " + version), "", "", version,
              Sha256Hex("client mount " + version)};
  RETURN_IF_ERROR(db_->Execute(
      "INSERT INTO mount (id, workspace_id, environment_id, client_version, checksum, files, created_at) "
      "VALUES (?, '', '', ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
      {mount.id, version, mount.checksum, store::Blob{""}, clock_->UnixSeconds()}));
  return mount;
}

void Mounts::Files(const std::string& mount_id, std::function<void(Result<GetMountResponse>)> reply) {
  strand_->Post([this, mount_id, reply = std::move(reply)] {
    auto mount = ById(mount_id);
    if (!mount.ok()) return reply(mount.status());
    auto files = FilesOf(*mount);
    if (!files.ok()) return reply(files.status());
    GetMountResponse response;
    for (auto& file : *files) *response.add_files() = std::move(file);
    reply(response);
  });
}

}  // namespace lydian::control
