#include "control/collector.h"

#include <algorithm>
#include <future>
#include <map>
#include <memory>

#include "base/log.h"
#include "blob/blob_urls.h"
#include "control/images.h"

namespace lydian::control {

namespace {

constexpr uint64_t kStraysEvery = 24;  // passes: it lists folders
constexpr int kDropAtOnce = 1000;      // of a worker's layers and files
constexpr auto kWorkerPatience = std::chrono::minutes(10);

// An answer that comes on another thread, or never: whoever should give it is gone then.
template <typename T>
Result<T> Await(const std::function<void(std::function<void(T)>)>& ask) {
  auto promise = std::make_shared<std::promise<T>>();
  auto answer = promise->get_future();
  ask([promise](T value) { promise->set_value(std::move(value)); });
  promise.reset();
  try {
    if (answer.wait_for(kWorkerPatience) != std::future_status::ready)
      return DeadlineExceeded("no answer within " + std::to_string(kWorkerPatience.count()) + " minutes");
    return answer.get();
  } catch (const std::future_error&) {
    return Unavailable("the server is stopping");
  }
}

}  // namespace

// How the rows of a kind are found, and which table they are in.
struct Collector::Kind {
  RefKind kind;
  const char* name;    // in reports
  const char* all;     // SELECT of the targets that may go
  const char* remove;  // DELETE of one, by target
  double CollectorOptions::*keep;
};

const Collector::Kind& Collector::KindOf(RefKind kind) {
  static const Kind kImages{RefKind::kImage, "images", "SELECT id AS target FROM image WHERE state != 0",
                            "DELETE FROM image WHERE id = ? AND state != 0",
                            &CollectorOptions::keep_images_secs};
  static const Kind kMounts{RefKind::kMount, "mounts",
                            "SELECT id AS target FROM mount WHERE client_version = ''",
                            "DELETE FROM mount WHERE id = ?", &CollectorOptions::keep_files_secs};
  static const Kind kObjects{
      RefKind::kObject, "files", "SELECT workspace_id || '/' || sha256 AS target FROM object",
      "DELETE FROM object WHERE workspace_id = ? AND sha256 = ?", &CollectorOptions::keep_files_secs};
  static const Kind kBlobs{RefKind::kBlob, "blobs", "SELECT id AS target FROM blob",
                           "DELETE FROM blob WHERE id = ?", &CollectorOptions::keep_files_secs};
  switch (kind) {
    case RefKind::kImage:
      return kImages;
    case RefKind::kMount:
      return kMounts;
    case RefKind::kObject:
      return kObjects;
    default:
      return kBlobs;
  }
}

Collector::Collector(store::Database* db, Strand* strand, Clock* clock, CollectorOptions options,
                     CollectorDeps deps)
    : db_(db), strand_(strand), clock_(clock), options_(options), deps_(std::move(deps)) {}

Collector::~Collector() { Stop(); }

void Collector::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void Collector::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  std::lock_guard over(pass_mutex_);  // one that was asked for
}

bool Collector::Stopping() {
  std::lock_guard lock(mutex_);
  return stopping_;
}

void Collector::Loop() {
  pthread_setname_np(pthread_self(), "collector");
  auto wait = std::chrono::duration<double>(options_.first_after_secs);
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, wait, [this] { return stopping_; })) {
    wait = std::chrono::duration<double>(options_.every_secs);
    lock.unlock();
    auto report = Pass(false);
    if (!report.ok()) {
      LOG_WARN("a collection was cut short; the next goes on", {{"error", report.status()}});
    } else {
      for (const Line& line : report->lines) {
        if (line.freed > 0)
          LOG_INFO("collected", {{"kind", line.kind}, {"count", line.freed}, {"bytes", line.freed_bytes}});
      }
    }
    lock.lock();
  }
}

Status Collector::OnStrand(const std::function<Status()>& work) {
  auto promise = std::make_shared<std::promise<Status>>();
  auto answer = promise->get_future();
  strand_->Post([&work, promise] { promise->set_value(work()); });
  promise.reset();
  try {
    return answer.get();
  } catch (const std::future_error&) {
    return Unavailable("the server is stopping");
  }
}

Status Collector::Before(const std::string& step) {
  if (Stopping()) return Unavailable("the server is stopping");
  return deps_.before ? deps_.before(step) : OkStatus();
}

Result<Collector::Report> Collector::Pass(bool dry_run) {
  std::lock_guard one_at_a_time(pass_mutex_);
  const uint64_t number = passes_++;
  Report report;
  const auto add = [&](Line line, const std::function<Status(Line*)>& work) -> Status {
    RETURN_IF_ERROR(Before(line.kind));
    RETURN_IF_ERROR(work(&line));
    report.lines.push_back(std::move(line));
    return OkStatus();
  };
  RETURN_IF_ERROR(add({.kind = "apps", .keep_secs = options_.keep_apps_secs},
                      [&](Line* line) { return Apps(dry_run, line); }));
  // What refers goes before what it refers to.
  for (RefKind kind : {RefKind::kImage, RefKind::kMount, RefKind::kObject, RefKind::kBlob}) {
    const Kind& rule = KindOf(kind);
    RETURN_IF_ERROR(add({.kind = rule.name, .keep_secs = options_.*rule.keep},
                        [&](Line* line) { return Rows(kind, dry_run, line); }));
  }
  if (!dry_run) RETURN_IF_ERROR(deps_.blobs->RemoveOldParts(options_.keep_files_secs));
  if (number % kStraysEvery == 0 || dry_run) {
    RETURN_IF_ERROR(add({.kind = "files without a row", .keep_secs = options_.keep_files_secs},
                        [&](Line* line) { return Strays(dry_run, line); }));
  }
  if (!dry_run) RETURN_IF_ERROR(deps_.blobs->RemoveRetired());
  RETURN_IF_ERROR(Before("workers"));
  RETURN_IF_ERROR(OfWorkers(dry_run, &report));
  return report;
}

// Apps that were stopped long ago, with what was theirs alone. Their definitions went when they ended.
Status Collector::Apps(bool dry_run, Line* line) {
  const double until = clock_->UnixSeconds() - options_.keep_apps_secs;
  ASSIGN_OR_RETURN(auto alive, db_->Query("SELECT COUNT(*) FROM app WHERE state != 5"));
  ASSIGN_OR_RETURN(auto stopped,
                   db_->Query("SELECT COUNT(*) FROM app WHERE state = 5 AND stopped_at > ?", {until}));
  line->in_use = static_cast<uint64_t>(alive[0].Int(0));
  line->waiting = static_cast<uint64_t>(stopped[0].Int(0));
  ASSIGN_OR_RETURN(auto due, db_->Query("SELECT id FROM app WHERE state = 5 AND stopped_at <= ?", {until}));
  line->freed = due.size();
  if (dry_run) return OkStatus();
  for (const auto& row : due) {
    const std::string& id = row.Text(0);
    RETURN_IF_ERROR(OnStrand([&] {
      return db_->Transaction([&](store::Session& session) -> Status {
        const std::string functions = "(SELECT id FROM function WHERE app_id = ?)";
        const std::string bound = "(SELECT id FROM bound_function WHERE base_id IN " + functions + ")";
        for (const std::string& sql : {"DELETE FROM reference WHERE holder IN " + functions,
                                       "DELETE FROM reference WHERE holder IN " + bound,
                                       "DELETE FROM bound_function WHERE base_id IN " + functions,
                                       "DELETE FROM definition WHERE function_id IN " + functions,
                                       std::string("DELETE FROM function WHERE app_id = ?"),
                                       std::string("DELETE FROM class WHERE app_id = ?"),
                                       std::string("DELETE FROM app_member WHERE app_id = ?"),
                                       std::string("DELETE FROM app WHERE id = ?")}) {
          RETURN_IF_ERROR(session.Execute(sql, {id}));
        }
        return OkStatus();
      });
    }));
  }
  return OkStatus();
}

// Those that nobody refers to and that aren't noted as such yet. Blobs of calls are known to calls.db.
Status Collector::NoteOrphans(const Kind& kind) {
  const std::string name = RefKindName(kind.kind);
  std::vector<std::string> found;
  RETURN_IF_ERROR(db_->ForEach(
      "SELECT target FROM (" + std::string(kind.all) +
          ") AS all_of_them WHERE NOT EXISTS (SELECT 1 FROM reference WHERE kind = ? AND reference.target = "
          "all_of_them.target) AND NOT EXISTS (SELECT 1 FROM orphan WHERE kind = ? AND orphan.target = "
          "all_of_them.target)",
      {name, name}, [&](store::Row& row) -> Status {
        found.push_back(row.TakeText(0));
        return OkStatus();
      }));
  for (size_t at = 0; at < found.size(); at += options_.slice) {
    const size_t end = std::min(at + options_.slice, found.size());
    std::vector<std::string> slice(found.begin() + static_cast<ptrdiff_t>(at),
                                   found.begin() + static_cast<ptrdiff_t>(end));
    if (kind.kind == RefKind::kBlob) {
      ASSIGN_OR_RETURN(auto used, deps_.blobs_of_calls(slice));
      std::erase_if(slice, [&](const std::string& id) { return used.contains(id); });
    }
    const double now = clock_->UnixSeconds();
    RETURN_IF_ERROR(OnStrand([&] {
      return db_->Transaction([&](store::Session& session) -> Status {
        for (const std::string& target : slice) {
          RETURN_IF_ERROR(
              session.Execute("INSERT INTO orphan (kind, target, since) VALUES (?, ?, ?) ON CONFLICT (kind, "
                              "target) DO NOTHING",
                              {name, target, now}));
        }
        return OkStatus();
      });
    }));
  }
  return OkStatus();
}

Status Collector::ForgetReferred(const Kind& kind) {
  const std::string name = RefKindName(kind.kind);
  return OnStrand([&] {
    return db_->Execute(
        "DELETE FROM orphan WHERE kind = ? AND EXISTS (SELECT 1 FROM reference WHERE reference.kind = "
        "orphan.kind AND reference.target = orphan.target)",
        {name});
  });
}

Status Collector::Rows(RefKind which, bool dry_run, Line* line) {
  const Kind& kind = KindOf(which);
  const std::string name = RefKindName(which);
  RETURN_IF_ERROR(ForgetReferred(kind));
  RETURN_IF_ERROR(NoteOrphans(kind));
  const double until = clock_->UnixSeconds() - options_.*kind.keep;
  // An image that goes may leave the one that it stood on.
  for (bool more = !dry_run; more;) {
    more = false;
    for (std::string last;;) {
      ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT target FROM orphan WHERE kind = ? AND since <= ? AND "
                                             "target > ? ORDER BY target LIMIT ?",
                                             {name, until, last, options_.slice}));
      if (rows.empty()) break;
      std::vector<std::string> due;
      for (auto& row : rows) due.push_back(row.TakeText(0));
      last = due.back();
      size_t removed = 0;
      RETURN_IF_ERROR(RemoveSlice(kind, due, until, line, &removed));
      more |= removed > 0 && which == RefKind::kImage;
    }
  }
  const std::string count = "SELECT COUNT(*) FROM orphan WHERE kind = ?";
  ASSIGN_OR_RETURN(auto waiting, db_->Query(count + " AND since > ?", {name, until}));
  ASSIGN_OR_RETURN(auto due, db_->Query(count + " AND since <= ?", {name, until}));
  ASSIGN_OR_RETURN(auto all,
                   db_->Query("SELECT COUNT(*) FROM (" + std::string(kind.all) + ") AS all_of_them"));
  if (dry_run) line->freed = static_cast<uint64_t>(due[0].Int(0));
  line->waiting = static_cast<uint64_t>(waiting[0].Int(0));
  const auto total = static_cast<uint64_t>(all[0].Int(0));
  line->in_use = total - std::min(total, line->waiting + static_cast<uint64_t>(due[0].Int(0)));
  return OkStatus();
}

Status Collector::RemoveSlice(const Kind& kind, const std::vector<std::string>& due, double until, Line* line,
                              size_t* removed) {
  std::set<std::string> used;
  if (kind.kind == RefKind::kBlob) {
    ASSIGN_OR_RETURN(used, deps_.blobs_of_calls(due));
  }
  const std::string name = RefKindName(kind.kind);
  std::vector<std::string> gone, files;
  uint64_t bytes = 0;
  RETURN_IF_ERROR(OnStrand([&]() -> Status {
    RETURN_IF_ERROR(db_->Transaction([&](store::Session& session) -> Status {
      for (const std::string& target : due) {
        if (used.contains(target)) {
          RETURN_IF_ERROR(Keep(session, kind.kind, target));
          continue;
        }
        // Once more, now that nobody else can change it.
        ASSIGN_OR_RETURN(
            auto rows, session.Query("SELECT since FROM orphan WHERE kind = ? AND target = ? AND since <= ? "
                                     "AND NOT EXISTS (SELECT 1 FROM reference WHERE reference.kind = "
                                     "orphan.kind AND reference.target = orphan.target)",
                                     {name, target, until}));
        if (rows.empty()) continue;
        uint64_t size = 0;
        bool file_too = false;
        RETURN_IF_ERROR(RemoveRow(session, kind, target, rows[0].Real(0), &size, &file_too));
        gone.push_back(target);
        bytes += size;
        if (file_too) files.push_back(target);
      }
      return OkStatus();
    }));
    RETURN_IF_ERROR(Before(std::string("files of ") + kind.name));
    for (const std::string& target : files) {
      RETURN_IF_ERROR(kind.kind == RefKind::kBlob
                          ? deps_.blobs->RetireBlob(target)
                          : deps_.blobs->RetireObject(target.substr(target.find('/') + 1)));
    }
    return OkStatus();
  }));
  line->freed += gone.size();
  line->freed_bytes += bytes;
  *removed = gone.size();
  return OkStatus();
}

// One row and what it refers to. `file_too`: nobody else has its bytes.
Status Collector::RemoveRow(store::Session& session, const Kind& kind, const std::string& target,
                            double since, uint64_t* bytes, bool* file_too) {
  if (kind.kind == RefKind::kObject) {
    const std::string workspace = target.substr(0, target.find('/'));
    const std::string sha256 = target.substr(target.find('/') + 1);
    ASSIGN_OR_RETURN(auto rows,
                     session.Query("SELECT workspace_id, size FROM object WHERE sha256 = ?", {sha256}));
    for (const auto& row : rows)
      if (row.Text(0) == workspace) *bytes = static_cast<uint64_t>(row.Int(1));
    RETURN_IF_ERROR(session.Execute(kind.remove, {workspace, sha256}));
    *file_too = rows.size() <= 1;
    if (!*file_too) *bytes = 0;
    return Keep(session, kind.kind, target);
  }
  if (kind.kind == RefKind::kBlob) {
    ASSIGN_OR_RETURN(auto rows, session.Query("SELECT size, created_at FROM blob WHERE id = ?", {target}));
    if (!rows.empty()) {
      *bytes = static_cast<uint64_t>(rows[0].Int(0));
      // Its upload may still be under way, for as long as its URL holds.
      const double open_until = rows[0].Real(1) + static_cast<double>(blob::UploadSeconds(*bytes));
      if (clock_->UnixSeconds() < open_until && !deps_.blobs->BlobSize(target).ok()) {
        *bytes = 0;
        return OkStatus();
      }
    }
    *file_too = true;
  }
  ASSIGN_OR_RETURN(int64_t removed, session.Change(kind.remove, {target}));
  if (kind.kind == RefKind::kImage) {
    if (removed == 0) return Keep(session, kind.kind, target);  // it is being built
    // What it was built from has been needed by nobody for as long.
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO orphan (kind, target, since) SELECT kind, target, ? FROM reference WHERE holder = ? AND "
        "kind = 'image' AND NOT EXISTS (SELECT 1 FROM reference AS other WHERE other.kind = 'image' AND "
        "other.target = reference.target AND other.holder != ?) ON CONFLICT (kind, target) DO NOTHING",
        {since, target, target}));
    RETURN_IF_ERROR(session.Execute("DELETE FROM recipe WHERE image_id = ?", {target}));
  }
  RETURN_IF_ERROR(Release(session, target));
  return Keep(session, kind.kind, target);
}

// Files that no row speaks of: what a kill between a row's end and its file's left, or an upload that was cut
// before it was noted.
Status Collector::Strays(bool dry_run, Line* line) {
  const double until = clock_->UnixSeconds() - options_.keep_files_secs;
  std::vector<blob::BlobStore::Entry> blobs, objects;
  auto look = [&](const char* sql, std::vector<blob::BlobStore::Entry>* found) {
    return [this, sql, found, until, line](const blob::BlobStore::Entry& entry) -> Status {
      ASSIGN_OR_RETURN(auto rows, db_->Query(sql, {entry.name}));
      if (!rows.empty()) {
        ++line->in_use;
      } else if (entry.changed_at > until) {
        ++line->waiting;
      } else {
        found->push_back(entry);
      }
      return OkStatus();
    };
  };
  static constexpr char kBlob[] = "SELECT 1 FROM blob WHERE id = ?";
  static constexpr char kObject[] = "SELECT 1 FROM object WHERE sha256 = ? LIMIT 1";
  RETURN_IF_ERROR(deps_.blobs->ListBlobs(look(kBlob, &blobs)));
  RETURN_IF_ERROR(deps_.blobs->ListObjects(look(kObject, &objects)));
  for (const auto* found : {&blobs, &objects}) {
    for (const auto& entry : *found) {
      if (!dry_run) {
        RETURN_IF_ERROR(OnStrand([&]() -> Status {
          ASSIGN_OR_RETURN(auto rows, db_->Query(found == &blobs ? kBlob : kObject, {entry.name}));
          if (!rows.empty()) return OkStatus();
          return found == &blobs ? deps_.blobs->RetireBlob(entry.name)
                                 : deps_.blobs->RetireObject(entry.name);
        }));
      }
      ++line->freed;
      line->freed_bytes += entry.size;
    }
  }
  return OkStatus();
}

Result<std::vector<std::pair<std::string, StoreInventory>>> Collector::Inventories(
    bool verify, std::vector<std::string>* notes) {
  std::vector<std::pair<std::string, StoreInventory>> all;
  if (deps_.workers == nullptr) return all;
  ASSIGN_OR_RETURN(auto answers, Await<Workers::Inventories>([&](auto reply) {
                     deps_.workers->TakeInventory(verify, std::move(reply));
                   }));
  if (answers.empty()) notes->push_back("no worker is connected: what workers keep was not looked at");
  for (auto& [worker_id, answer] : answers) {
    if (answer.ok()) {
      all.emplace_back(worker_id, std::move(*answer));
    } else {
      notes->push_back(worker_id + ": " + answer.status().message());
    }
  }
  return all;
}

Result<std::vector<Collector::LayerUse>> Collector::LayersOfImages() {
  std::vector<LayerUse> used;
  RETURN_IF_ERROR(
      db_->ForEach("SELECT image.id, target FROM reference JOIN image ON image.id = holder WHERE kind = "
                   "'layer' AND state = 1",
                   {}, [&](store::Row& row) -> Status {
                     used.push_back({row.TakeText(0), row.TakeText(1)});
                     return OkStatus();
                   }));
  return used;
}

Result<std::vector<Collector::LayerUse>> Collector::MarkLost(
    const std::vector<LayerUse>& used, double before,
    const std::vector<std::pair<std::string, StoreInventory>>& workers) {
  std::set<std::string> there;
  for (const auto& [worker_id, inventory] : workers)
    for (const auto& layer : inventory.layers()) there.insert(layer.layer_id());
  std::map<std::string, std::string> lost;  // a layer of each image
  for (const auto& use : used)
    if (!there.contains(use.layer_id)) lost.emplace(use.image_id, use.layer_id);
  std::vector<LayerUse> marked;
  for (const auto& [image_id, layer_id] : lost) {
    int64_t changed = 0;
    RETURN_IF_ERROR(OnStrand([&]() -> Status {
      ASSIGN_OR_RETURN(changed,
                       db_->Change("UPDATE image SET state = ?, error = ? WHERE id = ? AND state = ? "
                                   "AND finished_at < ?",
                                   {ImageState::kLost, "its layer " + layer_id + " is gone", image_id,
                                    ImageState::kReady, before}));
      return OkStatus();
    }));
    if (changed == 0) continue;
    LOG_WARN("a layer of an image is gone; it is built again when it is needed",
             {{"image_id", image_id}, {"layer", layer_id}});
    marked.push_back({image_id, layer_id});
  }
  return marked;
}

// What something on control refers to.
struct Collector::Needed {
  std::set<std::string> layers, files, client_versions;
};

Result<Collector::Needed> Collector::GatherNeeded() {
  Needed needed;
  const auto gather = [&](const char* sql, std::set<std::string>* into) {
    return db_->ForEach(sql, {}, [into](store::Row& row) -> Status {
      into->insert(row.TakeText(0));
      return OkStatus();
    });
  };
  RETURN_IF_ERROR(gather("SELECT DISTINCT target FROM reference WHERE kind = 'layer'", &needed.layers));
  RETURN_IF_ERROR(gather("SELECT DISTINCT sha256 FROM object", &needed.files));
  RETURN_IF_ERROR(
      gather("SELECT DISTINCT client_version FROM app WHERE state NOT IN (4, 5)", &needed.client_versions));
  RETURN_IF_ERROR(
      gather("SELECT DISTINCT client_version FROM mount WHERE client_version != '' AND EXISTS "
             "(SELECT 1 FROM reference WHERE kind = 'mount' AND target = mount.id)",
             &needed.client_versions));
  return needed;
}

// Of what one worker keeps, that which may go, in orders of a bounded size; none in a dry run, which counts.
std::vector<DropImages> Collector::Choose(const StoreInventory& inventory, const Needed& needed, bool dry_run,
                                          Line* layers, Line* files) {
  // The order that the next one goes into; null when it stays.
  std::vector<DropImages> drops;
  const auto place = [&](Line* line, bool in_use, const auto& stored) -> DropImages* {
    if (in_use) {
      ++line->in_use;
    } else if (stored.idle_secs() < line->keep_secs) {
      ++line->waiting;
    } else if (dry_run) {
      ++line->freed;
      line->freed_bytes += stored.bytes();
    } else {
      const bool room = !drops.empty() && drops.back().min_idle_secs() == line->keep_secs &&
                        drops.back().layer_ids_size() + drops.back().object_sha256_size() < kDropAtOnce;
      if (!room) drops.emplace_back().set_min_idle_secs(line->keep_secs);
      return &drops.back();
    }
    return nullptr;
  };
  for (const auto& layer : inventory.layers()) {
    const bool runtime =
        std::any_of(layer.client_versions().begin(), layer.client_versions().end(),
                    [&](const auto& version) { return needed.client_versions.contains(version); });
    const bool in_use = !layer.held_by().empty() || runtime || needed.layers.contains(layer.layer_id());
    if (DropImages* drop = place(layers, in_use, layer)) drop->add_layer_ids(layer.layer_id());
  }
  for (const auto& object : inventory.objects()) {
    if (DropImages* drop = place(files, needed.files.contains(object.sha256()), object))
      drop->add_object_sha256(object.sha256());
  }
  return drops;
}

Status Collector::OfWorkers(bool dry_run, Report* report) {
  Line layers{.kind = "layers", .keep_secs = options_.keep_images_secs};
  Line files{.kind = "files of workers", .keep_secs = options_.keep_files_secs};
  const double before = clock_->UnixSeconds();
  ASSIGN_OR_RETURN(auto used, LayersOfImages());
  ASSIGN_OR_RETURN(auto workers, Inventories(false, &report->notes));
  if (!dry_run && !workers.empty() && report->notes.empty())
    RETURN_IF_ERROR(MarkLost(used, before, workers).status());
  ASSIGN_OR_RETURN(Needed needed,
                   GatherNeeded());  // after the inventory: what was referred to meanwhile counts
  for (const auto& [worker_id, inventory] : workers) {
    for (const DropImages& drop : Choose(inventory, needed, dry_run, &layers, &files)) {
      RETURN_IF_ERROR(Before("layers"));
      ASSIGN_OR_RETURN(auto answer, Await<Result<StoreDropped>>([&](auto reply) {
                         deps_.workers->Drop(worker_id, drop, std::move(reply));
                       }));
      if (!answer.ok()) {
        report->notes.push_back(worker_id + ": " + answer.status().message());
        continue;
      }
      layers.freed += static_cast<uint64_t>(answer->layer_ids_size());
      layers.freed_bytes += answer->layer_bytes();
      files.freed += static_cast<uint64_t>(answer->object_sha256_size());
      files.freed_bytes += answer->object_bytes();
      if (!answer->error().empty()) report->notes.push_back(worker_id + ": " + answer->error());
    }
  }
  report->lines.push_back(layers);
  report->lines.push_back(files);
  return OkStatus();
}

}  // namespace lydian::control
