// The table of RPCs that this build serves: what docs/compatibility.md is made from.
#pragma once

#include <string>

namespace lydian::bin {

// "service method kind" a line.
std::string MethodTable();
// Prints it. Returns the exit code.
int PrintMethods();

}  // namespace lydian::bin
