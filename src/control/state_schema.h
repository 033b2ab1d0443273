// The tables of state.db: workspaces, tokens, environments, apps, functions, mounts, images, secrets, blobs.
// docs/formats/store.md. Calls and logs have databases of their own.
#pragma once

#include <vector>

#include "store/database.h"

namespace lydian::control {

const std::vector<store::Migration>& StateMigrations();

}  // namespace lydian::control
