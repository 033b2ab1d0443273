// Everything of control but calls: opened once, owns state.db, its strand and the services that live on it.
//
//   ASSIGN_OR_RETURN(auto objects, Objects::Open({.state_dir = dir}, &SystemClock()));
//   objects->Attach(engine, workers, logs);
//   ... api::Start(...)                     // functions go to the engine, interrupted work goes on
//
// Thread-safety: strand() and tokens() from any thread; the services only on the strand (SQL is synchronous
// there, and the loop of gRPC never waits for it). Ownership: engine, workers and logs outlive this or Stop()
// was called before.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/executor.h"
#include "control/answers.h"
#include "control/apps.h"
#include "control/blobs.h"
#include "control/collector.h"
#include "control/environments.h"
#include "control/functions.h"
#include "control/images.h"
#include "control/key.h"
#include "control/mounts.h"
#include "control/secrets.h"
#include "control/store_check.h"
#include "control/tokens.h"
#include "store/database.h"

namespace lydian::control {

struct ObjectsOptions {
  std::string state_dir;  // of control: state.db, key, first-token.json
  AppOptions apps;
  ImageOptions images;
  UploadLimits uploads;
};

class Objects {
 public:
  static Result<std::unique_ptr<Objects>> Open(ObjectsOptions options, Clock* clock);
  ~Objects();

  void Attach(Engine* engine, Workers* workers, LogStore* logs);
  // Begins to collect what nobody refers to; after Attach, once what is to live is there. Without it nothing
  // is collected.
  void StartCollector(const CollectorOptions& options, CollectorDeps deps);
  // Ends the strand; what was posted and not run is dropped.
  void Stop();

  Strand& strand() { return strand_; }
  Tokens& tokens() { return *tokens_; }
  const Key& key() const { return key_; }
  Clock& clock() { return *clock_; }
  Environments& environments() { return *environments_; }
  Apps& apps() { return *apps_; }
  Functions& functions() { return *functions_; }
  Mounts& mounts() { return *mounts_; }
  Images& images() { return *images_; }
  Secrets& secrets() { return *secrets_; }
  Blobs& blobs() { return *blobs_; }
  Answers& answers() { return *answers_; }
  Collector* collector() { return collector_.get(); }       // null until it was started; on any thread
  StoreCheck* store_check() { return store_check_.get(); }  // likewise

 private:
  Objects(ObjectsOptions options, Clock* clock, Key key, std::unique_ptr<store::Database> db);

  ObjectsOptions options_;
  Clock* clock_;
  Key key_;
  std::unique_ptr<store::Database> db_;
  Strand strand_{"objects"};
  std::unique_ptr<Tokens> tokens_;
  std::unique_ptr<Environments> environments_;
  std::unique_ptr<Apps> apps_;
  std::unique_ptr<Functions> functions_;
  std::unique_ptr<Mounts> mounts_;
  std::unique_ptr<Secrets> secrets_;
  std::unique_ptr<Images> images_;
  std::unique_ptr<Blobs> blobs_;
  std::unique_ptr<Answers> answers_;
  LogStore* logs_ = nullptr;
  std::unique_ptr<Collector> collector_;
  std::unique_ptr<StoreCheck> store_check_;
};

}  // namespace lydian::control
