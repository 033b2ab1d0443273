// Names and numbers of users and groups, by the tables of the tree itself. Thread-safety: pure functions.
// Errors: INVALID_ARGUMENT with the name that is in no table.
#pragma once

#include <string>

#include "base/status.h"
#include "guest/stage/view.h"

namespace lydian::stage {

struct Owner {
  Ids ids;
  std::string home = "/root";
  std::string name = "root";
};

// "user[:group]"; "" is root.
Result<Owner> FindOwner(const View& view, const std::string& text);

}  // namespace lydian::stage
