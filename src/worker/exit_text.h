// How the end of a container is told to people. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "lydian/spawner.pb.h"
#include "lydian/worker.pb.h"

namespace lydian::worker {

// "SIGKILL"; "" for a number without a name.
std::string SignalName(int signal);
// The exit as control reports it: numbers and one sentence.
TaskExit DescribeExit(const ExitEvent& event, bool stopped_by_us);
// A container that ended because its machinery did.
TaskExit LostExit(const std::string& why);

}  // namespace lydian::worker
