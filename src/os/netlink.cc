#include "os/netlink.h"

#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>

#include <cstring>

namespace lydian::os {
namespace {

// Builds one message: header, family header, attributes (which nest).
class Message {
 public:
  template <typename Body>
  Message(uint16_t type, uint16_t flags, const Body& body) {
    nlmsghdr header{};
    header.nlmsg_type = type;
    header.nlmsg_flags = flags | NLM_F_REQUEST;
    Append(&header, sizeof header);
    Append(&body, sizeof body);
  }
  Message& Add(uint16_t type, const void* data, size_t size) {
    rtattr attr{static_cast<uint16_t>(RTA_LENGTH(size)), type};
    Append(&attr, sizeof attr);
    Append(data, size);
    return *this;
  }
  Message& Add(uint16_t type, const std::string& text) { return Add(type, text.c_str(), text.size() + 1); }
  Message& Add(uint16_t type, uint32_t value) { return Add(type, &value, sizeof value); }
  Message& Add8(uint16_t type, uint8_t value) { return Add(type, &value, sizeof value); }
  size_t Begin(uint16_t type) {
    size_t at = bytes_.size();
    Add(type | NLA_F_NESTED, nullptr, 0);
    return at;
  }
  Message& End(size_t at) {
    uint16_t length = static_cast<uint16_t>(bytes_.size() - at);
    std::memcpy(bytes_.data() + at, &length, sizeof length);
    return *this;
  }
  void Append(const void* data, size_t size) {
    if (size > 0) bytes_.append(static_cast<const char*>(data), size);
    bytes_.resize((bytes_.size() + 3) & ~size_t{3}, '\0');
  }
  std::string* bytes() { return &bytes_; }

 private:
  std::string bytes_;
};

ifinfomsg IfIndex(int index) {
  ifinfomsg info{};
  info.ifi_index = index;
  return info;
}

}  // namespace

Result<uint32_t> ParseIpv4(const std::string& text) {
  in_addr address{};
  if (::inet_pton(AF_INET, text.c_str(), &address) != 1)
    return InvalidArgument("not an IPv4 address: " + text);
  return ntohl(address.s_addr);
}

std::string Ipv4Text(uint32_t address) {
  in_addr raw{htonl(address)};
  char text[INET_ADDRSTRLEN];
  return ::inet_ntop(AF_INET, &raw, text, sizeof text);
}

Result<Netlink> Netlink::Open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd.valid()) return ErrnoStatus("opening a netlink socket");
  return Netlink(std::move(fd));
}

Status Netlink::Talk(std::string* message, std::string_view what) {
  auto* header = reinterpret_cast<nlmsghdr*>(message->data());
  header->nlmsg_len = static_cast<uint32_t>(message->size());
  header->nlmsg_flags |= NLM_F_ACK;
  header->nlmsg_seq = sequence_++;
  if (::send(fd_.get(), message->data(), message->size(), 0) < 0) return ErrnoStatus(what);
  alignas(nlmsghdr) char buffer[8192];
  while (true) {
    ssize_t n = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(what);
    auto* reply = reinterpret_cast<nlmsghdr*>(buffer);
    if (reply->nlmsg_type != NLMSG_ERROR || reply->nlmsg_seq != sequence_ - 1) continue;
    int error = -reinterpret_cast<nlmsgerr*>(NLMSG_DATA(reply))->error;
    return error == 0 ? OkStatus() : ErrnoStatus(what, error);
  }
}

Result<std::string> Netlink::Dump(std::string* message, std::string_view what) {
  auto* header = reinterpret_cast<nlmsghdr*>(message->data());
  header->nlmsg_len = static_cast<uint32_t>(message->size());
  header->nlmsg_flags |= NLM_F_DUMP;
  header->nlmsg_seq = sequence_++;
  if (::send(fd_.get(), message->data(), message->size(), 0) < 0) return ErrnoStatus(what);
  std::string all, buffer(65536, '\0');
  while (true) {
    ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(what);
    auto left = static_cast<uint32_t>(n);
    for (auto* part = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(part, left);
         part = NLMSG_NEXT(part, left)) {
      if (part->nlmsg_type == NLMSG_DONE) return all;
      if (part->nlmsg_type == NLMSG_ERROR) {
        return ErrnoStatus(what, -reinterpret_cast<nlmsgerr*>(NLMSG_DATA(part))->error);
      }
      all.append(reinterpret_cast<char*>(part), NLMSG_ALIGN(part->nlmsg_len));
    }
  }
}

Status Netlink::AddBridge(const std::string& name, const Mac& mac) {
  Message message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, ifinfomsg{});
  message.Add(IFLA_IFNAME, name).Add(IFLA_ADDRESS, mac.data(), mac.size());
  size_t info = message.Begin(IFLA_LINKINFO);
  message.Add(IFLA_INFO_KIND, std::string("bridge")).End(info);
  return Talk(message.bytes(), "creating bridge " + name);
}

Status Netlink::AddVeth(const std::string& host, const std::string& peer, const Mac& peer_mac, int peer_ns,
                        uint32_t mtu) {
  Message message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, ifinfomsg{});
  message.Add(IFLA_IFNAME, host).Add(IFLA_MTU, mtu);
  size_t info = message.Begin(IFLA_LINKINFO);
  message.Add(IFLA_INFO_KIND, std::string("veth"));
  size_t data = message.Begin(IFLA_INFO_DATA);
  size_t other = message.Begin(VETH_INFO_PEER);
  ifinfomsg peer_info{};
  message.Append(&peer_info, sizeof peer_info);
  message.Add(IFLA_IFNAME, peer).Add(IFLA_MTU, mtu).Add(IFLA_ADDRESS, peer_mac.data(), peer_mac.size());
  message.Add(IFLA_NET_NS_FD, static_cast<uint32_t>(peer_ns)).End(other).End(data).End(info);
  return Talk(message.bytes(), "creating veth pair " + host);
}

Status Netlink::SetUp(int index) {
  ifinfomsg info = IfIndex(index);
  info.ifi_flags = info.ifi_change = IFF_UP;
  Message message(RTM_NEWLINK, 0, info);
  return Talk(message.bytes(), "setting link " + std::to_string(index) + " up");
}

Status Netlink::SetMtu(int index, uint32_t mtu) {
  Message message(RTM_NEWLINK, 0, IfIndex(index));
  message.Add(IFLA_MTU, mtu);
  return Talk(message.bytes(), "setting the MTU of link " + std::to_string(index));
}

Status Netlink::AddBridgePort(int index, int bridge, const Mac& mac) {
  ifinfomsg info = IfIndex(index);
  info.ifi_flags = info.ifi_change = IFF_UP;
  Message join(RTM_NEWLINK, 0, info);
  join.Add(IFLA_MASTER, static_cast<uint32_t>(bridge));
  RETURN_IF_ERROR(Talk(join.bytes(), "adding link " + std::to_string(index) + " to the bridge"));
  ifinfomsg port_info = IfIndex(index);
  port_info.ifi_family = AF_BRIDGE;
  Message port(RTM_SETLINK, 0, port_info);
  size_t options = port.Begin(IFLA_PROTINFO);
  port.Add8(IFLA_BRPORT_ISOLATED, 1).Add8(IFLA_BRPORT_LEARNING, 0).Add8(IFLA_BRPORT_LOCKED, 1).End(options);
  RETURN_IF_ERROR(Talk(port.bytes(), "isolating a bridge port"));
  ndmsg entry{};
  entry.ndm_family = AF_BRIDGE;
  entry.ndm_ifindex = index;
  entry.ndm_state = NUD_NOARP;
  entry.ndm_flags = NTF_MASTER;
  Message neighbour(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, entry);
  neighbour.Add(NDA_LLADDR, mac.data(), mac.size());
  return Talk(neighbour.bytes(), "binding a bridge port to its address");
}

Status Netlink::DeleteLink(const std::string& name) {
  Message message(RTM_DELLINK, 0, ifinfomsg{});
  message.Add(IFLA_IFNAME, name);
  return Talk(message.bytes(), "removing link " + name);
}

Status Netlink::AddAddress(int index, uint32_t address, int prefix) {
  ifaddrmsg info{};
  info.ifa_family = AF_INET;
  info.ifa_prefixlen = static_cast<uint8_t>(prefix);
  info.ifa_index = static_cast<uint32_t>(index);
  uint32_t raw = htonl(address);
  Message message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, info);
  message.Add(IFA_LOCAL, raw).Add(IFA_ADDRESS, raw);
  Status status = Talk(message.bytes(), "adding address " + Ipv4Text(address));
  return status.error() == EEXIST ? OkStatus() : status;
}

Status Netlink::AddDefaultRoute(uint32_t gateway, int index) {
  rtmsg info{};
  info.rtm_family = AF_INET;
  info.rtm_table = RT_TABLE_MAIN;
  info.rtm_protocol = RTPROT_BOOT;
  info.rtm_scope = RT_SCOPE_UNIVERSE;
  info.rtm_type = RTN_UNICAST;
  info.rtm_flags = RTNH_F_ONLINK;
  Message message(RTM_NEWROUTE, NLM_F_CREATE, info);
  message.Add(RTA_GATEWAY, htonl(gateway)).Add(RTA_OIF, static_cast<uint32_t>(index));
  return Talk(message.bytes(), "adding the default route");
}

Status Netlink::AddNeighbor(int index, uint32_t address, const Mac& mac) {
  ndmsg info{};
  info.ndm_family = AF_INET;
  info.ndm_ifindex = index;
  info.ndm_state = NUD_PERMANENT;
  Message message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, info);
  message.Add(NDA_DST, htonl(address)).Add(NDA_LLADDR, mac.data(), mac.size());
  return Talk(message.bytes(), "adding the neighbour " + Ipv4Text(address));
}

Status Netlink::DeleteNeighbor(int index, uint32_t address) {
  ndmsg info{};
  info.ndm_family = AF_INET;
  info.ndm_ifindex = index;
  Message message(RTM_DELNEIGH, 0, info);
  message.Add(NDA_DST, htonl(address));
  Status status = Talk(message.bytes(), "removing the neighbour " + Ipv4Text(address));
  return status.error() == ENOENT ? OkStatus() : status;
}

Status Netlink::ChangeRule(uint16_t type, uint16_t flags, const MarkRule& rule, const char* what) {
  fib_rule_hdr info{};
  info.family = AF_INET;
  info.dst_len = static_cast<uint8_t>(rule.to_prefix);
  info.action = FR_ACT_PROHIBIT;
  Message message(type, flags, info);
  message.Add(FRA_PRIORITY, rule.priority).Add(FRA_IIFNAME, rule.in);
  if (rule.to_prefix != 0) message.Add(FRA_DST, htonl(rule.to));
  // All of the mark's other bits are of no interest, and this one is not set.
  message.Add(FRA_FWMARK, uint32_t{0}).Add(FRA_FWMASK, rule.bit);
  if (rule.protocol != 0) message.Add8(FRA_IP_PROTO, rule.protocol);
  return Talk(message.bytes(), std::string(what) + " for " + rule.in);
}

Status Netlink::AddRule(const MarkRule& rule) {
  Status status = ChangeRule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule, "adding a routing rule");
  return status.error() == EEXIST ? OkStatus() : status;
}

Status Netlink::DeleteRule(const MarkRule& rule) {
  Status status = ChangeRule(RTM_DELRULE, 0, rule, "removing a routing rule");
  return status.error() == ENOENT ? OkStatus() : status;
}

Result<std::vector<Link>> Netlink::Links() {
  Message message(RTM_GETLINK, 0, ifinfomsg{});
  ASSIGN_OR_RETURN(std::string all, Dump(message.bytes(), "listing links"));
  std::vector<Link> links;
  auto left = static_cast<uint32_t>(all.size());
  for (auto* part = reinterpret_cast<nlmsghdr*>(all.data()); NLMSG_OK(part, left);
       part = NLMSG_NEXT(part, left)) {
    auto* info = reinterpret_cast<ifinfomsg*>(NLMSG_DATA(part));
    auto size = static_cast<int>(part->nlmsg_len - NLMSG_LENGTH(sizeof *info));
    for (auto* attr = IFLA_RTA(info); RTA_OK(attr, size); attr = RTA_NEXT(attr, size)) {
      if (attr->rta_type == IFLA_IFNAME)
        links.push_back({info->ifi_index, static_cast<const char*>(RTA_DATA(attr))});
    }
  }
  return links;
}

Result<std::vector<Route>> Netlink::Routes() {
  rtmsg request{};
  request.rtm_family = AF_INET;
  Message message(RTM_GETROUTE, 0, request);
  ASSIGN_OR_RETURN(std::string all, Dump(message.bytes(), "listing routes"));
  std::vector<Route> routes;
  auto left = static_cast<uint32_t>(all.size());
  for (auto* part = reinterpret_cast<nlmsghdr*>(all.data()); NLMSG_OK(part, left);
       part = NLMSG_NEXT(part, left)) {
    auto* info = reinterpret_cast<rtmsg*>(NLMSG_DATA(part));
    if (info->rtm_table != RT_TABLE_MAIN || info->rtm_family != AF_INET) continue;
    Route route;
    route.prefix = info->rtm_dst_len;
    auto size = static_cast<int>(RTM_PAYLOAD(part));
    for (auto* attr = RTM_RTA(info); RTA_OK(attr, size); attr = RTA_NEXT(attr, size)) {
      uint32_t value = 0;
      if (RTA_PAYLOAD(attr) >= 4) std::memcpy(&value, RTA_DATA(attr), 4);
      if (attr->rta_type == RTA_DST) route.destination = ntohl(value);
      if (attr->rta_type == RTA_OIF) route.out_index = static_cast<int>(value);
    }
    routes.push_back(route);
  }
  return routes;
}

}  // namespace lydian::os
