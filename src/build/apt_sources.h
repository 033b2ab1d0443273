// Which Debian mirror this machine uses, from its own apt settings.
// Thread-safety: pure functions. Errors: NOT_FOUND with what to do.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace lydian::build {

struct AptEntry {
  std::vector<std::string> types, uris, suites, components;
};

// Both of apt's forms: one line an entry, and paragraphs.
std::vector<AptEntry> ParseAptList(const std::string& text);
std::vector<AptEntry> ParseAptParagraphs(const std::string& text);
std::vector<AptEntry> ReadAptEntries(const std::string& etc_apt = "/etc/apt");

struct DebianMirror {
  std::string main;      // "http://.../debian"
  std::string security;  // may be empty
};
Result<DebianMirror> FindMirror(const std::vector<AptEntry>& entries);

// Lines of a sources.list for a suite: the suite, its updates, its security updates.
std::vector<std::string> SourceLines(const DebianMirror& mirror, const std::string& suite,
                                     const std::string& type);

inline constexpr const char* kDebianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg";

}  // namespace lydian::build
