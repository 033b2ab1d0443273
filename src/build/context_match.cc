#include "build/context_match.h"

#include <fnmatch.h>

#include <algorithm>

#include "base/ids.h"
#include "base/paths.h"

namespace lydian::build {
namespace {

constexpr size_t kLookUpEvery = 1024;  // names, between two looks at the cancel token

bool HasWildcard(const std::string& text) { return text.find_first_of("*?[") != std::string::npos; }

// Slashes before all else: a folder's files follow its name at once.
bool FolderOrder(std::string_view a, std::string_view b) {
  auto rank = [](char c) { return c == '/' ? 0 : 1 + static_cast<unsigned char>(c); };
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(),
                                      [&](char x, char y) { return rank(x) < rank(y); });
}

// "/" is above all.
bool IsOrBelow(std::string_view path, std::string_view name) {
  return name == "/" || (path.starts_with(name) && (path.size() == name.size() || path[name.size()] == '/'));
}

Status Cancellation(const CancelToken* cancel) { return cancel ? cancel->Check() : OkStatus(); }

}  // namespace

void BuildContext::Add(const ContextFile& file) {
  entries_.push_back({JoinPath("/", file.path()), &file, entries_.size()});
}

void BuildContext::Sort() {
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const Entry& a, const Entry& b) { return FolderOrder(a.path, b.path); });
}

BuildContext::Range BuildContext::Under(std::string_view name) const {
  auto begin = std::lower_bound(entries_.begin(), entries_.end(), name,
                                [](const Entry& e, std::string_view n) { return FolderOrder(e.path, n); });
  if (name == "/") begin = entries_.begin();
  auto end =
      std::partition_point(begin, entries_.end(), [&](const Entry& e) { return IsOrBelow(e.path, name); });
  return {static_cast<size_t>(begin - entries_.begin()), static_cast<size_t>(end - entries_.begin()),
          name.size()};
}

// A wildcard's matches among the files and folders of the context, by name. One part of the pattern after the
// other, each name of a folder looked at once, however many files lie below it.
Result<std::vector<BuildContext::Range>> BuildContext::Glob(const std::string& pattern,
                                                            const CancelToken* cancel) const {
  std::vector<Range> found = {{0, entries_.size(), 0}};
  size_t looked = 0;
  for (const auto& wanted : PathParts(pattern)) {
    std::vector<Range> next;
    for (const Range& folder : found) {
      for (size_t at = folder.begin; at < folder.end;) {
        if (++looked % kLookUpEvery == 0) RETURN_IF_ERROR(Cancellation(cancel));
        const std::string& path = entries_[at].path;
        if (path.size() <= folder.name + 1) {  // the folder's own name, which is a file too; or "/"
          ++at;
          continue;
        }
        const size_t length = std::min(path.find('/', folder.name + 1), path.size());
        const std::string_view name = std::string_view(path).substr(0, length);
        const auto first = entries_.begin() + static_cast<ptrdiff_t>(at);
        const auto end = std::partition_point(first, entries_.begin() + static_cast<ptrdiff_t>(folder.end),
                                              [&](const Entry& e) { return IsOrBelow(e.path, name); });
        const std::string part(name.substr(folder.name + 1));
        const size_t after = static_cast<size_t>(end - entries_.begin());
        if (::fnmatch(wanted.c_str(), part.c_str(), FNM_PATHNAME) == 0) next.push_back({at, after, length});
        at = after;
      }
    }
    found = std::move(next);
  }
  auto name = [&](const Range& range) {
    return std::string_view(entries_[range.begin].path).substr(0, range.name);
  };
  std::sort(found.begin(), found.end(), [&](const Range& a, const Range& b) { return name(a) < name(b); });
  return found;
}

Status BuildContext::Take(const Range& range, const MatchLimits& limits,
                          std::vector<ContextMatch>& out) const {
  if (range.end - range.begin > limits.matches - out.size())
    return ResourceExhausted("its sources are more than " + std::to_string(limits.matches) +
                             " files of the build context, the most that one instruction may copy");
  std::vector<const Entry*> entries;
  entries.reserve(range.end - range.begin);
  for (size_t i = range.begin; i < range.end; ++i) entries.push_back(&entries_[i]);
  std::sort(entries.begin(), entries.end(),
            [](const Entry* a, const Entry* b) { return a->place < b->place; });
  for (const Entry* entry : entries) {
    const std::string_view path = entry->path;
    const std::string_view source = path.substr(0, range.name);
    const bool in_folder = path.size() > range.name;
    // After the slash, which is the source's own when that is "/".
    const size_t rest = range.name + (source == "/" ? 0 : 1);
    out.push_back({entry->file, source, in_folder ? path.substr(rest) : std::string_view(), in_folder});
  }
  return OkStatus();
}

Result<std::vector<ContextMatch>> BuildContext::Match(const std::vector<std::string>& sources,
                                                      const CancelToken* cancel,
                                                      const MatchLimits& limits) const {
  if (sources.size() > limits.sources)
    return ResourceExhausted("it has " + std::to_string(sources.size()) + " sources; " +
                             std::to_string(limits.sources) + " is the most that one instruction may have");
  std::vector<ContextMatch> matches;
  for (const auto& source : sources) {
    RETURN_IF_ERROR(Cancellation(cancel));
    const std::string path = JoinPath("/", source);
    const size_t before = matches.size();
    if (HasWildcard(path)) {
      ASSIGN_OR_RETURN(auto found, Glob(path, cancel));
      for (const Range& range : found) RETURN_IF_ERROR(Take(range, limits, matches));
    } else {
      RETURN_IF_ERROR(Take(Under(path), limits, matches));
    }
    // "COPY . /" of an empty context is a copy of nothing, and no mistake.
    if (matches.size() == before && path != "/")
      return NotFound("\"" + source + "\" is not in the build context");
  }
  return matches;
}

std::string ContextDigest(const std::vector<ContextMatch>& matches) {
  Sha256Stream digest;
  std::string line;
  for (const auto& match : matches) {
    line.assign(match.source).append("\n").append(match.relative).append("\n").append(match.file->sha256());
    line.append("\n").append(std::to_string(match.file->mode()));
    digest.Update(std::to_string(line.size()) + ":");
    digest.Update(line);
  }
  return digest.Hex();
}

}  // namespace lydian::build
