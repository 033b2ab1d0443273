#include "build/context_match.h"

#include <fnmatch.h>

#include <set>

#include "base/ids.h"
#include "base/paths.h"

namespace lydian::build {
namespace {

bool HasWildcard(const std::string& text) { return text.find_first_of("*?[") != std::string::npos; }

// Is there something below `source` (a path with leading slash, "/" = all)?
bool Below(const std::string& path, const std::string& source) {
  return source == "/" || path.starts_with(source + "/");
}

// A wildcard's matches among the files and folders of the context.
std::set<std::string> Glob(const std::vector<const ContextFile*>& context, const std::string& pattern) {
  auto wanted = PathParts(pattern);
  std::set<std::string> found;
  for (const auto* file : context) {
    auto parts = PathParts(JoinPath("/", file->path()));
    if (parts.size() < wanted.size()) continue;
    std::string path;
    bool match = true;
    for (size_t i = 0; i < wanted.size() && match; ++i) {
      match = ::fnmatch(wanted[i].c_str(), parts[i].c_str(), FNM_PATHNAME) == 0;
      path += "/" + parts[i];
    }
    if (match) found.insert(path);
  }
  return found;
}

void MatchOne(const std::vector<const ContextFile*>& context, const std::string& source,
              std::vector<ContextMatch>& out) {
  for (const auto* file : context) {
    std::string path = JoinPath("/", file->path());
    if (path == source) {
      out.push_back({file, source, "", false});
    } else if (Below(path, source)) {
      out.push_back({file, source, source == "/" ? path.substr(1) : path.substr(source.size() + 1), true});
    }
  }
}

}  // namespace

Result<std::vector<ContextMatch>> MatchContext(const std::vector<const ContextFile*>& context,
                                               const std::vector<std::string>& sources) {
  std::vector<ContextMatch> matches;
  for (const auto& source : sources) {
    std::string path = JoinPath("/", source);
    size_t before = matches.size();
    if (HasWildcard(path)) {
      for (const auto& found : Glob(context, path)) MatchOne(context, found, matches);
    } else {
      MatchOne(context, path, matches);
    }
    // "COPY . /" of an empty context is a copy of nothing, and no mistake.
    if (matches.size() == before && path != "/")
      return NotFound("\"" + source + "\" is not in the build context");
  }
  return matches;
}

std::string ContextDigest(const std::vector<ContextMatch>& matches) {
  std::vector<std::string> lines;
  for (const auto& match : matches)
    lines.push_back(match.source + "\n" + match.relative + "\n" + match.file->sha256() + "\n" +
                    std::to_string(match.file->mode()));
  std::string all;
  for (const auto& line : lines) all += std::to_string(line.size()) + ":" + line;
  return Sha256Hex(all);
}

}  // namespace lydian::build
