#include "control/collector.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "base/ids.h"
#include "control/objects.h"
#include "control/state_schema.h"
#include "image/layer_store.h"

namespace lydian::control {
namespace {

// A worker that has what the test says.
class StoreWorkers : public Workers {
 public:
  void StartBuild(const BuildSpec&, std::function<void(const BuildUpdate&)>) override {}
  void CancelBuild(const std::string&) override {}
  void Ensure(EnsureAsset::Kind, const std::string&, std::function<void(Status)>) override {}
  void TakeInventory(bool, std::function<void(Inventories)> reply) override {
    Inventories all;
    all.emplace("wk-1", inventory);
    reply(all);
  }
  void Drop(const std::string&, const DropImages& what,
            std::function<void(Result<StoreDropped>)> reply) override {
    StoreDropped dropped;
    for (const auto& id : what.layer_ids()) layers_dropped.insert(id), dropped.add_layer_ids(id);
    for (const auto& id : what.object_sha256()) files_dropped.insert(id), dropped.add_object_sha256(id);
    reply(dropped);
  }
  StoredLayer* AddLayer(const std::string& id, double idle_secs) {
    StoredLayer* layer = inventory.add_layers();
    layer->set_layer_id(id);
    layer->set_idle_secs(idle_secs);
    return layer;
  }
  StoreInventory inventory;
  std::set<std::string> layers_dropped, files_dropped;
};

class TestClock : public Clock {
 public:
  SteadyTime Now() const override { return SystemClock().Now(); }
  int64_t UnixNanos() const override { return SystemClock().UnixNanos() + ahead * 1'000'000'000; }
  int64_t ahead = 0;
};

class CollectorTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_).ok());
    Open();
  }
  void TearDown() override {
    Close();
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }
  void Open() {
    auto db = store::Database::Open(dir_ + "/state.db", StateMigrations());
    ASSERT_TRUE(db.ok()) << db.status();
    db_ = std::move(*db);
    blobs_ = blob::OpenDirectory({.path = dir_}).value();
    strand_ = std::make_unique<Strand>("test");
    mounts_ = std::make_unique<Mounts>(db_.get(), &clock_, strand_.get());
    CollectorDeps deps;
    deps.blobs = blobs_.get();
    deps.workers = &workers_;
    deps.blobs_of_calls = [this](const std::vector<std::string>& ids) -> Result<std::set<std::string>> {
      std::set<std::string> used;
      for (const auto& id : ids)
        if (in_calls_.contains(id)) used.insert(id);
      return used;
    };
    deps.before = [this](const std::string& step) {
      if (step != cut_at_) return OkStatus();
      if (kill_) raise(SIGKILL);
      return Aborted("cut");
    };
    collector_ = std::make_unique<Collector>(db_.get(), strand_.get(), &clock_, options_, std::move(deps));
  }
  void Close() {
    strand_->Stop();
    collector_.reset();
    mounts_.reset();
    strand_.reset();
    db_.reset();
    blobs_.reset();
  }
  // A pass in a process of its own, which is killed there.
  void KillAt(const std::string& step) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      cut_at_ = step;
      kill_ = true;
      Open();
      (void)collector_->Pass(false);
      _exit(1);  // it never came there
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << step;
  }
  Collector::Report Collect(bool dry_run = false) {
    auto report = collector_->Pass(dry_run);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : Collector::Report();
  }
  static const Collector::Line& LineOf(const Collector::Report& report, const std::string& kind) {
    static const Collector::Line kNone;
    for (const auto& line : report.lines)
      if (line.kind == kind) return line;
    ADD_FAILURE() << "no line " << kind;
    return kNone;
  }
  void Run(const std::string& sql, const store::Params& params = {}) {
    Status status = db_->Execute(sql, params);
    ASSERT_TRUE(status.ok()) << status;
  }
  int64_t Count(const std::string& sql) {
    return db_->Query("SELECT COUNT(*) FROM " + sql).value()[0].Int(0);
  }
  void AddBlob(const std::string& id) {
    ASSERT_TRUE(blobs_->PutBlob(id, "bytes").ok());
    Run("INSERT INTO blob (id, workspace_id, size, created_at) VALUES (?, 'ac-1', 5, ?)",
        {id, clock_.UnixSeconds()});
  }
  std::string AddFile(const std::string& workspace, const std::string& bytes) {
    std::string sha256 = blobs_->PutObject(bytes).value();
    EXPECT_TRUE(mounts_->NoteObject(workspace, sha256, bytes.size()).ok());
    return sha256;
  }
  std::string AddMount(const std::string& path, const std::string& sha256) {
    ContextFile file;
    file.set_path(path);
    file.set_sha256(sha256);
    auto mount = mounts_->Create({.workspace_id = "ac-1"}, "en-1", {file});
    EXPECT_TRUE(mount.ok()) << mount.status();
    return mount.ok() ? mount->id : "";
  }
  void AddImage(const std::string& id, const std::vector<Reference>& references, int state = 1) {
    Run("INSERT INTO image (id, workspace_id, environment_id, recipe, state, builder_version, build, "
        "secrets, "
        "parent, function_id, input, indexed, spec, created_at) VALUES (?, 'ac-1', 'en-1', ?, ?, '', '', "
        "'[]', "
        "'', '', '', 1, '', 0)",
        {id, "recipe of " + id, state});
    Run("INSERT INTO recipe (digest, image_id) VALUES (?, ?)", {"recipe of " + id, id});
    ASSERT_TRUE(Refer(*db_, id, references).ok());
  }

  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-collector-" + RandomHex(6));
  CollectorOptions options_;
  TestClock clock_;
  StoreWorkers workers_;
  std::set<std::string> in_calls_;
  std::string cut_at_;
  bool kill_ = false;
  std::unique_ptr<store::Database> db_;
  std::unique_ptr<blob::BlobStore> blobs_;
  std::unique_ptr<Strand> strand_;
  std::unique_ptr<Mounts> mounts_;
  std::unique_ptr<Collector> collector_;
};

TEST_F(CollectorTest, ABlobGoesADayAfterItsLastCall) {
  AddBlob("bl-called");
  AddBlob("bl-unused");
  in_calls_ = {"bl-called"};
  Collect();
  EXPECT_TRUE(blobs_->BlobSize("bl-unused").ok());  // somebody may be about to name it
  clock_.ahead += 86'399;
  EXPECT_EQ(LineOf(Collect(), "blobs").waiting, 1u);
  clock_.ahead += 2;
  auto dry = LineOf(Collect(/*dry_run=*/true), "blobs");
  EXPECT_EQ(dry.freed, 1u);
  EXPECT_TRUE(blobs_->BlobSize("bl-unused").ok());
  auto line = LineOf(Collect(), "blobs");
  EXPECT_EQ(line.freed, 1u);
  EXPECT_EQ(line.freed_bytes, 5u);
  EXPECT_EQ(line.in_use, 1u);
  EXPECT_EQ(blobs_->BlobSize("bl-unused").status().code(), Code::kNotFound);
  EXPECT_TRUE(blobs_->BlobSize("bl-called").ok());
  in_calls_.clear();
  Collect();
  EXPECT_TRUE(blobs_->BlobSize("bl-called").ok());  // its day begins now
  clock_.ahead += 86'401;
  Collect();
  EXPECT_EQ(Count("blob"), 0);
  EXPECT_EQ(Count("orphan"), 0);
}

TEST_F(CollectorTest, AnUploadThatIsNamedAtTheLastMomentStays) {
  AddBlob("bl-late");
  Collect();
  clock_.ahead += 90'000;
  in_calls_ = {"bl-late"};
  Collect();
  EXPECT_TRUE(blobs_->BlobSize("bl-late").ok());
  EXPECT_EQ(Count("orphan"), 0);
}

TEST_F(CollectorTest, AMountGoesThenItsFilesAndSharedOnesStay) {
  options_.keep_files_secs = 0;
  Close();
  Open();
  const std::string shared = AddFile("ac-1", "shared"), own = AddFile("ac-1", "own");
  AddFile("ac-2", "shared");  // another workspace has it too, in a mount of its own
  ASSERT_TRUE(Refer(*db_, "mo-other", {{RefKind::kObject, ObjectTarget("ac-2", shared)}}).ok());
  const std::string kept = AddMount("/a", AddFile("ac-1", "kept"));
  AddMount("/b", shared);
  AddMount("/c", own);
  ASSERT_TRUE(Refer(*db_, "de-1", {{RefKind::kMount, kept}}).ok());
  auto report = Collect();
  EXPECT_EQ(LineOf(report, "mounts").freed, 2u);
  EXPECT_EQ(LineOf(report, "mounts").in_use, 1u);
  EXPECT_EQ(LineOf(report, "files").freed, 2u);
  EXPECT_EQ(LineOf(report, "files").freed_bytes, 3u);  // the shared one's bytes are still needed
  EXPECT_TRUE(blobs_->ObjectSize(shared).ok());
  EXPECT_FALSE(blobs_->ObjectSize(own).ok());
  EXPECT_EQ(Count("mount"), 1);
  EXPECT_EQ(Count("reference WHERE holder LIKE 'mo-%'"), 3);
}

TEST_F(CollectorTest, WhoWasToldThatAFileIsThereMayMountItADayLater) {
  const std::string sha256 = AddFile("ac-1", "known");
  Collect();
  clock_.ahead += 80'000;
  EXPECT_TRUE(mounts_->Missing("ac-1", {sha256}).value().empty());
  clock_.ahead += 10'000;
  Collect();
  EXPECT_TRUE(blobs_->ObjectSize(sha256).ok());
  clock_.ahead += 86'401;
  Collect();
  EXPECT_EQ(mounts_->Missing("ac-1", {sha256}).value(), std::vector<std::string>{sha256});
}

TEST_F(CollectorTest, ImagesGoWithWhatTheyStoodOn) {
  AddImage("im-base", {{RefKind::kLayer, "ly-base"}});
  AddImage("im-1", {{RefKind::kImage, "im-base"}, {RefKind::kLayer, "ly-base"}, {RefKind::kLayer, "ly-1"}});
  AddImage("im-2", {{RefKind::kImage, "im-base"}, {RefKind::kLayer, "ly-base"}, {RefKind::kLayer, "ly-2"}});
  AddImage("im-building", {}, 0);
  ASSERT_TRUE(Refer(*db_, "de-1", {{RefKind::kImage, "im-2"}}).ok());
  for (const char* id : {"ly-base", "ly-1", "ly-2", "ly-free"}) workers_.AddLayer(id, 1e9);
  workers_.AddLayer("ly-young", 5);
  workers_.AddLayer("ly-held", 1e9)->set_held_by("a task or build");
  Collect();
  EXPECT_EQ(workers_.layers_dropped, std::set<std::string>{"ly-free"});
  clock_.ahead += 15 * 86'400;
  Collect();
  EXPECT_EQ(workers_.layers_dropped, (std::set<std::string>{"ly-free", "ly-1"}));
  EXPECT_EQ(Count("image"), 3);
  EXPECT_EQ(Count("recipe WHERE image_id = 'im-1'"), 0);
  ASSERT_TRUE(Release(*db_, "de-1").ok());
  Collect();
  clock_.ahead += 15 * 86'400;
  Collect();  // and the base with it, at once: it was not needed for as long
  EXPECT_EQ(Count("image"), 1);
  EXPECT_EQ(Count("reference"), 0);
  EXPECT_TRUE(workers_.layers_dropped.contains("ly-base"));
}

TEST_F(CollectorTest, LayersOfClientsThatAreInUseStay) {
  Run("INSERT INTO app (id, workspace_id, environment_id, description, state, created_at, created_by, "
      "client_version) VALUES ('ap-1', 'ac-1', 'en-1', '', 3, 0, '', '1.6.4')");
  workers_.AddLayer("ly-now", 1e9)->add_client_versions("1.6.4");
  workers_.AddLayer("ly-old", 1e9)->add_client_versions("1.5.0");
  workers_.AddLayer("ly-earlier-revision", 1e9);
  Collect();
  EXPECT_EQ(workers_.layers_dropped, (std::set<std::string>{"ly-old", "ly-earlier-revision"}));
}

TEST_F(CollectorTest, AnImageWhoseLayerIsGoneIsMarked) {
  AddImage("im-lost", {{RefKind::kLayer, "ly-gone"}});
  AddImage("im-sound", {{RefKind::kLayer, "ly-1"}});
  workers_.AddLayer("ly-1", 0);
  Collect();
  EXPECT_EQ(Count("image WHERE id = 'im-lost' AND state = 3"), 1);
  EXPECT_EQ(Count("image WHERE id = 'im-sound' AND state = 1"), 1);
}

TEST_F(CollectorTest, StoppedAppsGoWithTheirFunctions) {
  for (const auto& [id, state, at] :
       {std::tuple{"ap-old", 5, 1.0}, {"ap-new", 5, clock_.UnixSeconds()}, {"ap-alive", 3, 1.0}}) {
    Run("INSERT INTO app (id, workspace_id, environment_id, description, state, created_at, created_by, "
        "stopped_at) VALUES (?, 'ac-1', 'en-1', '', ?, 0, '', ?)",
        {id, state, at});
    const std::string function = std::string("fu-") + id;
    Run("INSERT INTO function (id, app_id, tag, handle) VALUES (?, ?, 'f', '')", {function, id});
    Run("INSERT INTO bound_function (id, base_id, params, options, created_at) VALUES (?, ?, '', '', 0)",
        {function + "b", function});
    Run("INSERT INTO class (id, app_id) VALUES (?, ?)", {std::string("cs-") + id, id});
  }
  EXPECT_EQ(LineOf(Collect(), "apps").freed, 1u);
  for (const char* table : {"app", "function", "bound_function", "class"})
    EXPECT_EQ(Count(table), 2) << table;
}

TEST_F(CollectorTest, AFileWithoutARowGoesWithTheFirstPassAfterAStart) {
  options_.keep_files_secs = 0;
  Close();
  Open();
  AddBlob("bl-n1");
  AddBlob("bl-n2");
  const std::string sha256 = AddFile("ac-1", "content");
  cut_at_ = "files of blobs";
  EXPECT_FALSE(collector_->Pass(false).ok());
  EXPECT_EQ(Count("blob"), 0);
  EXPECT_TRUE(blobs_->BlobSize("bl-n1").ok());
  EXPECT_FALSE(blobs_->ObjectSize(sha256).ok());
  Close();
  cut_at_.clear();
  Open();
  auto line = LineOf(Collect(), "files without a row");
  EXPECT_EQ(line.freed, 2u);
  size_t files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_ + "/blobs"))
    files += entry.is_regular_file();
  EXPECT_EQ(files, 0u);
}

TEST_F(CollectorTest, AKillAnywhereLeavesOnlyWhatTheNextStartCollects) {
  options_.keep_files_secs = options_.keep_images_secs = 0;
  options_.slice = 2;
  for (const char* step :
       {"apps", "images", "files of images", "mounts", "files of mounts", "files", "files of files", "blobs",
        "files of blobs", "files without a row", "workers", "layers"}) {
    Close();
    Open();
    for (int i = 0; i < 5; ++i) {
      AddBlob("bl-n" + std::to_string(i));
      AddMount("/a", AddFile("ac-1", "content " + std::to_string(i)));
      AddImage("im-" + std::to_string(i), {});
    }
    AddBlob("bl-kept");
    in_calls_ = {"bl-kept"};
    workers_.AddLayer("ly-free", 1);
    Close();
    KillAt(step);
    Open();
    Collect();
    for (const char* table : {"mount", "object", "image", "orphan", "reference", "recipe"})
      EXPECT_EQ(Count(table), 0) << table << " after a kill at " << step;
    EXPECT_TRUE(blobs_->BlobSize("bl-kept").ok());
    size_t files = 0;
    for (const char* folder : {"/blobs", "/objects"})
      for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_ + folder))
        files += entry.is_regular_file();
    EXPECT_EQ(files, 1u) << "after a kill at " << step;
    Run("DELETE FROM blob");
    ASSERT_TRUE(blobs_->DeleteBlob("bl-kept").ok());
    workers_.inventory.Clear();
  }
}

TEST(ReferencesTest, WhatWasStoredBeforeIsNotedOnce) {
  const std::string dir = std::filesystem::temp_directory_path() / ("lydian-references-" + RandomHex(6));
  ASSERT_TRUE(MakeDirs(dir).ok());
  {
    std::vector<store::Migration> old(StateMigrations().begin(), StateMigrations().begin() + 2);
    auto db = store::Database::Open(dir + "/state.db", old).value();
    GetMountResponse files;
    files.add_files()->set_sha256("ab");
    ImageSpec spec;
    spec.add_layer_ids("ly-1");
    ASSERT_TRUE(
        db->Execute("INSERT INTO mount (id, workspace_id, environment_id, checksum, files, created_at) "
                    "VALUES ('mo-1', 'ac-1', '', '', ?, 0)",
                    {store::Blob{files.SerializeAsString()}})
            .ok());
    ASSERT_TRUE(
        db->Execute("INSERT INTO image (id, workspace_id, environment_id, recipe, state, builder_version, "
                    "build, secrets, parent, function_id, input, indexed, spec, created_at) VALUES ('im-1', "
                    "'ac-1', '', '', 1, '', '', '[\"st-1\"]', 'im-0', '', '', 1, ?, 0)",
                    {store::Blob{spec.SerializeAsString()}})
            .ok());
  }
  auto objects = Objects::Open({.state_dir = dir}, &SystemClock());
  ASSERT_TRUE(objects.ok()) << objects.status();
  (*objects)->Stop();
  auto db = store::Database::Open(dir + "/state.db", StateMigrations()).value();
  std::set<std::string> found;
  ASSERT_TRUE(db->ForEach("SELECT holder, kind, target FROM reference", {}, [&](store::Row& row) -> Status {
                  found.insert(row.Text(0) + " " + row.Text(1) + " " + row.Text(2));
                  return OkStatus();
                }).ok());
  EXPECT_EQ(found, (std::set<std::string>{"mo-1 object ac-1/ab", "mo-1 layer " + image::MountLayerId("mo-1"),
                                          "im-1 layer ly-1", "im-1 secret st-1", "im-1 image im-0"}));
  objects->reset();
  db.reset();
  ASSERT_TRUE(RemoveTree(dir).ok());
}

}  // namespace
}  // namespace lydian::control
