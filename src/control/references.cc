#include "control/references.h"

#include <functional>
#include <nlohmann/json.hpp>

#include "image/layer_store.h"
#include "lydian/worker.pb.h"

namespace lydian::control {

namespace {

constexpr size_t kSlice = 100;

// `note` writes the references of one row of `table`; rows come in the order of their ids.
Status NoteTable(store::Database& db, const std::string& select,
                 const std::function<Status(store::Session&, store::Row&)>& note) {
  for (std::string last;;) {
    ASSIGN_OR_RETURN(auto rows, db.Query(select, {last, kSlice}));
    if (rows.empty()) return OkStatus();
    last = rows.back().Text(0);
    RETURN_IF_ERROR(db.Transaction([&](store::Session& session) -> Status {
      for (auto& row : rows) RETURN_IF_ERROR(note(session, row));
      return OkStatus();
    }));
  }
}

Status NoteMount(store::Session& session, store::Row& row) {
  GetMountResponse stored;
  if (!stored.ParseFromString(row.Text(2))) return OkStatus();  // its next use says so
  return Refer(session, row.Text(0), ReferencesOfMount(row.Text(0), row.Text(1), stored));
}

Status NoteImage(store::Session& session, store::Row& row) {
  const std::string& id = row.Text(0);
  BuildSpec build;
  ImageSpec spec;
  std::vector<Reference> references;
  if (build.ParseFromString(row.Text(2))) {
    for (const auto& file : build.context())
      references.push_back({RefKind::kObject, ObjectTarget(row.Text(1), file.sha256())});
  }
  if (spec.ParseFromString(row.Text(3))) {
    for (const auto& layer : spec.layer_ids()) references.push_back({RefKind::kLayer, layer});
  }
  if (!row.Text(4).empty()) references.push_back({RefKind::kImage, row.Text(4)});
  for (const auto& secret : nlohmann::json::parse(row.Text(5), nullptr, false)) {
    if (secret.is_string()) references.push_back({RefKind::kSecret, secret.get<std::string>()});
  }
  return Refer(session, id, references);
}

}  // namespace

const char* RefKindName(RefKind kind) {
  switch (kind) {
    case RefKind::kDefinition:
      return "definition";
    case RefKind::kImage:
      return "image";
    case RefKind::kMount:
      return "mount";
    case RefKind::kSecret:
      return "secret";
    case RefKind::kObject:
      return "object";
    case RefKind::kLayer:
      return "layer";
    case RefKind::kBlob:
      break;
  }
  return "blob";
}

std::string ObjectTarget(const std::string& workspace_id, const std::string& sha256) {
  return workspace_id + "/" + sha256;
}

std::vector<Reference> ReferencesOfMount(const std::string& mount_id, const std::string& workspace_id,
                                         const GetMountResponse& files) {
  std::vector<Reference> references = {{RefKind::kLayer, image::MountLayerId(mount_id)}};
  for (const auto& file : files.files())
    references.push_back({RefKind::kObject, ObjectTarget(workspace_id, file.sha256())});
  return references;
}

Status Refer(store::Session& session, const std::string& holder, const std::vector<Reference>& references) {
  for (const auto& reference : references) {
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO reference (holder, kind, target) VALUES (?, ?, ?) ON CONFLICT (holder, kind, target) DO "
        "NOTHING",
        {holder, RefKindName(reference.kind), reference.target}));
  }
  return OkStatus();
}

Status Release(store::Session& session, const std::string& holder) {
  return session.Execute("DELETE FROM reference WHERE holder = ?", {holder});
}

Status Release(store::Session& session, const std::string& holder, RefKind kind) {
  return session.Execute("DELETE FROM reference WHERE holder = ? AND kind = ?", {holder, RefKindName(kind)});
}

Status Keep(store::Session& session, RefKind kind, const std::string& target) {
  return session.Execute("DELETE FROM orphan WHERE kind = ? AND target = ?", {RefKindName(kind), target});
}

Status NoteOldReferences(store::Database& db) {
  ASSIGN_OR_RETURN(auto done, db.Query("SELECT 1 FROM upkeep WHERE what = 'references of images'"));
  if (!done.empty()) return OkStatus();
  RETURN_IF_ERROR(NoteTable(db,
                            "SELECT id, workspace_id, files FROM mount WHERE id > ? AND client_version = '' "
                            "ORDER BY id LIMIT ?",
                            NoteMount));
  RETURN_IF_ERROR(NoteTable(
      db, "SELECT id, workspace_id, build, spec, parent, secrets FROM image WHERE id > ? ORDER BY id LIMIT ?",
      NoteImage));
  RETURN_IF_ERROR(db.Execute(
      "INSERT INTO reference (holder, kind, target) SELECT id, 'definition', active_definition FROM function "
      "WHERE active_definition != '' UNION SELECT id, 'definition', newest_definition FROM function WHERE "
      "newest_definition != '' ON CONFLICT (holder, kind, target) DO NOTHING"));
  return db.Execute("INSERT INTO upkeep (what, at) VALUES ('references of images', 0)");
}

}  // namespace lydian::control
