// Runs a tool of the host (mmdebstrap, apt-get) to its end. It lives in a pid namespace of its own and dies
// with this process. Thread-safety: pure function; blocks. Errors: the tool's name, exit code and the end of
// its output.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "build/cancel.h"
#include "build/log_text.h"

namespace lydian::build {

struct HostCommand {
  std::vector<std::string> argv;
  std::vector<std::string> env;  // beside this process's own; later ones win
  std::string cwd = "/";
};

Status RunHostCommand(const HostCommand& command, const LogSink& log, CancelToken* cancel);

}  // namespace lydian::build
