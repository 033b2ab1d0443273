// Paths as text: nothing here looks at a disk. Thread-safety: pure functions.
#pragma once

#include <string>
#include <vector>

namespace lydian {

// The parts between slashes; empty ones left out.
std::vector<std::string> PathParts(const std::string& path);
// `path` against `base`, "." and ".." taken out; never above the root. Starts with a slash.
std::string JoinPath(const std::string& base, const std::string& path);
// "c" of "/a/b/c", and "/a/b" ("/" of "/c").
std::string BaseName(const std::string& path);
std::string ParentPath(const std::string& path);

}  // namespace lydian
