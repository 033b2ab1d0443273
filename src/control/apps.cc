#include "control/apps.h"

#include <iterator>

#include "base/ids.h"
#include "base/log.h"
#include "control/functions.h"

namespace lydian::control {

namespace {

constexpr char kColumns[] =
    "SELECT app.id, app.workspace_id, app.environment_id, environment.name, app.description, app.name, "
    "app.state, app.version, "
    "app.published, app.created_at, app.created_by, app.deployed_at, app.stopped_at, app.stop_reason, "
    "app.tags "
    "FROM app JOIN environment ON environment.id = app.environment_id ";

App FromRow(store::Row& row) {
  App app;
  app.id = row.Text(0), app.workspace_id = row.Text(1), app.environment_id = row.Text(2),
  app.environment = row.Text(3);
  app.description = row.Text(4), app.name = row.Text(5), app.state = static_cast<AppState>(row.Int(6));
  app.version = static_cast<uint32_t>(row.Int(7)), app.published = row.Int(8) != 0;
  app.created_at = row.Real(9), app.created_by = row.Text(10), app.deployed_at = row.Real(11),
  app.stopped_at = row.Real(12);
  app.stop_reason = row.Text(13), app.tags = row.Text(14);
  return app;
}

// A late timer means that we were stopped or starved: that time counts against nobody.
constexpr Millis kLate{5000};

constexpr int kMostStopped = 100;

bool HasClient(AppState state) {
  return state == AppState::kEphemeral || state == AppState::kDetached || state == AppState::kInitializing;
}

}  // namespace

const char* AppStateName(AppState state) {
  switch (state) {
    case AppState::kEphemeral:
      return "ephemeral";
    case AppState::kDetached:
      return "detached";
    case AppState::kDeployed:
      return "deployed";
    case AppState::kStopping:
      return "stopping";
    case AppState::kStopped:
      return "stopped";
    case AppState::kInitializing:
      return "initializing";
    case AppState::kDetachedDisconnected:
      return "detached, client gone";
    case AppState::kUnspecified:
      break;
  }
  return "unknown";
}

Result<std::vector<App>> Apps::Select(std::string_view where, const store::Params& params) {
  std::vector<App> found;
  RETURN_IF_ERROR(db_->ForEach(kColumns + std::string(where), params, [&](store::Row& row) {
    found.push_back(FromRow(row));
    return OkStatus();
  }));
  return found;
}

Status Apps::Resume() {
  ASSIGN_OR_RETURN(auto apps, Alive());
  for (const App& app : apps) {
    if (HasClient(app.state)) Watch(app.id);
  }
  ASSIGN_OR_RETURN(auto stopping, Select("WHERE app.state = ?", {AppState::kStopping}));
  for (const App& app : stopping) StopByEngine(app.id, app.stop_reason);
  return OkStatus();
}

Result<App> Apps::Create(const Scope& scope, const std::string& environment_id,
                         const std::string& description, AppState state, const std::string& tags) {
  std::string id = NewId("ap");
  RETURN_IF_ERROR(db_->Execute(
      "INSERT INTO app (id, workspace_id, environment_id, description, state, created_at, created_by, tags) "
      "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
      {id, scope.workspace_id, environment_id, description, state, clock_->UnixSeconds(), scope.who, tags}));
  if (HasClient(state)) Watch(id);
  return ById(id);
}

Result<App> Apps::ById(const std::string& app_id) {
  ASSIGN_OR_RETURN(auto found, Select("WHERE app.id = ?", {app_id}));
  if (found.empty()) return NoSuch("app", "ap", app_id);
  return found[0];
}

Result<App> Apps::Get(const Scope& scope, const std::string& app_id) {
  ASSIGN_OR_RETURN(App app, ById(app_id));
  if (!scope.Sees(app.workspace_id, app.environment_id)) return NoSuch("app", "ap", app_id);
  return app;
}

Result<App> Apps::GetAlive(const Scope& scope, const std::string& app_id) {
  ASSIGN_OR_RETURN(App app, Get(scope, app_id));
  if (!app.alive()) {
    return FailedPrecondition("the app " + app_id + " is stopped" +
                              (app.stop_reason.empty() ? "" : ": " + app.stop_reason));
  }
  return app;
}

Result<std::vector<App>> Apps::List(const std::string& environment_id) {
  // Recently stopped ones too, so that their logs can be found.
  ASSIGN_OR_RETURN(auto apps,
                   Select("WHERE app.environment_id = ? AND app.state != 5 ORDER BY app.created_at DESC",
                          {environment_id}));
  ASSIGN_OR_RETURN(
      auto stopped,
      Select("WHERE app.environment_id = ? AND app.state = 5 AND app.stopped_at > ? "
             "ORDER BY app.created_at DESC LIMIT ?",
             {environment_id, clock_->UnixSeconds() - static_cast<double>(options_.list_stopped_secs),
              kMostStopped}));
  apps.insert(apps.end(), std::make_move_iterator(stopped.begin()), std::make_move_iterator(stopped.end()));
  return apps;
}

Result<std::vector<App>> Apps::Alive() {
  return Select("WHERE app.state NOT IN (4, 5) ORDER BY app.created_at", {});
}

Result<App> Apps::ByName(const std::string& environment_id, const std::string& name, bool stopped) {
  ASSIGN_OR_RETURN(auto found, stopped
                                   ? Select("WHERE app.environment_id = ? AND app.name = ? AND app.state IN "
                                            "(4, 5) ORDER BY app.stopped_at DESC LIMIT 1",
                                            {environment_id, name})
                                   : Select("WHERE app.environment_id = ? AND app.name = ? AND app.state = 3",
                                            {environment_id, name}));
  if (found.empty() || name.empty()) return NotFound("no app is deployed as '" + name.substr(0, 80) + "'");
  return found[0];
}

Status Apps::Heartbeat(const Scope& scope, const std::string& app_id) {
  ASSIGN_OR_RETURN(App app, GetAlive(scope, app_id));
  if (app.state == AppState::kDetachedDisconnected) {  // it was only away
    RETURN_IF_ERROR(SetState(app_id, AppState::kDetached));
    app.state = AppState::kDetached;
  }
  if (!HasClient(app.state)) return OkStatus();
  auto it = last_beat_.find(app_id);
  if (it == last_beat_.end()) {
    Watch(app_id);
  } else {
    it->second = std::chrono::steady_clock::now();
  }
  return OkStatus();
}

void Apps::Watch(const std::string& app_id) {
  auto now = std::chrono::steady_clock::now();
  bool watched = last_beat_.count(app_id) > 0;
  last_beat_[app_id] = now;
  if (watched) return;
  auto due = now + options_.heartbeat_timeout;
  strand_->PostAt(due, [this, app_id, due] { Expired(app_id, due); });
}

// One timer an app, set anew for the rest when a beat has come meanwhile, or an open connection stands for
// one.
void Apps::Expired(const std::string& app_id, SteadyTime due) {
  auto it = last_beat_.find(app_id);
  if (it == last_beat_.end()) return;
  auto now = std::chrono::steady_clock::now();
  if (now - due > kLate || (present_ && present_(app_id))) it->second = now;
  auto next = it->second + options_.heartbeat_timeout;
  if (next > now) {
    strand_->PostAt(next, [this, app_id, next] { Expired(app_id, next); });
    return;
  }
  last_beat_.erase(it);
  auto app = ById(app_id);
  if (!app.ok() || !HasClient(app->state)) return;
  if (app->state == AppState::kDetached) {
    LOG_INFO("the client of a detached app has gone; the app stays", {{"app_id", app_id}});
    if (Status set = SetState(app_id, AppState::kDetachedDisconnected); !set.ok()) {
      LOG_WARN("could not note that a client has gone", {{"app_id", app_id}, {"error", set}});
    }
    return;
  }
  LOG_INFO("the client of an app has gone", {{"app_id", app_id}});
  if (Status stopped = Stop(*app, "its client has not been heard of for " +
                                      std::to_string(options_.heartbeat_timeout.count() / 1000) + " s");
      !stopped.ok()) {
    LOG_WARN("could not stop an app; trying again", {{"app_id", app_id}, {"error", stopped}});
    Watch(app_id);
  }
}

void Apps::ForgetHeartbeat(const std::string& app_id) { last_beat_.erase(app_id); }

Status Apps::SetState(const std::string& app_id, AppState state) {
  return db_->Execute("UPDATE app SET state = ? WHERE id = ?", {state, app_id});
}

Result<App> Apps::Publish(const App& app, const Publication& publication) {
  AppState state = publication.state == AppState::kUnspecified ? app.state : publication.state;
  bool deploys = state == AppState::kDeployed;
  std::vector<App> displaced;
  if (deploys && !publication.name.empty()) {
    ASSIGN_OR_RETURN(displaced,
                     Select("WHERE app.environment_id = ? AND app.name = ? AND app.id != ? AND app.state = 3",
                            {app.environment_id, publication.name, app.id}));
  }
  double now = clock_->UnixSeconds();
  RETURN_IF_ERROR(db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute("DELETE FROM app_member WHERE app_id = ?", {app.id}));
    for (const auto& [tag, id] : publication.members) {
      RETURN_IF_ERROR(session.Execute("INSERT INTO app_member (app_id, tag, object_id) VALUES (?, ?, ?)",
                                      {app.id, tag, id}));
    }
    for (const auto& [function_id, definition_id] : publication.definitions) {
      RETURN_IF_ERROR(session.Execute("UPDATE function SET active_definition = ? WHERE id = ? AND app_id = ?",
                                      {definition_id, function_id, app.id}));
      RETURN_IF_ERROR(Functions::ReferToDefinitions(session, function_id));
    }
    return session.Execute(
        "UPDATE app SET state = ?, published = 1, name = ?, version = version + ?, deployed_at = ?, "
        "client_version = ?, tags = ? WHERE id = ?",
        {state, deploys ? publication.name : app.name, deploys ? 1 : 0, deploys ? now : app.deployed_at,
         publication.client_version, publication.tags, app.id});
  }));
  if (deploys) ForgetHeartbeat(app.id);
  DropDefinitions(
      "NOT EXISTS (SELECT 1 FROM reference WHERE kind = 'definition' AND target = definition.id) AND "
      "function_id IN (SELECT id FROM function WHERE app_id = ?)",
      {app.id});
  for (const App& other : displaced) {
    if (Status stopped = Stop(other, "another app was deployed under its name"); !stopped.ok()) {
      LOG_WARN("could not stop a displaced app", {{"app_id", other.id}, {"error", stopped}});
    }
  }
  return ById(app.id);
}

Status Apps::Stop(const App& app, const std::string& reason, std::function<void()> done) {
  if (app.state == AppState::kStopped) {
    if (done) done();
    return OkStatus();
  }
  if (app.state != AppState::kStopping) {
    RETURN_IF_ERROR(db_->Execute("UPDATE app SET state = ?, stop_reason = ?, stopped_at = ? WHERE id = ?",
                                 {AppState::kStopping, reason, clock_->UnixSeconds(), app.id}));
    LOG_INFO("stopping an app", {{"app_id", app.id}, {"reason", reason}});
  }
  ForgetHeartbeat(app.id);
  bool under_way = stop_waiters_.count(app.id) > 0;
  auto& waiters = stop_waiters_[app.id];
  if (done) waiters.push_back(std::move(done));
  if (!under_way) StopByEngine(app.id, reason);
  return OkStatus();
}

void Apps::StopByEngine(const std::string& app_id, const std::string& reason) {
  stop_waiters_[app_id];
  engine_->StopApp(app_id, reason, options_.stop_grace_ms,
                   [this, app_id] { strand_->Post([this, app_id] { Stopped(app_id); }); });
}

// Definitions may hold 16 MiB of pickled code each, and nothing starts from these any more.
void Apps::DropDefinitions(const std::string& where, const store::Params& params) {
  Status dropped = db_->Transaction([&](store::Session& session) -> Status {
    RETURN_IF_ERROR(session.Execute(
        "DELETE FROM reference WHERE holder IN (SELECT id FROM definition WHERE " + where + ")", params));
    return session.Execute("DELETE FROM definition WHERE " + where, params);
  });
  if (!dropped.ok()) LOG_WARN("could not drop old definitions", {{"error", dropped}});
}

// An app that has ended needs none of what it was made of.
void Apps::EndReferences(const std::string& app_id) {
  DropDefinitions("function_id IN (SELECT id FROM function WHERE app_id = ?)", {app_id});
  Status released = db_->Execute(
      "DELETE FROM reference WHERE holder IN (SELECT id FROM function WHERE app_id = ? UNION SELECT "
      "bound_function.id FROM bound_function JOIN function ON function.id = base_id WHERE app_id = ?)",
      {app_id, app_id});
  if (!released.ok()) LOG_WARN("what an app referred to stays", {{"app_id", app_id}, {"error", released}});
}

void Apps::Stopped(const std::string& app_id) {
  Status stored = db_->Execute("UPDATE app SET state = ?, stopped_at = ? WHERE id = ?",
                               {AppState::kStopped, clock_->UnixSeconds(), app_id});
  if (!stored.ok())
    LOG_ERROR("could not note that an app has ended", {{"app_id", app_id}, {"error", stored}});
  EndReferences(app_id);
  logs_->MarkDone(app_id);
  if (on_stopped_) on_stopped_(app_id);
  auto waiters = stop_waiters_.extract(app_id);
  if (waiters.empty()) return;
  for (auto& waiter : waiters.mapped()) waiter();
}

}  // namespace lydian::control
