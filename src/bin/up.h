// `lydian up`: checks, the state folder, the supervisor, what is told to the person at the terminal. Calls no
// gRPC.
#pragma once

#include <string>

#include "cli/commands.h"

namespace lydian::bin {

using cli::UpOptions;

// The process's exit code.
int RunUp(const UpOptions& options);
// `lydian down`.
int RunDown(const std::string& state);

}  // namespace lydian::bin
