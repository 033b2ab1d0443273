// Where the host's package settings point: indexes and proxies that builds have to reach, also if they lie in
// a network that containers are kept from. Thread-safety: pure, but for BuildDestinations, which reads this
// process's environment and pip's settings and asks the resolver (it may take seconds).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lydian::bin {

// {host, port} of each http or https address in the text, whatever lies between them.
std::vector<std::pair<std::string, std::string>> FindHosts(std::string_view text);
// "10.1.2.3:3128" of each that resolves to IPv4.
std::vector<std::string> BuildDestinations();

}  // namespace lydian::bin
