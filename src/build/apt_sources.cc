#include "build/apt_sources.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "base/fd.h"

namespace lydian::build {
namespace {

std::vector<std::string> Words(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

bool Has(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

bool DebianSuite(const std::string& suite) {
  static const std::set<std::string> suites = {"bullseye",  "bookworm", "trixie",  "forky",   "sid",
                                               "oldstable", "stable",   "testing", "unstable"};
  return suites.contains(suite);
}

}  // namespace

std::vector<AptEntry> ParseAptList(const std::string& text) {
  std::vector<AptEntry> entries;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    line = line.substr(0, line.find('#'));
    // "[arch=amd64 signed-by=...]" may hold spaces.
    if (size_t open = line.find('['); open != std::string::npos)
      if (size_t close = line.find(']', open); close != std::string::npos) line.erase(open, close - open + 1);
    auto words = Words(line);
    if (words.size() < 3 || (words[0] != "deb" && words[0] != "deb-src")) continue;
    entries.push_back({{words[0]}, {words[1]}, {words[2]}, {words.begin() + 3, words.end()}});
  }
  return entries;
}

std::vector<AptEntry> ParseAptParagraphs(const std::string& text) {
  std::vector<AptEntry> entries;
  AptEntry entry;
  bool enabled = true;
  std::vector<std::string>* field = nullptr;
  auto finish = [&] {
    if (enabled && !entry.types.empty() && !entry.uris.empty()) entries.push_back(entry);
    entry = {};
    enabled = true;
    field = nullptr;
  };
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    if (Words(line).empty()) {
      finish();
      continue;
    }
    if (line[0] == '#') continue;
    size_t colon = line.find(':');
    std::string rest = line;
    if (line[0] != ' ' && line[0] != '\t' && colon != std::string::npos) {
      std::string key = line.substr(0, colon);
      std::transform(key.begin(), key.end(), key.begin(), [](unsigned char c) { return std::tolower(c); });
      rest = line.substr(colon + 1);
      field = key == "types"        ? &entry.types
              : key == "uris"       ? &entry.uris
              : key == "suites"     ? &entry.suites
              : key == "components" ? &entry.components
                                    : nullptr;
      if (key == "enabled") enabled = Words(rest) != std::vector<std::string>{"no"};
    }
    if (field != nullptr)
      for (const auto& word : Words(rest)) field->push_back(word);
  }
  finish();
  return entries;
}

std::vector<AptEntry> ReadAptEntries(const std::string& etc_apt) {
  std::vector<std::string> files;
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator(etc_apt + "/sources.list.d", error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error))
    files.push_back(it->path().string());
  std::sort(files.begin(), files.end());
  files.insert(files.begin(), etc_apt + "/sources.list");
  std::vector<AptEntry> all;
  for (const auto& file : files) {
    bool list = file.ends_with(".list"), paragraphs = file.ends_with(".sources");
    auto text = list || paragraphs ? ReadFile(file, size_t{1} << 20) : NotFound("");
    if (!text.ok()) continue;
    for (auto& entry : list ? ParseAptList(*text) : ParseAptParagraphs(*text))
      all.push_back(std::move(entry));
  }
  return all;
}

Result<DebianMirror> FindMirror(const std::vector<AptEntry>& entries) {
  DebianMirror mirror;
  for (const auto& entry : entries) {
    if (!Has(entry.types, "deb") || entry.uris.empty()) continue;
    if (!entry.components.empty() && !Has(entry.components, "main")) continue;
    for (const auto& suite : entry.suites) {
      if (mirror.main.empty() && DebianSuite(suite)) mirror.main = entry.uris[0];
      if (mirror.security.empty() && suite.ends_with("-security") &&
          DebianSuite(suite.substr(0, suite.size() - 9)))
        mirror.security = entry.uris[0];
    }
  }
  if (mirror.main.empty())
    return NotFound(
        "this machine's apt settings name no Debian mirror; add one, or import an image by `lydian image "
        "import`");
  return mirror;
}

std::vector<std::string> SourceLines(const DebianMirror& mirror, const std::string& suite,
                                     const std::string& type) {
  std::string head = type + " [signed-by=" + kDebianKeyring + "] ";
  std::vector<std::string> lines = {head + mirror.main + " " + suite + " main"};
  if (suite == "sid" || suite == "unstable") return lines;
  lines.push_back(head + mirror.main + " " + suite + "-updates main");
  if (!mirror.security.empty()) lines.push_back(head + mirror.security + " " + suite + "-security main");
  return lines;
}

}  // namespace lydian::build
