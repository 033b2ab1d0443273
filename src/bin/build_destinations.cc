#include "bin/build_destinations.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <set>

#include "base/fd.h"
#include "base/log.h"
#include "build/host_settings.h"

namespace lydian::bin {

std::vector<std::pair<std::string, std::string>> FindHosts(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> hosts;
  for (size_t at = text.find("://"); at != std::string_view::npos; at = text.find("://", at)) {
    const std::string_view before = text.substr(0, at);
    at += 3;
    std::string port;
    if (before.ends_with("http")) port = "80";
    if (before.ends_with("https")) port = "443";
    if (port.empty()) continue;
    std::string_view authority = text.substr(at);
    authority = authority.substr(0, authority.find_first_of("/?#,;\"' \t\r\n"));
    const size_t user = authority.rfind('@');
    if (user != std::string_view::npos) authority.remove_prefix(user + 1);
    if (authority.starts_with('[')) continue;  // containers have no IPv6
    const size_t colon = authority.find(':');
    if (colon != std::string_view::npos) port = authority.substr(colon + 1);
    const bool number =
        !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
    if (number && std::stoi(port) <= 65535 && colon != 0 && !authority.empty())
      hosts.emplace_back(authority.substr(0, colon), port);
  }
  return hosts;
}

std::vector<std::string> BuildDestinations() {
  const build::HostSettings settings = build::FindHostSettings(build::Lending::kAll);
  std::string text;
  for (const auto& [key, value] : settings.env) text += value + "\n";
  for (const Mount& mount : settings.mounts) {
    if (mount.source().ends_with(".conf")) text += ReadFile(mount.source(), 1 << 20).value_or("") + "\n";
  }
  std::set<std::string> found;
  for (const auto& [host, port] : FindHosts(text)) {
    addrinfo hints{}, *list = nullptr;
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    if (int failed = ::getaddrinfo(host.c_str(), nullptr, &hints, &list); failed != 0) {
      LOG_WARN("a host of the package settings does not resolve; builds may not reach it",
               {{"host", host}, {"error", ::gai_strerror(failed)}});
      continue;
    }
    for (const addrinfo* at = list; at != nullptr; at = at->ai_next) {
      char address[INET_ADDRSTRLEN];
      const auto* raw = reinterpret_cast<const sockaddr_in*>(at->ai_addr);
      if (::inet_ntop(AF_INET, &raw->sin_addr, address, sizeof address) != nullptr)
        found.insert(std::string(address) + ":" + port);
    }
    ::freeaddrinfo(list);
  }
  return {found.begin(), found.end()};
}

}  // namespace lydian::bin
