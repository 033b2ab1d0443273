// Where things lie below a state directory (docs/architecture.md, "State"), and the instance's name.
// Thread-safety: values. Errors: with the path.
#pragma once

#include <string>

#include "base/status.h"

namespace lydian::cli {

inline constexpr char kDefaultState[] = "/var/lib/lydian";

struct StatePaths {
  std::string root;  // absolute, symlinks resolved

  std::string instance() const { return root + "/instance"; }
  std::string log_dir() const { return root + "/log"; }
  std::string log(const std::string& role) const { return log_dir() + "/" + role + ".log"; }
  std::string control_dir() const { return root + "/control"; }
  std::string worker_dir() const { return root + "/worker"; }
  std::string link_socket() const { return control_dir() + "/link.sock"; }
  std::string control_admin() const { return control_dir() + "/admin.sock"; }
  std::string worker_admin() const { return worker_dir() + "/admin.sock"; }
  std::string spawner_socket() const { return worker_dir() + "/spawner.sock"; }
  // Written by control at its first start.
  std::string first_token() const { return control_dir() + "/first-token.json"; }
  // Of "up", "control", "worker" or "spawner".
  std::string lock(const std::string& role) const;
};

// The folder must exist.
Result<StatePaths> FindState(const std::string& folder);

// "ly" and 6 hex digits that follow from the real path: part of every name on the machine.
std::string InstanceName(const std::string& real_path);

}  // namespace lydian::cli
