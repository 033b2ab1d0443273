// What a caller may see: one workspace, and for a container one environment of it. Every lookup takes one; an
// object outside of it is NOT_FOUND, so that ids tell nothing.
#pragma once

#include <string>

#include "base/status.h"

namespace lydian::control {

struct Scope {
  std::string workspace_id;
  std::string environment_id;  // empty: every environment of the workspace
  std::string who;             // for created_by: the token's name, or the task

  bool Sees(const std::string& workspace, const std::string& environment) const {
    return workspace == workspace_id && (environment_id.empty() || environment == environment_id);
  }
};

// "no app ap-1", or, when the id is of another kind, a sentence that says so. `prefix` is "ap".
Status NoSuch(const std::string& kind, const std::string& prefix, const std::string& id);

}  // namespace lydian::control
