// What a build step borrows from the host: its CA bundle, pip's settings, proxies. Mounted and set for the
// step alone; nothing of it stays in a layer. Thread-safety: pure functions. Reads files and the environment
// of this process.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lydian/job.pb.h"

namespace lydian::build {

// Inside the container; taken out of the layer afterwards.
inline constexpr const char* kBorrowedDir = "/run/lydian-build";

struct HostSettings {
  std::vector<Mount> mounts;
  std::map<std::string, std::string> env;
};

HostSettings FindHostSettings();
// `get`: the host's environment, "" when unset. For tests.
HostSettings FindHostSettings(const std::function<std::string(const std::string&)>& get,
                              const std::function<bool(const std::string&)>& exists);

}  // namespace lydian::build
