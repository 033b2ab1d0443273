// Apps: created by a client, alive while it beats, published, stopped. Stopping is the call engine's work;
// this keeps the state and closes the app's log once the engine says that everything has ended.
//
// Thread-safety: the objects strand only, except that timers and the engine's callbacks come back to it by
// themselves. Durability: every change is in state.db before the method returns; Resume() goes on with what a
// restart interrupted.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/status.h"
#include "control/engine.h"
#include "control/log_store.h"
#include "control/scope.h"
#include "store/database.h"

namespace lydian::control {

// The numbers of modal.client.AppState.
enum class AppState {
  kUnspecified = 0,
  kEphemeral = 1,
  kDetached = 2,
  kDeployed = 3,
  kStopping = 4,
  kStopped = 5,
  kInitializing = 6,
  kDetachedDisconnected = 8,
};

// "ephemeral", "stopped" ...
const char* AppStateName(AppState state);

struct App {
  std::string id, workspace_id, environment_id, environment, description, name;
  AppState state = AppState::kUnspecified;
  uint32_t version = 0;
  bool published = false;
  double created_at = 0, deployed_at = 0, stopped_at = 0;
  std::string created_by, stop_reason, tags;  // tags: a JSON object

  bool alive() const { return state != AppState::kStopping && state != AppState::kStopped; }
  const std::string& title() const { return name.empty() ? description : name; }
};

struct AppOptions {
  Millis heartbeat_timeout{45'000};   // three beats of the client
  uint32_t stop_grace_ms = 3000;      // from the polite request to SIGKILL
  uint64_t list_stopped_secs = 3600;  // how long a list of apps shows one that has stopped
};

class Apps {
 public:
  Apps(store::Database* db, Clock* clock, Strand* strand, AppOptions options)
      : db_(db), clock_(clock), strand_(strand), options_(options) {}
  // Once, before the first request.
  void Attach(Engine* engine, LogStore* logs) { engine_ = engine, logs_ = logs; }
  // After a start: living apps get a whole timeout for their next beat, apps that were stopping go on
  // stopping.
  Status Resume();

  Result<App> Create(const Scope& scope, const std::string& environment_id, const std::string& description,
                     AppState state, const std::string& tags);
  Result<App> Get(const Scope& scope, const std::string& app_id);
  // NOT_FOUND, or FAILED_PRECONDITION for one that is stopped.
  Result<App> GetAlive(const Scope& scope, const std::string& app_id);
  // Without a scope, for the inside.
  Result<App> ById(const std::string& app_id);
  Result<std::vector<App>> List(const std::string& environment_id);
  Result<std::vector<App>> Alive();
  // The deployed one of that name; NOT_FOUND. `stopped`: the last one that was stopped instead.
  Result<App> ByName(const std::string& environment_id, const std::string& name, bool stopped = false);

  Status Heartbeat(const Scope& scope, const std::string& app_id);

  struct Publication {
    AppState state = AppState::kUnspecified;  // unspecified: as it is
    std::string name, client_version, tags;
    std::vector<std::pair<std::string, std::string>> members;      // tag -> fu-..., cs-...
    std::vector<std::pair<std::string, std::string>> definitions;  // fu-... -> de-...
  };
  // Writes members and activates definitions in one transaction. An app that held the name before is stopped.
  Result<App> Publish(const App& app, const Publication& publication);

  // Stops it if it isn't being stopped; `done` (may be null) once the engine has ended everything.
  Status Stop(const App& app, const std::string& reason, std::function<void()> done = nullptr);
  Status SetState(const std::string& app_id, AppState state);
  // The client has gone on purpose: no more beats are expected.
  void ForgetHeartbeat(const std::string& app_id);
  // Whether a connection of the app's client is open. A client that moves a gigabyte may not get to beat for
  // a minute, but its connection lives; one that has died or was unplugged has none.
  void SetPresence(std::function<bool(const std::string& app_id)> present) { present_ = std::move(present); }
  // Called (on the strand) with the id of each app that has come to its end.
  void OnStopped(std::function<void(const std::string&)> hook) { on_stopped_ = std::move(hook); }

 private:
  Result<std::vector<App>> Select(std::string_view where, const store::Params& params);
  void Watch(const std::string& app_id);
  void Expired(const std::string& app_id, SteadyTime due);
  void StopByEngine(const std::string& app_id, const std::string& reason);
  void DropDefinitions(const std::string& where, const store::Params& params);
  void EndReferences(const std::string& app_id);
  void Stopped(const std::string& app_id);

  store::Database* db_;
  Clock* clock_;
  Strand* strand_;
  AppOptions options_;
  Engine* engine_ = nullptr;
  LogStore* logs_ = nullptr;
  std::function<void(const std::string&)> on_stopped_;
  std::function<bool(const std::string&)> present_;
  std::map<std::string, SteadyTime> last_beat_;  // of watched apps
  std::map<std::string, std::vector<std::function<void()>>> stop_waiters_;
};

}  // namespace lydian::control
