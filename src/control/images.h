// Images: an id that follows from the recipe and its inputs, its state, and the builds that make it. Two who
// ask for the same image wait for one build; an image that is ready answers at once; a failed build is built
// again when somebody asks.
//
// Building is a worker's work (Workers::StartBuild, or Engine::RunBuilder for run_function). Build logs go to
// the LogStore under the image's id; that stream is done when the image is ready or failed. A build whose
// worker is lost starts again, a few times; one that control's restart cut is asked for again by Resume().
// A workspace has a few builds at once, the others wait their turn and say so. A build that nobody follows
// any more is cancelled.
//
// Thread-safety: the objects strand only; callbacks of workers come back to it by themselves.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/status.h"
#include "control/engine.h"
#include "control/log_store.h"
#include "control/references.h"
#include "control/scope.h"
#include "control/secrets.h"
#include "lydian/worker.pb.h"
#include "store/database.h"

namespace lydian::control {

// Lost: it was ready, and a layer of it is gone. It is built again when it is asked for or needed.
enum class ImageState { kBuilding = 0, kReady = 1, kFailed = 2, kLost = 3 };

struct Image {
  std::string id, workspace_id, environment_id, builder_version, libc_version, error;
  ImageState state = ImageState::kBuilding;
  ImageSpec spec;  // when ready
  double created_at = 0, finished_at = 0;
};

// What a client asks for. `spec` has commands, context, build_args, builder_version; the rest is filled in
// here.
struct ImageRequest {
  std::string environment_id;
  BuildSpec spec;
  std::vector<std::pair<std::string, std::string>> bases;  // name in FROM -> image id
  std::vector<std::string> secret_ids;
  std::string build_function_id, build_function_digest, build_input;  // run_function
  std::string build_input_blob;                                       // that its input names; "" = none
  bool force_build = false;   // a new image, which takes the recipe's place
  bool ignore_cache = false;  // a new image, which doesn't
};

struct ImageOptions {
  size_t builds_at_once = 3;      // of one workspace, run_function's counted apart; a worker does 32
  Millis abandoned_after{5'000};  // when the last follower has gone; the client comes back at once
  Millis asked_grace{30'000};     // when somebody asked and doesn't follow
  Millis resumed_grace{60'000};   // the same after control's restart, when clients come back as they can
  int most_attempts = 3;          // of a build that workers gave back
};

class Images {
 public:
  Images(store::Database* db, Clock* clock, Strand* strand, Secrets* secrets, ImageOptions options = {})
      : db_(db), clock_(clock), strand_(strand), secrets_(secrets), options_(options) {}
  void Attach(Engine* engine, Workers* workers, LogStore* logs) {
    engine_ = engine, workers_ = workers, logs_ = logs;
  }
  Status Resume();

  Result<Image> GetOrBuild(const Scope& scope, const ImageRequest& request);
  Result<Image> Get(const Scope& scope, const std::string& image_id);
  Result<Image> ById(const std::string& image_id);
  // Somebody was told that it exists, and may use it: it isn't collected soon.
  Status Touch(const std::string& image_id) { return Keep(*db_, RefKind::kImage, image_id); }
  Result<std::vector<Image>> List(size_t most);
  // Of an image that is being built: that somebody builds it.
  void Ensure(const Image& image);
  // Builds a lost image again, after the ones that it stands on. FAILED_PRECONDITION when only a client can:
  // a build function that has ended with its app.
  Status Rebuild(const std::string& image_id);
  // Keeps the build from being given up, until what is returned goes (on any thread). Null when it is not
  // being built.
  std::shared_ptr<void> Follow(const std::string& image_id);

 private:
  struct Build {
    uint64_t serial = 0;   // an image may be built more than once
    std::string build_id;  // empty between two attempts
    std::string place;     // whose builds it is counted with
    bool placed = false;
    bool by_function = false;
    size_t followers = 0;
    uint64_t watch = 0;       // the newest timer that may give it up
    bool cancelling = false;  // a worker was told
    bool wanted = true;       // false once it was given up
    int attempts = 0;
    SteadyTime began;
    Millis delay{200};
  };
  struct Place {
    size_t running = 0;
    std::deque<std::pair<std::string, uint64_t>> waiting;  // image ids, serials; some may be gone
  };

  Result<std::string> RecipeDigest(const Scope& scope, const ImageRequest& request);
  static std::vector<Reference> ReferencesOf(const Scope& scope, const ImageRequest& request);
  Status Insert(const Scope& scope, const std::string& image_id, const std::string& recipe,
                const ImageRequest& request);
  Build* Find(const std::string& image_id, uint64_t serial);
  void Start(const std::string& image_id, Millis grace);
  void Run(const std::string& image_id, uint64_t serial);
  bool TakePlace(const std::string& image_id, Build& build);
  void LeavePlace(const Build& build);
  // Gives the build up if nobody follows it for as long.
  void Watch(const std::string& image_id, Build& build, Millis grace);
  void Abandon(const std::string& image_id, Build& build);
  Status RunOnce(const std::string& image_id, const std::string& build_id);
  void OnUpdate(const std::string& image_id, const std::string& build_id, const BuildUpdate& update);
  void OnResult(const std::string& image_id, const BuildResult& result);
  void OnBuilder(const std::string& image_id, const std::string& parent_id, const BuilderOutcome& outcome);
  void Finish(const std::string& image_id, const BuildResult& result);
  void Say(const std::string& image_id, const std::string& text);

  store::Database* db_;
  Clock* clock_;
  Strand* strand_;
  Secrets* secrets_;
  Engine* engine_ = nullptr;
  Workers* workers_ = nullptr;
  LogStore* logs_ = nullptr;
  const ImageOptions options_;
  uint64_t next_serial_ = 1;
  std::map<std::string, Build> builds_;  // by image id
  std::map<std::string, Place> places_;
};

}  // namespace lydian::control
