#include "cli/state.h"

#include <climits>
#include <cstdlib>

#include "base/ids.h"

namespace lydian::cli {

std::string StatePaths::lock(const std::string& role) const {
  if (role == "up") return root + "/up.lock";
  if (role == "control") return control_dir() + "/control.lock";
  return worker_dir() + "/" + role + ".lock";
}

Result<StatePaths> FindState(const std::string& folder) {
  char real[PATH_MAX];
  if (::realpath(folder.c_str(), real) == nullptr) {
    if (errno == ENOENT)
      return NotFound("there is no Lydian in " + folder +
                      ": start it with `lydian up`, or name its folder with --state");
    return ErrnoStatus("finding " + folder);
  }
  return StatePaths{real};
}

std::string InstanceName(const std::string& real_path) { return "ly" + Sha256Hex(real_path).substr(0, 6); }

}  // namespace lydian::cli
