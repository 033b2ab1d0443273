#include "control/images.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "base/log.h"
#include "control/references.h"

namespace lydian::control {

namespace {

constexpr Millis kMaxRetryDelay{5000};
constexpr auto kRetryFor = std::chrono::minutes(3);  // builds that no worker has finished
constexpr Millis kCancelAgain{5000};                 // its worker may not have been there
constexpr char kBuilderVersion[] = "2025.06";

// A part of a digest's text, so that no two lists of parts give the same text.
void Add(std::string* text, std::string_view part) {
  *text += std::to_string(part.size());
  *text += ':';
  text->append(part);
}

Image FromRow(store::Row& row) {
  Image image;
  image.id = row.Text(0), image.workspace_id = row.Text(1), image.environment_id = row.Text(2);
  image.state = static_cast<ImageState>(row.Int(3)), image.builder_version = row.Text(4);
  image.libc_version = row.Text(6), image.error = row.Text(7), image.created_at = row.Real(8),
  image.finished_at = row.Real(9);
  if (!image.spec.ParseFromString(row.Text(5))) image.spec.Clear();
  return image;
}

constexpr char kColumns[] =
    "SELECT id, workspace_id, environment_id, state, builder_version, spec, libc_version, error, created_at, "
    "finished_at FROM image ";

}  // namespace

Result<Image> Images::ById(const std::string& image_id) {
  ASSIGN_OR_RETURN(auto rows, db_->Query(std::string(kColumns) + "WHERE id = ?", {image_id}));
  if (rows.empty()) return NoSuch("image", "im", image_id);
  return FromRow(rows[0]);
}

Result<Image> Images::Get(const Scope& scope, const std::string& image_id) {
  ASSIGN_OR_RETURN(Image image, ById(image_id));
  if (!scope.Sees(image.workspace_id, image.environment_id)) return NoSuch("image", "im", image_id);
  return image;
}

Result<std::vector<Image>> Images::List(size_t most) {
  std::vector<Image> images;
  RETURN_IF_ERROR(
      db_->ForEach(std::string(kColumns) + "ORDER BY created_at DESC LIMIT ?", {most}, [&](store::Row& row) {
        images.push_back(FromRow(row));
        return OkStatus();
      }));
  return images;
}

// Everything that can make a difference to what comes out, in a fixed order.
Result<std::string> Images::RecipeDigest(const Scope& scope, const ImageRequest& request) {
  std::string text;
  for (std::string_view part :
       {std::string_view("1"), std::string_view(scope.workspace_id), std::string_view(request.environment_id),
        std::string_view(request.spec.builder_version()), std::string_view(request.build_function_digest),
        std::string_view(request.build_input)}) {
    Add(&text, part);
  }
  Add(&text, std::to_string(request.spec.dockerfile_commands_size()));
  for (const auto& line : request.spec.dockerfile_commands()) Add(&text, line);
  for (const auto& [name, id] : request.bases) Add(&text, name), Add(&text, id);
  std::vector<std::string> files;
  for (const auto& file : request.spec.context()) {
    files.push_back(file.path() + '\0' + file.sha256() + '\0' + std::to_string(file.mode()));
  }
  std::sort(files.begin(), files.end());
  Add(&text, std::to_string(files.size()));
  for (const auto& file : files) Add(&text, file);
  EnvMap args(request.spec.build_args().begin(), request.spec.build_args().end());
  for (const auto& [key, value] : args) Add(&text, key), Add(&text, value);
  for (const auto& id : request.secret_ids) {
    ASSIGN_OR_RETURN(Secret secret, secrets_->Get(scope, id));
    Add(&text, secret.digest);
  }
  return Sha256Hex(text);
}

Result<Image> Images::GetOrBuild(const Scope& scope, const ImageRequest& request) {
  if (request.spec.builder_version() != kBuilderVersion) {
    return Unimplemented(
        "image builder version '" + request.spec.builder_version().substr(0, 40) +
        "' isn't built yet; use 2025.06 (unset MODAL_IMAGE_BUILDER_VERSION, or `modal environment update "
        "--set-image-builder-version 2025.06`)");
  }
  for (const auto& [name, id] : request.bases) {
    ASSIGN_OR_RETURN(Image base, Get(scope, id));
    if (base.state != ImageState::kReady) return FailedPrecondition("the base image " + id + " isn't built");
  }
  ASSIGN_OR_RETURN(std::string recipe, RecipeDigest(scope, request));
  bool fresh = request.force_build || request.ignore_cache;
  std::string image_id = fresh ? NewId("im") : DigestId("im", recipe);
  if (!fresh) {
    ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT image_id FROM recipe WHERE digest = ?", {recipe}));
    if (!rows.empty()) image_id = rows[0].Text(0);
    auto known = ById(image_id);
    if (known.ok() && (known->state == ImageState::kBuilding || known->state == ImageState::kReady)) {
      RETURN_IF_ERROR(Keep(*db_, RefKind::kImage, image_id));
      Ensure(*known);
      return known;
    }
    if (known.ok()) logs_->Reopen(image_id);
  }
  RETURN_IF_ERROR(Insert(scope, image_id, recipe, request));
  Start(image_id, options_.asked_grace);
  return ById(image_id);
}

// What it is built from. Its layers come when it is.
std::vector<Reference> Images::ReferencesOf(const Scope& scope, const ImageRequest& request) {
  std::vector<Reference> references;
  for (const auto& [name, id] : request.bases) references.push_back({RefKind::kImage, id});
  for (const auto& id : request.secret_ids) references.push_back({RefKind::kSecret, id});
  for (const auto& file : request.spec.context())
    references.push_back({RefKind::kObject, ObjectTarget(scope.workspace_id, file.sha256())});
  if (!request.build_input_blob.empty()) references.push_back({RefKind::kBlob, request.build_input_blob});
  return references;
}

Status Images::Insert(const Scope& scope, const std::string& image_id, const std::string& recipe,
                      const ImageRequest& request) {
  BuildSpec spec = request.spec;
  spec.set_image_id(image_id);
  spec.set_workspace_id(scope.workspace_id);
  spec.set_ignore_cache(request.force_build || request.ignore_cache);
  for (const auto& [name, id] : request.bases) {
    ASSIGN_OR_RETURN(Image base, ById(id));
    BaseImage& entry = (*spec.mutable_bases())[name];
    *entry.mutable_layer_ids() = base.spec.layer_ids();
    *entry.mutable_config() = base.spec.config();
    entry.set_python_version(base.spec.python_version());
  }
  std::string parent = request.bases.empty() ? "" : request.bases[0].second;
  std::string bytes = spec.SerializeAsString(), secrets = nlohmann::json(request.secret_ids).dump();
  return db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO image (id, workspace_id, environment_id, recipe, state, builder_version, build, "
        "secrets, "
        "parent, function_id, input, indexed, spec, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET state = excluded.state, build = excluded.build, secrets = "
        "excluded.secrets, function_id = excluded.function_id, input = excluded.input, error = '', "
        "created_at = excluded.created_at",
        {image_id, scope.workspace_id, request.environment_id, recipe, ImageState::kBuilding,
         spec.builder_version(), store::Blob{bytes}, secrets, parent, request.build_function_id,
         store::Blob{request.build_input}, !request.ignore_cache, store::Blob{""}, clock_->UnixSeconds()}));
    RETURN_IF_ERROR(Release(session, image_id));
    RETURN_IF_ERROR(Keep(session, RefKind::kImage, image_id));
    return Refer(session, image_id, ReferencesOf(scope, request));
  });
}

Status Images::Resume() {
  ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT id FROM image WHERE state = ?", {ImageState::kBuilding}));
  for (auto& row : rows) {
    LOG_INFO("asking for a build again", {{"image_id", row.Text(0)}});
    Start(row.Text(0), options_.resumed_grace);
  }
  return OkStatus();
}

// A build whose end could not be stored (a full disk) is left without anybody who works on it.
void Images::Ensure(const Image& image) {
  if (image.state != ImageState::kBuilding) return;
  auto known = builds_.find(image.id);
  if (known != builds_.end()) {
    known->second.wanted = true;
    if (known->second.followers == 0) Watch(image.id, known->second, options_.asked_grace);
    return;
  }
  logs_->Reopen(image.id);
  Start(image.id, options_.asked_grace);
}

Status Images::Rebuild(const std::string& image_id) {
  ASSIGN_OR_RETURN(auto rows, db_->Query("SELECT state, function_id FROM image WHERE id = ?", {image_id}));
  if (rows.empty()) return NoSuch("image", "im", image_id);
  if (static_cast<ImageState>(rows[0].Int(0)) != ImageState::kLost) return OkStatus();
  ASSIGN_OR_RETURN(
      auto bases,
      db_->Query("SELECT image.id, state FROM reference JOIN image ON image.id = target WHERE holder "
                 "= ? AND kind = 'image' AND state != ?",
                 {image_id, ImageState::kReady}));
  for (const auto& base : bases) RETURN_IF_ERROR(Rebuild(base.Text(0)));
  if (!bases.empty()) return OkStatus();  // its turn comes when they are there and it is asked for again
  if (!rows[0].Text(1).empty()) {
    return FailedPrecondition("a layer of image " + image_id +
                              " is gone, and it was made by run_function: run or deploy its app again");
  }
  RETURN_IF_ERROR(
      db_->Execute("UPDATE image SET state = ?, error = '' WHERE id = ?", {ImageState::kBuilding, image_id}));
  LOG_INFO("building an image again whose layers are gone", {{"image_id", image_id}});
  logs_->Reopen(image_id);
  Start(image_id, options_.abandoned_after * 120);
  return OkStatus();
}

Images::Build* Images::Find(const std::string& image_id, uint64_t serial) {
  auto it = builds_.find(image_id);
  return it == builds_.end() || it->second.serial != serial ? nullptr : &it->second;
}

void Images::Start(const std::string& image_id, Millis grace) {
  Build& build = builds_[image_id];
  build = {};
  build.serial = next_serial_++;
  build.began = std::chrono::steady_clock::now();
  auto rows = db_->Query("SELECT workspace_id, function_id FROM image WHERE id = ?", {image_id});
  if (rows.ok() && !rows->empty()) {  // else RunOnce says what is wrong
    build.by_function = !(*rows)[0].Text(1).empty();
    build.place = (*rows)[0].Text(0) + (build.by_function ? "/functions" : "");
  }
  Watch(image_id, build, grace);
  Run(image_id, build.serial);
}

std::shared_ptr<void> Images::Follow(const std::string& image_id) {
  auto it = builds_.find(image_id);
  if (it == builds_.end()) return nullptr;
  Build& build = it->second;
  ++build.followers;
  ++build.watch;
  build.wanted = true;
  return {nullptr, [this, strand = strand_, image_id, serial = build.serial](void*) {
            strand->Post([this, image_id, serial] {
              Build* left = Find(image_id, serial);
              if (left != nullptr && --left->followers == 0) Watch(image_id, *left, options_.abandoned_after);
            });
          }};
}

void Images::Watch(const std::string& image_id, Build& build, Millis grace) {
  strand_->PostAfter(grace, [this, image_id, serial = build.serial, watch = ++build.watch] {
    Build* late = Find(image_id, serial);
    if (late != nullptr && late->watch == watch && late->followers == 0) Abandon(image_id, *late);
  });
}

void Images::Abandon(const std::string& image_id, Build& build) {
  if (build.by_function && !build.build_id.empty()) return;  // its container ends with the app
  LOG_INFO("nobody waits for a build any more", {{"image_id", image_id}, {"build_id", build.build_id}});
  build.wanted = false;
  if (build.build_id.empty()) {  // waits for its turn
    BuildResult result;
    result.set_cancelled(true);
    return Finish(image_id, result);
  }
  build.cancelling = true;
  workers_->CancelBuild(build.build_id);
  Watch(image_id, build, kCancelAgain);
}

bool Images::TakePlace(const std::string& image_id, Build& build) {
  if (build.placed) return true;
  Place& place = places_[build.place];
  if (place.running >= options_.builds_at_once) {
    place.waiting.emplace_back(image_id, build.serial);
    Say(image_id,
        "Waiting: " + std::to_string(place.running) +
            " images of this workspace are being built; this one begins when one of them is done.\n");
    return false;
  }
  ++place.running;
  return build.placed = true;
}

void Images::LeavePlace(const Build& build) {
  if (!build.placed) return;
  auto it = places_.find(build.place);
  Place& place = it->second;
  --place.running;
  while (!place.waiting.empty()) {
    auto [image_id, serial] = place.waiting.front();
    place.waiting.pop_front();
    Build* next = Find(image_id, serial);
    if (next == nullptr) continue;
    // It has the place from now on, and passes it on when it is given up before it runs.
    next->placed = true;
    ++place.running;
    strand_->Post([this, id = image_id, of = serial] { Run(id, of); });
    return;
  }
  if (place.running == 0) places_.erase(it);
}

void Images::Run(const std::string& image_id, uint64_t serial) {
  Build* build = Find(image_id, serial);
  if (build == nullptr || !TakePlace(image_id, *build)) return;
  build->build_id = NewId("bu");
  ++build->attempts;
  if (Status started = RunOnce(image_id, build->build_id); !started.ok()) {
    BuildResult failed;
    failed.set_error(started.message());
    Finish(image_id, failed);
  }
}

Status Images::RunOnce(const std::string& image_id, const std::string& build_id) {
  ASSIGN_OR_RETURN(
      auto rows,
      db_->Query("SELECT build, secrets, parent, function_id, input FROM image WHERE id = ?", {image_id}));
  if (rows.empty()) return NoSuch("image", "im", image_id);
  if (!rows[0].Text(3).empty()) {
    std::string parent = rows[0].Text(2);
    engine_->RunBuilder(rows[0].Text(3), rows[0].Text(4),
                        [this, image_id, build_id, parent](BuilderOutcome outcome) {
                          strand_->Post([this, image_id, build_id, parent, outcome] {
                            auto it = builds_.find(image_id);
                            if (it != builds_.end() && it->second.build_id == build_id)
                              OnBuilder(image_id, parent, outcome);
                          });
                        });
    return OkStatus();
  }
  BuildSpec spec;
  if (!spec.ParseFromString(rows[0].Text(0))) return DataLoss("the recipe of " + image_id + " is damaged");
  spec.set_build_id(build_id);
  auto ids = nlohmann::json::parse(rows[0].Text(1), nullptr, false);
  std::vector<std::string> secret_ids;
  for (const auto& id : ids) {
    if (id.is_string()) secret_ids.push_back(id.get<std::string>());
  }
  ASSIGN_OR_RETURN(EnvMap env, secrets_->Values(secret_ids));
  for (const auto& [key, value] : env) (*spec.mutable_env())[key] = value;
  workers_->StartBuild(spec, [this, image_id, build_id](const BuildUpdate& update) {
    strand_->Post([this, image_id, build_id, update] { OnUpdate(image_id, build_id, update); });
  });
  return OkStatus();
}

void Images::Say(const std::string& image_id, const std::string& text) {
  LogRecord record;
  record.unix_nanos = clock_->UnixNanos();
  record.file_descriptor = 3;
  record.data = text;
  logs_->Append(image_id, {record});
}

void Images::OnUpdate(const std::string& image_id, const std::string& build_id, const BuildUpdate& update) {
  auto it = builds_.find(image_id);
  if (it == builds_.end() || it->second.build_id != build_id) return;  // an earlier attempt's
  if (update.has_log()) {
    LogRecord record;
    record.unix_nanos = update.log().unix_nanos() != 0 ? update.log().unix_nanos() : clock_->UnixNanos();
    record.file_descriptor = update.log().file_descriptor() != 0 ? update.log().file_descriptor() : 1;
    record.data = update.log().data();
    logs_->Append(image_id, {record});
  }
  if (update.has_result()) OnResult(image_id, update.result());
}

void Images::OnResult(const std::string& image_id, const BuildResult& result) {
  Build& build = builds_[image_id];
  if (result.cancelled() && build.cancelling && build.wanted) {  // somebody came back meanwhile
    build.cancelling = false;
    --build.attempts;
    return Run(image_id, build.serial);
  }
  if (result.cancelled() && !build.cancelling) {  // nobody here told the worker to
    BuildResult given_back;
    given_back.set_error("its worker cancelled the build");
    given_back.set_retryable(true);
    return OnResult(image_id, given_back);
  }
  bool again = !result.ok() && result.retryable() && build.wanted &&
               build.attempts < options_.most_attempts &&
               std::chrono::steady_clock::now() - build.began < kRetryFor;
  if (!again) return Finish(image_id, result);
  if (build.attempts == 1)
    Say(image_id, "The build was interrupted (" + result.error() + "); it starts again.\n");
  build.build_id.clear();
  build.delay = std::min(build.delay * 2, kMaxRetryDelay);
  strand_->PostAfter(build.delay, [this, image_id, serial = build.serial] { Run(image_id, serial); });
}

void Images::OnBuilder(const std::string& image_id, const std::string& parent_id,
                       const BuilderOutcome& outcome) {
  BuildResult result;
  auto parent = ById(parent_id);
  if (!outcome.status.ok() || !parent.ok()) {
    result.set_error(outcome.status.ok() ? parent.status().message() : outcome.status.message());
  } else {
    result.set_ok(true);
    *result.mutable_image() = parent->spec;
    result.mutable_image()->add_layer_ids(outcome.layer_id);
    result.set_libc_version(parent->libc_version);
  }
  Finish(image_id, result);
}

void Images::Finish(const std::string& image_id, const BuildResult& result) {
  if (auto build = builds_.extract(image_id)) LeavePlace(build.mapped());
  ImageSpec spec = result.image();
  spec.set_image_id(image_id);
  std::string bytes = result.ok() ? spec.SerializeAsString() : std::string();
  std::string error = result.ok()          ? ""
                      : result.cancelled() ? "the build was cancelled: nobody waited for it any more"
                                           : result.error();
  if (!result.ok() && error.empty()) error = "the build failed";
  Status stored = db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute(
        "UPDATE image SET state = ?, spec = ?, libc_version = ?, error = ?, finished_at = ? WHERE id = ?",
        {result.ok() ? ImageState::kReady : ImageState::kFailed, store::Blob{bytes}, result.libc_version(),
         error, clock_->UnixSeconds(), image_id}));
    if (!result.ok()) return OkStatus();
    std::vector<Reference> layers;
    for (const auto& id : spec.layer_ids()) layers.push_back({RefKind::kLayer, id});
    RETURN_IF_ERROR(Release(session, image_id, RefKind::kLayer));
    RETURN_IF_ERROR(Refer(session, image_id, layers));
    return session.Execute(
        "INSERT INTO recipe (digest, image_id) SELECT recipe, id FROM image WHERE id = ? AND indexed = 1 "
        "ON CONFLICT (digest) DO UPDATE SET image_id = excluded.image_id",
        {image_id});
  });
  if (!stored.ok())
    LOG_ERROR("could not note the end of a build", {{"image_id", image_id}, {"error", stored}});
  if (result.ok()) {
    LOG_INFO("an image is ready", {{"image_id", image_id}, {"layers", spec.layer_ids_size()}});
  } else {
    LOG_INFO("a build failed", {{"image_id", image_id}});
  }
  logs_->MarkDone(image_id);
}

}  // namespace lydian::control
