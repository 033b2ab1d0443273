#include "control/store_check.h"

#include <sys/stat.h>

#include <map>
#include <set>

#include "base/log.h"

namespace lydian::control {

namespace {

uint64_t FileBytes(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

}  // namespace

Status StoreCheck::Going() const {
  return collector_->Stopping() ? Unavailable("the server is stopping") : OkStatus();
}

std::string StoreCheck::NameOf(const std::string& workspace_id) const {
  auto name = tokens_->WorkspaceName(workspace_id);
  return name.ok() ? *name : workspace_id;
}

Result<std::vector<StoreCheck::Usage>> StoreCheck::Measure(std::vector<std::string>* notes) {
  std::lock_guard one_at_a_time(mutex_);
  RETURN_IF_ERROR(Going());
  std::vector<Usage> all;
  auto by_workspace = [&](const std::string& kind, const char* sql, const std::string& place) {
    return db_->ForEach(sql, {}, [&](store::Row& row) -> Status {
      all.push_back({kind, NameOf(row.Text(0)), "", static_cast<uint64_t>(row.Int(1)),
                     static_cast<uint64_t>(row.Int(2)), place});
      return OkStatus();
    });
  };
  RETURN_IF_ERROR(by_workspace("blobs",
                               "SELECT workspace_id, COUNT(*), COALESCE(SUM(size), 0) FROM blob GROUP BY "
                               "workspace_id",
                               "control/blobs"));
  RETURN_IF_ERROR(by_workspace("files",
                               "SELECT workspace_id, COUNT(*), COALESCE(SUM(size), 0) FROM object GROUP BY "
                               "workspace_id",
                               "control/objects"));
  for (const char* name : {"state.db", "calls.db", "logs.db"}) {
    const std::string path = state_dir_ + "/" + name;
    all.push_back(
        {"database", "", "", 1, FileBytes(path) + FileBytes(path + "-wal"), "control/" + std::string(name)});
  }
  std::map<std::string, std::pair<std::string, std::string>> apps;  // id: workspace, name
  RETURN_IF_ERROR(
      db_->ForEach("SELECT id, workspace_id, name, description FROM app", {}, [&](store::Row& row) {
        apps[row.Text(0)] = {row.Text(1), row.Text(2).empty() ? row.Text(3) : row.Text(2)};
        return OkStatus();
      }));
  ASSIGN_OR_RETURN(auto logs, logs_->Sizes());
  std::map<std::string, Usage> others;
  for (const auto& size : logs) {
    auto app = apps.find(size.stream);
    if (app != apps.end()) {
      all.push_back(
          {"logs", NameOf(app->second.first), app->second.second, 1, size.bytes, "control/logs.db"});
      continue;
    }
    Usage& sum = others[size.stream.substr(0, 3) == "im-" ? "logs of builds" : "logs of apps that are gone"];
    ++sum.count;
    sum.bytes += size.bytes;
  }
  for (auto& [kind, sum] : others) all.push_back({kind, "", "", sum.count, sum.bytes, "control/logs.db"});

  ASSIGN_OR_RETURN(auto workers, collector_->Inventories(false, notes));
  std::map<std::string, std::set<std::string>> users;  // of layers: workspaces
  RETURN_IF_ERROR(db_->ForEach(
      "SELECT target, image.workspace_id FROM reference JOIN image ON image.id = holder WHERE kind = 'layer' "
      "UNION SELECT target, mount.workspace_id FROM reference JOIN mount ON mount.id = holder WHERE kind = "
      "'layer'",
      {}, [&](store::Row& row) -> Status {
        users[row.Text(0)].insert(row.Text(1));
        return OkStatus();
      }));
  for (const auto& [worker_id, inventory] : workers) {
    std::map<std::pair<std::string, std::string>, Usage> sums;
    for (const auto& layer : inventory.layers()) {
      const auto& by = users[layer.layer_id()];
      std::string kind = "layers that nobody refers to", workspace;
      if (layer.held_by() == "a base image" || by.size() > 1) {
        kind = "layers of bases, or shared";
      } else if (by.size() == 1) {
        kind = "layers", workspace = NameOf(*by.begin());
      } else if (layer.client_versions_size() > 0 || layer.held_by() == "the launcher") {
        kind = "layers of the client's runtime";
      }
      Usage& sum = sums[{kind, workspace}];
      ++sum.count;
      sum.bytes += layer.bytes();
    }
    for (const auto& [key, sum] : sums)
      all.push_back({key.first, key.second, "", sum.count, sum.bytes, "worker/layers"});
    Usage files{"files of the worker", "", "", 0, 0, "worker/objects"};
    for (const auto& object : inventory.objects()) {
      ++files.count;
      files.bytes += object.bytes();
    }
    all.push_back(files);
  }
  return all;
}

Status StoreCheck::VerifyBlobs(Verdict* verdict) {
  auto& deps = collector_->deps();
  std::vector<std::pair<std::string, uint64_t>> blobs;
  RETURN_IF_ERROR(db_->ForEach("SELECT id, size FROM blob", {}, [&](store::Row& row) -> Status {
    blobs.emplace_back(row.TakeText(0), static_cast<uint64_t>(row.Int(1)));
    return OkStatus();
  }));
  for (const auto& [id, size] : blobs) {
    RETURN_IF_ERROR(Going());
    ++verdict->checked;
    auto found = deps.blobs->BlobSize(id);
    if (found.ok() && *found == size) continue;
    // One that no call names yet is an upload that hasn't come, or never will: collection drops its row.
    ASSIGN_OR_RETURN(auto used, deps.blobs_of_calls({id}));
    ASSIGN_OR_RETURN(auto referred,
                     db_->Query("SELECT 1 FROM reference WHERE kind = 'blob' AND target = ?", {id}));
    if (!found.ok() && used.empty() && referred.empty()) continue;
    verdict->damages.push_back(
        {"blob", id,
         found.ok() ? "it has " + std::to_string(*found) + " bytes, not " + std::to_string(size)
                    : "its file is missing",
         "its bytes are lost: what names it fails; bring control/blobs back from a backup, or call again"});
  }
  return OkStatus();
}

Status StoreCheck::VerifyObjects(Verdict* verdict) {
  auto& deps = collector_->deps();
  std::vector<std::string> digests;
  RETURN_IF_ERROR(db_->ForEach("SELECT DISTINCT sha256 FROM object", {}, [&](store::Row& row) -> Status {
    digests.push_back(row.TakeText(0));
    return OkStatus();
  }));
  for (const std::string& sha256 : digests) {
    RETURN_IF_ERROR(Going());
    ++verdict->checked;
    Status sound = deps.blobs->CheckObject(sha256);
    if (sound.ok()) continue;
    if (sound.code() != Code::kDataLoss && sound.code() != Code::kNotFound) return sound;
    RETURN_IF_ERROR(collector_->OnStrand([&]() -> Status {
      RETURN_IF_ERROR(db_->Execute("DELETE FROM object WHERE sha256 = ?", {sha256}));
      return deps.blobs->RetireObject(sha256);
    }));
    verdict->damages.push_back({"file", sha256, sound.message(),
                                "forgotten, so that the client uploads it again: deploy or run again"});
  }
  return OkStatus();
}

Status StoreCheck::VerifyStrays(Verdict* verdict) {
  auto& deps = collector_->deps();
  auto look = [&](const char* kind, const char* sql) {
    return [this, verdict, kind, sql](const blob::BlobStore::Entry& entry) -> Status {
      RETURN_IF_ERROR(Going());
      ++verdict->checked;
      ASSIGN_OR_RETURN(auto rows, db_->Query(sql, {entry.name}));
      if (rows.empty()) {
        verdict->damages.push_back({kind, entry.name, "a file that no row speaks of",
                                    "none needed: a collection removes it (lydian store gc)"});
      }
      return OkStatus();
    };
  };
  RETURN_IF_ERROR(deps.blobs->ListBlobs(look("blob", "SELECT 1 FROM blob WHERE id = ?")));
  return deps.blobs->ListObjects(look("file", "SELECT 1 FROM object WHERE sha256 = ? LIMIT 1"));
}

Status StoreCheck::VerifyWorkers(Verdict* verdict) {
  RETURN_IF_ERROR(Going());
  ASSIGN_OR_RETURN(auto used, collector_->LayersOfImages());
  const double now = collector_->Now();
  ASSIGN_OR_RETURN(auto workers, collector_->Inventories(true, &verdict->notes));
  if (workers.empty() || !verdict->notes.empty()) return OkStatus();
  for (const auto& [worker_id, inventory] : workers) {
    verdict->checked += static_cast<uint64_t>(inventory.layers_size() + inventory.objects_size());
    for (const auto& damage : inventory.damages())
      verdict->damages.push_back({"worker", worker_id, damage, "what needs it makes it again"});
  }
  ASSIGN_OR_RETURN(auto lost, collector_->MarkLost(used, now, workers));
  for (const auto& use : lost) {
    verdict->damages.push_back({"image", use.image_id, "its layer " + use.layer_id + " is gone",
                                "marked: it is built again when it is needed"});
  }
  return OkStatus();
}

Result<StoreCheck::Verdict> StoreCheck::Verify() {
  std::lock_guard one_at_a_time(mutex_);
  Verdict verdict;
  RETURN_IF_ERROR(VerifyBlobs(&verdict));
  RETURN_IF_ERROR(VerifyObjects(&verdict));
  RETURN_IF_ERROR(VerifyStrays(&verdict));
  RETURN_IF_ERROR(VerifyWorkers(&verdict));
  return verdict;
}

}  // namespace lydian::control
