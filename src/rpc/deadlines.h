// The timers of calls' deadlines, of both sides. Most calls have none. Private to the module.
#pragma once

#include "base/executor.h"

namespace lydian::rpc {

Strand& Deadlines();

}  // namespace lydian::rpc
