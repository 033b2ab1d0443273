// What a build step borrows from the host: its CA bundle, and, where the operator allows it, pip's settings
// and proxies, which may hold credentials. Mounted and set for the step alone; nothing of it stays in a
// layer. Thread-safety: pure functions. Reads files and the environment of this process.
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

enum class Lending {
  kAuthorities,  // whom the host trusts: no secret
  kAll,          // package indexes, proxies, and what credentials they hold
};

HostSettings FindHostSettings(Lending lending);
// `get`: the host's environment, "" when unset. For tests.
HostSettings FindHostSettings(Lending lending, const std::function<std::string(const std::string&)>& get,
                              const std::function<bool(const std::string&)>& exists);

// Names of what kAll would lend beyond the authorities: for people, without values.
std::vector<std::string> HostSettingNames();

}  // namespace lydian::build
