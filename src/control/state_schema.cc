#include "control/state_schema.h"

namespace lydian::control {

namespace {

constexpr char kFirst[] = R"sql(
CREATE TABLE workspace (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at REAL NOT NULL);
CREATE TABLE token (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, name TEXT NOT NULL, secret_hash TEXT NOT NULL,
  created_at REAL NOT NULL, revoked INTEGER NOT NULL DEFAULT 0, last_used_at REAL NOT NULL DEFAULT 0);
CREATE TABLE environment (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, name TEXT NOT NULL, webhook_suffix TEXT NOT NULL,
  builder_version TEXT NOT NULL, is_default INTEGER NOT NULL, created_at REAL NOT NULL, UNIQUE (workspace_id, name));
CREATE TABLE app (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, environment_id TEXT NOT NULL, description TEXT NOT NULL,
  name TEXT NOT NULL DEFAULT '', state INTEGER NOT NULL, version INTEGER NOT NULL DEFAULT 0, published INTEGER NOT NULL DEFAULT 0,
  created_at REAL NOT NULL, created_by TEXT NOT NULL, deployed_at REAL NOT NULL DEFAULT 0, stopped_at REAL NOT NULL DEFAULT 0,
  stop_reason TEXT NOT NULL DEFAULT '', client_version TEXT NOT NULL DEFAULT '', tags TEXT NOT NULL DEFAULT '{}');
CREATE INDEX app_by_environment ON app (environment_id, name);
CREATE INDEX app_by_state ON app (state);
CREATE TABLE app_member (app_id TEXT NOT NULL, tag TEXT NOT NULL, object_id TEXT NOT NULL, PRIMARY KEY (app_id, tag));
CREATE TABLE function (
  id TEXT PRIMARY KEY, app_id TEXT NOT NULL, tag TEXT NOT NULL, builder INTEGER NOT NULL DEFAULT 0,
  handle BLOB NOT NULL, active_definition TEXT NOT NULL DEFAULT '', newest_definition TEXT NOT NULL DEFAULT '');
CREATE INDEX function_by_app ON function (app_id, tag);
CREATE TABLE definition (
  id TEXT PRIMARY KEY, function_id TEXT NOT NULL, function BLOB NOT NULL, data BLOB NOT NULL, handle BLOB NOT NULL,
  created_at REAL NOT NULL);
CREATE INDEX definition_by_function ON definition (function_id);
CREATE TABLE bound_function (
  id TEXT PRIMARY KEY, base_id TEXT NOT NULL, params BLOB NOT NULL, options BLOB NOT NULL, created_at REAL NOT NULL);
CREATE INDEX bound_by_base ON bound_function (base_id);
CREATE TABLE class (id TEXT PRIMARY KEY, app_id TEXT NOT NULL);
CREATE INDEX class_by_app ON class (app_id);
CREATE TABLE object (workspace_id TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (workspace_id, sha256));
CREATE TABLE mount (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, environment_id TEXT NOT NULL, client_version TEXT NOT NULL DEFAULT '',
  checksum TEXT NOT NULL, files BLOB NOT NULL, created_at REAL NOT NULL);
CREATE TABLE image (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, environment_id TEXT NOT NULL, recipe TEXT NOT NULL, state INTEGER NOT NULL,
  builder_version TEXT NOT NULL, build BLOB NOT NULL, secrets TEXT NOT NULL, parent TEXT NOT NULL, function_id TEXT NOT NULL,
  input BLOB NOT NULL, indexed INTEGER NOT NULL, spec BLOB NOT NULL, libc_version TEXT NOT NULL DEFAULT '',
  error TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL, finished_at REAL NOT NULL DEFAULT 0);
CREATE INDEX image_by_state ON image (state);
CREATE TABLE recipe (digest TEXT PRIMARY KEY, image_id TEXT NOT NULL);
CREATE TABLE secret (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, environment_id TEXT NOT NULL, name TEXT, app_id TEXT NOT NULL DEFAULT '',
  keys TEXT NOT NULL, sealed BLOB NOT NULL, digest TEXT NOT NULL, created_at REAL NOT NULL, created_by TEXT NOT NULL,
  last_used_at REAL NOT NULL DEFAULT 0, UNIQUE (environment_id, name));
CREATE INDEX secret_by_app ON secret (app_id);
CREATE TABLE blob (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, size INTEGER NOT NULL, created_at REAL NOT NULL);
)sql";

// Answers of creating calls, for a client that asks again after a restart.
constexpr char kAnswers[] = R"sql(
CREATE TABLE answer (key TEXT PRIMARY KEY, response BLOB NOT NULL, at REAL NOT NULL);
CREATE INDEX answer_by_time ON answer (at);
)sql";

// Who refers to what, what nobody does any more and since when, and which of our own tidying is done.
constexpr char kReferences[] = R"sql(
CREATE TABLE reference (holder TEXT NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL, PRIMARY KEY (holder, kind, target));
CREATE INDEX reference_by_target ON reference (kind, target);
CREATE TABLE orphan (kind TEXT NOT NULL, target TEXT NOT NULL, since REAL NOT NULL, PRIMARY KEY (kind, target));
CREATE INDEX orphan_by_time ON orphan (kind, since);
CREATE TABLE upkeep (what TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE INDEX recipe_by_image ON recipe (image_id);
CREATE INDEX object_by_content ON object (sha256);
)sql";

}  // namespace

const std::vector<store::Migration>& StateMigrations() {
  static const std::vector<store::Migration> migrations = {{1, kFirst}, {2, kAnswers}, {3, kReferences}};
  return migrations;
}

}  // namespace lydian::control
