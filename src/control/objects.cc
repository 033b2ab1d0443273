#include "control/objects.h"

#include "base/fd.h"
#include "base/log.h"
#include "control/references.h"
#include "control/state_schema.h"

namespace lydian::control {

Result<std::unique_ptr<Objects>> Objects::Open(ObjectsOptions options, Clock* clock) {
  RETURN_IF_ERROR(MakeDirs(options.state_dir, 0700));
  ASSIGN_OR_RETURN(Key key, Key::LoadOrCreate(options.state_dir + "/key"));
  ASSIGN_OR_RETURN(auto db, store::Database::Open(options.state_dir + "/state.db", StateMigrations()));
  RETURN_IF_ERROR(NoteOldReferences(*db));
  std::unique_ptr<Objects> objects(new Objects(std::move(options), clock, std::move(key), std::move(db)));
  RETURN_IF_ERROR(objects->tokens_->Load(objects->options_.state_dir + "/first-token.json"));
  return objects;
}

Objects::Objects(ObjectsOptions options, Clock* clock, Key key, std::unique_ptr<store::Database> db)
    : options_(std::move(options)), clock_(clock), key_(std::move(key)), db_(std::move(db)) {
  tokens_ = std::make_unique<Tokens>(db_.get(), clock_);
  environments_ = std::make_unique<Environments>(db_.get(), clock_);
  apps_ = std::make_unique<Apps>(db_.get(), clock_, &strand_, options_.apps);
  functions_ = std::make_unique<Functions>(db_.get(), clock_);
  mounts_ = std::make_unique<Mounts>(db_.get(), clock_, &strand_);
  secrets_ = std::make_unique<Secrets>(db_.get(), clock_, &key_);
  images_ = std::make_unique<Images>(db_.get(), clock_, &strand_, secrets_.get(), options_.images);
  blobs_ = std::make_unique<Blobs>(db_.get(), clock_, options_.uploads);
  answers_ = std::make_unique<Answers>(db_.get(), clock_);
  apps_->OnStopped([this](const std::string& app_id) { secrets_->DropOfApp(app_id); });
}

Objects::~Objects() { Stop(); }

void Objects::Attach(Engine* engine, Workers* workers, LogStore* logs) {
  apps_->Attach(engine, logs);
  images_->Attach(engine, workers, logs);
  logs_ = logs;
}

void Objects::StartCollector(const CollectorOptions& options, CollectorDeps deps) {
  collector_ = std::make_unique<Collector>(db_.get(), &strand_, clock_, options, std::move(deps));
  store_check_ =
      std::make_unique<StoreCheck>(db_.get(), collector_.get(), tokens_.get(), logs_, options_.state_dir);
  collector_->Start();
}

void Objects::Stop() {
  strand_.Stop();  // whoever waits for it is told
  if (collector_ != nullptr) collector_->Stop();
  if (store_check_ != nullptr) store_check_->Stop();
  if (Status flushed = tokens_->Flush(); !flushed.ok())
    LOG_WARN("could not note when tokens were used", {{"error", flushed}});
}

}  // namespace lydian::control
