#include "base/paths.h"

#include <algorithm>

namespace lydian {

std::vector<std::string> PathParts(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t start = 0; start < path.size();) {
    size_t end = std::min(path.find('/', start), path.size());
    if (end > start) parts.push_back(path.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

std::string JoinPath(const std::string& base, const std::string& path) {
  std::vector<std::string> kept;
  for (auto& part : PathParts(path.starts_with("/") ? path : base + "/" + path)) {
    if (part == "..") {
      if (!kept.empty()) kept.pop_back();
    } else if (part != ".") {
      kept.push_back(std::move(part));
    }
  }
  std::string joined;
  for (const auto& part : kept) joined += "/" + part;
  return joined.empty() ? "/" : joined;
}

std::string BaseName(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string ParentPath(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos || slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace lydian
