// Finds what nobody refers to any more and removes it: rows of state.db with their files, and what workers
// keep of images and mounts. docs/operations.md says what is kept how long.
//
// A thing without a reference becomes an orphan (table `orphan`, with the time), and goes when it has been
// one for long enough. Whoever is told meanwhile that it exists takes it out of the table again (Keep).
// Looking is done on the collector's thread; every change is a small slice on the objects strand, where
// nobody else can refer to what goes. Rows go before files: a kill between leaves a file without a row, which
// the first pass after a start finds.
//
// Thread-safety: Pass from any thread but the strand; it blocks, one at a time. Ownership: what is given
// outlives Stop.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "blob/blob_store.h"
#include "control/engine.h"
#include "control/references.h"
#include "store/database.h"

namespace lydian::control {

struct CollectorOptions {
  double first_after_secs = 300, every_secs = 3600;
  double keep_files_secs = 86'400;        // blobs, contents, mounts, parts of uploads
  double keep_images_secs = 14 * 86'400;  // images, and layers since their last use
  double keep_apps_secs = 30 * 86'400;    // apps that are stopped, with their functions
  size_t slice = 100;                     // rows of one transaction
};

struct CollectorDeps {
  blob::BlobStore* blobs = nullptr;
  Workers* workers = nullptr;  // may be null
  // Which of these blobs a call names. Blocks.
  std::function<Result<std::set<std::string>>(const std::vector<std::string>& blob_ids)> blobs_of_calls;
  // Asked before each step; an error ends the pass there. For tests: what a kill would do. May be null.
  std::function<Status(const std::string& step)> before;
};

class Collector {
 public:
  Collector(store::Database* db, Strand* strand, Clock* clock, CollectorOptions options, CollectorDeps deps);
  ~Collector();

  void Start();  // passes by itself
  void Stop();   // ends a pass where it is, and waits for it
  bool Stopping();

  struct Line {
    std::string kind;  // "images", "blobs", ...
    uint64_t freed = 0, freed_bytes = 0;
    uint64_t in_use = 0;   // somebody refers to them
    uint64_t waiting = 0;  // nobody does, but not for long enough
    double keep_secs = 0;
  };
  struct Report {
    std::vector<Line> lines;
    std::vector<std::string> notes;  // what could not be looked at, and why
  };
  // `dry_run` removes nothing, and counts as freed what would go now.
  Result<Report> Pass(bool dry_run);

  // On the strand; UNAVAILABLE when that has ended. From the collector's thread.
  Status OnStrand(const std::function<Status()>& work);
  // What all workers keep; a note for each that doesn't answer.
  Result<std::vector<std::pair<std::string, StoreInventory>>> Inventories(bool verify,
                                                                          std::vector<std::string>* notes);
  // Images whose layers no worker has: they are built again when they are asked for. `references` from before
  // the inventory was taken.
  struct LayerUse {
    std::string image_id, layer_id;
  };
  Result<std::vector<LayerUse>> LayersOfImages();
  Result<std::vector<LayerUse>> MarkLost(const std::vector<LayerUse>& used, double before,
                                         const std::vector<std::pair<std::string, StoreInventory>>& workers);

  double Now() const { return clock_->UnixSeconds(); }
  const CollectorDeps& deps() const { return deps_; }

 private:
  struct Kind;
  static const Kind& KindOf(RefKind kind);
  Status Before(const std::string& step);
  Status Apps(bool dry_run, Line* line);
  Status Rows(RefKind kind, bool dry_run, Line* line);
  Status NoteOrphans(const Kind& kind);
  Status ForgetReferred(const Kind& kind);
  Status RemoveSlice(const Kind& kind, const std::vector<std::string>& due, double until, Line* line,
                     size_t* removed);
  Status RemoveRow(store::Session& session, const Kind& kind, const std::string& target, double since,
                   uint64_t* bytes, bool* file_too);
  Status Strays(bool dry_run, Line* line);
  struct Needed;
  Result<Needed> GatherNeeded();
  static std::vector<DropImages> Choose(const StoreInventory& inventory, const Needed& needed, bool dry_run,
                                        Line* layers, Line* files);
  Status OfWorkers(bool dry_run, Report* report);
  void Loop();

  store::Database* db_;
  Strand* strand_;
  Clock* clock_;
  const CollectorOptions options_;
  const CollectorDeps deps_;
  std::mutex pass_mutex_;  // held by a pass
  uint64_t passes_ = 0;    // by it
  std::mutex mutex_;       // guards stopping_
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lydian::control
