// Environments of a workspace: where every other object lives. One of them is the default, which "" names.
// Thread-safety: the objects strand only. Names: 1 to 64 letters, digits, '-', '_' and '.', not "en-...".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "control/scope.h"
#include "store/database.h"

namespace lydian::control {

struct Environment {
  std::string id, workspace_id, name, webhook_suffix, builder_version;
  bool is_default = false;
  double created_at = 0;
};

class Environments {
 public:
  Environments(store::Database* db, Clock* clock) : db_(db), clock_(clock) {}

  // The environment that `name` means to this caller: "" is a container's own, or the workspace's default.
  // PERMISSION_DENIED when a container names another one.
  Result<Environment> Resolve(const Scope& scope, const std::string& name);
  Result<Environment> ById(const std::string& id);
  Result<Environment> ByName(const std::string& workspace_id, const std::string& name);
  Result<std::vector<Environment>> List(const std::string& workspace_id);
  Result<Environment> Create(const std::string& workspace_id, const std::string& name,
                             const std::string& webhook_suffix, const std::string& builder_version);
  struct Change {
    std::optional<std::string> name, webhook_suffix, builder_version;
  };
  Result<Environment> Update(const std::string& workspace_id, const std::string& name, const Change& change);
  // FAILED_PRECONDITION while an app of it lives.
  Status Delete(const std::string& workspace_id, const std::string& name);

 private:
  Result<std::vector<Environment>> Select(std::string_view where, const store::Params& params);
  Status RequireIdle(const Environment& environment, const std::string& what);

  store::Database* db_;
  Clock* clock_;
};

}  // namespace lydian::control
