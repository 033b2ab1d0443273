#include "runtime/ruleset.h"

#include <charconv>

#include "os/netlink.h"
#include "runtime/plan.h"

namespace lydian::runtime {
namespace {

// Never reached: this host by its loopback, the link's own addresses, and where clouds answer questions about
// the machine and hand out its credentials (169.254.169.254 and, by cloud, Azure, Alibaba, Oracle). IPv6
// isn't forwarded.
constexpr const char* kDenied[] = {"0.0.0.0/8",          "127.0.0.0/8",  "169.254.0.0/16", "168.63.129.16/32",
                                   "100.100.100.200/32", "192.0.0.0/24", "224.0.0.0/4",    "240.0.0.0/4"};
constexpr const char* kPrivate[] = {"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16",
                                    "198.18.0.0/15"};

std::string Hex(uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", value);
  return text;
}

std::string Set(const std::string& name, const std::string& type, const std::string& flags,
                const std::string& elements) {
  return " set " + name + " { type " + type + ";" + (flags.empty() ? "" : " flags " + flags + ";") +
         (elements.empty() ? "" : " elements = { " + elements + " };") + " }\n";
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

Result<std::string> ParseNetwork(const std::string& text) {
  const size_t slash = std::min(text.find('/'), text.size());
  auto address = os::ParseIpv4(text.substr(0, slash));
  int prefix = 32;
  bool good = address.ok();
  if (slash < text.size()) {
    const char* end = text.data() + text.size();
    auto [at, error] = std::from_chars(text.data() + slash + 1, end, prefix);
    good = good && error == std::errc() && at == end && prefix >= 0 && prefix <= 32;
  }
  if (!good) {
    return InvalidArgument("\"" + text +
                           "\" is not an IPv4 network: give an address and a prefix, as in 10.0.0.0/8");
  }
  const uint32_t mask = prefix == 0 ? 0 : ~uint32_t{0} << (32 - prefix);
  return os::Ipv4Text(*address & mask) + "/" + std::to_string(prefix);
}

std::string RulesetText(const Ruleset& rules) {
  const std::string table = "table inet " + rules.instance, bridge = "\"" + rules.instance + "\"";
  const std::string from = "  iifname " + bridge + " ", to = "  oifname " + bridge + " ";
  std::vector<std::string> denied(std::begin(kDenied), std::end(kDenied)), destinations;
  if (rules.deny_private) denied.insert(denied.end(), std::begin(kPrivate), std::end(kPrivate));
  denied.insert(denied.end(), rules.denied.begin(), rules.denied.end());
  for (const auto& destination : rules.build_destinations) {
    const size_t colon = destination.find(':');
    destinations.push_back(destination.substr(0, colon) + " . " + destination.substr(colon + 1));
  }
  const std::string build = "ip saddr @builders ip daddr . tcp dport @destinations ";
  return "add " + table + "\ndelete " + table + "\n" + table + " {\n" +
         Set("members", "ipv4_addr . ether_addr", "", "") +
         // Networks of the operator's may lie in one another.
         Set("denied", "ipv4_addr", "interval; auto-merge", Join(denied)) +
         Set("builders", "ipv4_addr", "", "") +
         Set("destinations", "ipv4_addr . inet_service", "", Join(destinations)) +
         " chain prerouting { type filter hook prerouting priority raw; policy accept;\n" + from +
         "meta nfproto ipv6 drop\n" + from + "ip saddr . ether saddr != @members drop\n" + from +
         "meta mark set meta mark or " + Hex(kPacketMark) + "\n" +
         " }\n"
         " chain input { type filter hook input priority filter - 5; policy accept;\n"
         "  iifname != " +
         bridge +
         " accept\n"
         "  ct state established,related accept\n"
         "  ip daddr " +
         kNameserver +
         " udp dport 53 accept\n"
         "  ip daddr " +
         kNameserver +
         " tcp dport 53 accept\n"
         "  drop\n"
         " }\n"
         " chain forward { type filter hook forward priority filter - 5; policy accept;\n" +
         // Other containers of this and of other instances.
         from + "oifname \"ly*\" drop\n" + from + "oifname " + bridge + " drop\n" +
         // The way is chosen, and others' rules may read marks.
         from + "meta mark set meta mark and " + Hex(~kPacketMark) + "\n" + from + build + "accept\n" + from +
         "ip daddr @denied drop\n" + from + "accept\n" + to + "ct state established,related accept\n" + to +
         "drop\n"
         " }\n"
         " chain postrouting { type nat hook postrouting priority srcnat; policy accept;\n"
         "  ip saddr " +
         rules.range + " oifname != " + bridge +
         " masquerade\n"
         " }\n}\n";
}

std::vector<std::string> ListingCommands(const std::string& instance) {
  std::vector<std::string> commands;
  for (const char* chain : {"prerouting", "input", "forward", "postrouting"})
    commands.push_back("list chain inet " + instance + " " + chain);
  for (const char* set : {"denied", "destinations"})
    commands.push_back("list set inet " + instance + " " + set);
  return commands;
}

}  // namespace lydian::runtime
