// Secrets: sets of environment variables, sealed with the installation's key (key.h) and named by people or
// owned by an app. Thread-safety: the objects strand only. Values leave only through Values(); nothing here
// logs one.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "control/key.h"
#include "control/scope.h"
#include "store/database.h"

namespace lydian::control {

struct Secret {
  std::string id, workspace_id, environment_id, environment, name, created_by;
  std::vector<std::string> keys;
  std::string digest;  // keyed; equal for equal content
  double created_at = 0, last_used_at = 0;
};

using EnvMap = std::map<std::string, std::string>;

class Secrets {
 public:
  Secrets(store::Database* db, Clock* clock, const Key* key) : db_(db), clock_(clock), key_(key) {}

  enum class Mode { kFailIfExists, kOverwrite, kIfMissing };
  Result<Secret> CreateNamed(const Scope& scope, const std::string& environment_id, const std::string& name,
                             const EnvMap& values, Mode mode);
  // Owned by an app ("" = by nobody): gone with it.
  Result<Secret> CreateAnonymous(const Scope& scope, const std::string& environment_id,
                                 const std::string& app_id, const EnvMap& values);
  // NOT_FOUND that names the secret and its environment, or the first key that is missing.
  Result<Secret> Find(const Scope& scope, const std::string& environment_id, const std::string& environment,
                      const std::string& name, const std::vector<std::string>& required_keys);
  Result<Secret> Get(const Scope& scope, const std::string& secret_id);
  // Named ones, newest first, created before `before` (0 = now).
  Result<std::vector<Secret>> List(const std::string& environment_id, double before, int most);
  Status Delete(const Scope& scope, const std::string& secret_id);
  // A value, or nothing to remove the key.
  Status Update(const Scope& scope, const std::string& secret_id,
                const std::vector<std::pair<std::string, std::optional<std::string>>>& changes);
  void DropOfApp(const std::string& app_id);

  // Merged in order, later ones win; notes their use. FAILED_PRECONDITION when one is gone.
  Result<EnvMap> Values(const std::vector<std::string>& secret_ids);

 private:
  Result<Secret> Insert(const Scope& scope, const std::string& environment_id, const std::string* name,
                        const std::string& app_id, const EnvMap& values);
  Result<EnvMap> Unseal(const std::string& id, const std::string& sealed);
  Status Store(const std::string& id, const EnvMap& values);
  Result<std::vector<Secret>> Select(std::string_view where, const store::Params& params);

  store::Database* db_;
  Clock* clock_;
  const Key* key_;
};

}  // namespace lydian::control
