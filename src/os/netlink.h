// Links, addresses and routes over rtnetlink.
// Thread-safety: none; one socket, one caller. The socket acts on the network namespace in which it was
// opened. Errors: errno with what was tried.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::os {

using Mac = std::array<uint8_t, 6>;

struct Link {
  int index = 0;
  std::string name;
};

struct Route {
  uint32_t destination = 0;  // host byte order
  int prefix = 0;            // 0 = the default route
  int out_index = 0;
};

// A routing rule that refuses packets without a bit in their mark.
struct MarkRule {
  uint32_t priority = 0;
  std::string in;  // the link that they come from; "lo": from this machine itself
  uint32_t to = 0;
  int to_prefix = 0;     // 0 = to anywhere
  uint32_t bit = 0;      // of the mark
  uint8_t protocol = 0;  // IPPROTO_*; 0 = all
};

// "10.77.0.0" as a number in host byte order and back.
Result<uint32_t> ParseIpv4(const std::string& text);
std::string Ipv4Text(uint32_t address);

class Netlink {
 public:
  static Result<Netlink> Open();

  Status AddBridge(const std::string& name, const Mac& mac);
  // A pair: `host` here, `peer` in the namespace behind `peer_ns`.
  Status AddVeth(const std::string& host, const std::string& peer, const Mac& peer_mac, int peer_ns,
                 uint32_t mtu);
  Status SetUp(int index);
  Status SetMtu(int index, uint32_t mtu);
  // Makes `index` a port of the bridge that reaches only the bridge itself, learns nothing and takes packets
  // from `mac` alone.
  Status AddBridgePort(int index, int bridge, const Mac& mac);
  Status DeleteLink(const std::string& name);
  Status AddAddress(int index, uint32_t address, int prefix);
  // The gateway need not be in a network of the link's addresses.
  Status AddDefaultRoute(uint32_t gateway, int index);
  // A neighbour that is never asked for: it doesn't count for the machine's limit of those that are learned.
  Status AddNeighbor(int index, uint32_t address, const Mac& mac);
  Status DeleteNeighbor(int index, uint32_t address);  // fine if it isn't there
  Status AddRule(const MarkRule& rule);                // fine if it is there
  Status DeleteRule(const MarkRule& rule);             // fine if it isn't
  Result<std::vector<Link>> Links();
  Result<std::vector<Route>> Routes();  // IPv4, main table

 private:
  explicit Netlink(UniqueFd fd) : fd_(std::move(fd)) {}
  Status ChangeRule(uint16_t type, uint16_t flags, const MarkRule& rule, const char* what);
  Status Talk(std::string* message, std::string_view what);
  Result<std::string> Dump(std::string* message, std::string_view what);

  UniqueFd fd_;
  uint32_t sequence_ = 1;
};

}  // namespace lydian::os
