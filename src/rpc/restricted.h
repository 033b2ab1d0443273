// What a container with restrict_modal_access=True may ask for besides what its worker answers itself:
// payloads and data of its own inputs. One table for the worker, which refuses at once, and for control,
// which believes no worker's container. Thread-safety: pure functions.
#pragma once

#include <string_view>

#include "base/status.h"

namespace lydian::rpc {

// PERMISSION_DENIED for a method ("AppCreate") that isn't open to it.
Status CheckRestricted(std::string_view method);

}  // namespace lydian::rpc
