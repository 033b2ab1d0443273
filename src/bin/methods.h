// The table of RPCs that this build serves: what docs/compatibility.md is made from.
#pragma once

namespace lydian::bin {

// "service method kind" a line. Returns the exit code.
int PrintMethods();

}  // namespace lydian::bin
