#include "runtime/network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "os/mount.h"
#include "os/namespaces.h"
#include "runtime/plan.h"

namespace lydian::runtime {
namespace {

constexpr uint32_t kPermitBatch = 256;

// The hardware address follows from the IP address, so that the firewall can hold pairs of both before they
// are in use.
os::Mac MacOf(uint32_t address) {
  return {0x02,
          0x4c,
          static_cast<uint8_t>(address >> 24),
          static_cast<uint8_t>(address >> 16),
          static_cast<uint8_t>(address >> 8),
          static_cast<uint8_t>(address)};
}

std::string MacText(const os::Mac& mac) {
  char text[18];
  std::snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
                mac[5]);
  return text;
}

Status ParseRange(const std::string& text, uint32_t* first, int* prefix) {
  size_t slash = text.find('/');
  if (slash == std::string::npos)
    return InvalidArgument("address range \"" + text + "\" has no prefix length");
  ASSIGN_OR_RETURN(*first, os::ParseIpv4(text.substr(0, slash)));
  *prefix = std::atoi(text.c_str() + slash + 1);
  if (*prefix < 8 || *prefix > 28)
    return InvalidArgument("address range \"" + text + "\": the prefix must be from /8 to /28");
  *first &= ~uint32_t{0} << (32 - *prefix);
  return OkStatus();
}

// The MTU of the link that the default route leaves by.
uint32_t OutgoingMtu(os::Netlink* netlink) {
  auto routes = netlink->Routes();
  if (!routes.ok()) return 1500;
  for (const auto& route : *routes) {
    char name[IF_NAMESIZE];
    if (route.prefix != 0 || ::if_indextoname(static_cast<unsigned>(route.out_index), name) == nullptr)
      continue;
    auto text = ReadFile(std::string("/sys/class/net/") + name + "/mtu", 64);
    uint32_t mtu = text.ok() ? static_cast<uint32_t>(std::strtoul(text->c_str(), nullptr, 10)) : 0;
    if (mtu >= 576) return std::min(mtu, 1500u);
  }
  return 1500;
}

// The calling thread is in another network namespace while this lives.
class InNetwork {
 public:
  InNetwork(int target, int home) : home_(home) { entered_ = ::setns(target, CLONE_NEWNET) == 0; }
  ~InNetwork() {
    if (entered_) CHECK(::setns(home_, CLONE_NEWNET) == 0);
  }
  InNetwork(const InNetwork&) = delete;
  InNetwork& operator=(const InNetwork&) = delete;
  Status status() const { return entered_ ? OkStatus() : ErrnoStatus("entering a network namespace", EPERM); }

 private:
  int home_;
  bool entered_;
};

}  // namespace

Result<std::string> WhoHasRange(const std::string& range, const std::string& own) {
  uint32_t first = 0;
  int prefix = 0;
  RETURN_IF_ERROR(ParseRange(range, &first, &prefix));
  ASSIGN_OR_RETURN(os::Netlink netlink, os::Netlink::Open());
  ASSIGN_OR_RETURN(auto routes, netlink.Routes());
  for (const auto& route : routes) {
    if (route.prefix == 0) continue;
    uint32_t mask = ~uint32_t{0} << (32 - std::min(prefix, route.prefix));
    if ((first & mask) != (route.destination & mask)) continue;
    char name[IF_NAMESIZE] = "?";
    ::if_indextoname(static_cast<unsigned>(route.out_index), name);
    if (own == name) continue;
    return "the route " + os::Ipv4Text(route.destination) + "/" + std::to_string(route.prefix) + " of " +
           name;
  }
  return std::string();
}

Result<std::unique_ptr<Networks>> Networks::Create(const RuntimeOptions& options) {
  const std::string& instance = options.instance;
  if (instance.empty() || instance.size() > 8)
    return InvalidArgument("instance name \"" + instance + "\": 1 to 8 characters");
  ASSIGN_OR_RETURN(IdRanges ranges, IdRanges::Claim(instance));
  ASSIGN_OR_RETURN(os::Netlink netlink, os::Netlink::Open());
  std::unique_ptr<Networks> networks(new Networks(instance, std::move(ranges), std::move(netlink)));
  networks->state_dir_ = options.state_dir;
  networks->host_ns_.reset(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!networks->host_ns_.valid()) return ErrnoStatus("opening the host's network namespace");
  networks->ruleset_.instance = instance;
  networks->ruleset_.deny_private = options.deny_private;
  networks->ruleset_.build_destinations = options.build_destinations;
  for (const auto& text : options.denied_networks) {
    ASSIGN_OR_RETURN(std::string network, ParseNetwork(text));
    networks->ruleset_.denied.push_back(std::move(network));
  }
  RETURN_IF_ERROR(networks->ChooseRange(options.address_range));
  networks->ruleset_.range = networks->range_text_;
  auto watch = os::TableWatch::Open();
  if (watch.ok()) {
    networks->watch_ = std::make_unique<os::TableWatch>(std::move(*watch));
  } else {
    LOG_WARN("nobody will notice when the firewall table is flushed", {{"error", watch.status()}});
  }
  return networks;
}

Status Networks::ChooseRange(const std::string& wanted) {
  if (!wanted.empty()) {
    ASSIGN_OR_RETURN(std::string taker, WhoHasRange(wanted, instance_));
    if (!taker.empty()) {
      return FailedPrecondition("the address range " + wanted + " is taken by " + taker +
                                ": configure another one");
    }
    range_text_ = wanted;
  } else {
    uint32_t hash = 0;
    for (unsigned char c : instance_) hash = hash * 31 + c;
    for (uint32_t i = 0; i < 128 && range_text_.empty(); ++i) {
      std::string range = "10." + std::to_string(64 + (hash + i) % 128) + ".0.0/16";
      ASSIGN_OR_RETURN(std::string taker, WhoHasRange(range, instance_));
      if (taker.empty()) range_text_ = range;
    }
    if (range_text_.empty())
      return FailedPrecondition("no free range of addresses in 10.64.0.0/10: configure one");
  }
  RETURN_IF_ERROR(ParseRange(range_text_, &first_, &prefix_));
  last_ = first_ + static_cast<uint32_t>((uint64_t{1} << (32 - prefix_)) - 1);
  gateway_ = first_ + 1;
  next_address_ = first_ + 2;
  permitted_to_ = next_address_;
  return OkStatus();
}

Status Networks::Prepare() {
  if (prepared_) return OkStatus();
  RETURN_IF_ERROR(PrepareBridge());
  RETURN_IF_ERROR(PrepareFirewall());
  if (Status status = PrepareRules(); !status.ok()) {
    LOG_WARN("containers are not cut off while somebody flushes the firewall's tables", {{"error", status}});
  }
  auto forwarding = ReadFile("/proc/sys/net/ipv4/ip_forward", 16);
  RETURN_IF_ERROR(forwarding.status());
  if (forwarding->starts_with("0")) {
    RETURN_IF_ERROR(WriteExisting("/proc/sys/net/ipv4/ip_forward", "1"));
    turned_forwarding_on_ = true;
    // So that removing the instance can put it back.
    RETURN_IF_ERROR(WriteFileAtomic(state_dir_ + "/ip_forward_was_off", "1\n"));
    LOG_INFO("turned on IPv4 forwarding, which containers need to reach the network",
             {{"bridge", instance_}});
  }
  prepared_ = true;
  return OkStatus();
}

Status Networks::PrepareBridge() {
  Status status = netlink_.AddBridge(instance_, MacOf(gateway_));
  if (!status.ok() && status.error() != EEXIST) return status;
  bridge_ = static_cast<int>(::if_nametoindex(instance_.c_str()));
  if (bridge_ == 0) return ErrnoStatus("finding bridge " + instance_);
  mtu_ = OutgoingMtu(&netlink_);
  // Before it is up, so that it never has a link-local address that containers could reach.
  (void)WriteExisting("/proc/sys/net/ipv6/conf/" + instance_ + "/disable_ipv6", "1");
  RETURN_IF_ERROR(netlink_.SetMtu(bridge_, mtu_));
  RETURN_IF_ERROR(netlink_.AddAddress(bridge_, gateway_, prefix_));
  ASSIGN_OR_RETURN(uint32_t nameserver, os::ParseIpv4(kNameserver));
  RETURN_IF_ERROR(netlink_.AddAddress(bridge_, nameserver, 32));
  return netlink_.SetUp(bridge_);
}

namespace {

// For packets that have not been through the table, because it is gone: from containers to elsewhere, and
// from this machine to containers. The second is also what the bridge's check of source addresses asks, so
// that what comes to this machine itself is dropped too. ARP asks the same, and ICMP from here to containers
// has no mark: by protocol.
std::vector<os::MarkRule> ClosingRules(const std::string& bridge, uint32_t range, int prefix) {
  constexpr uint32_t kPriority = 90;  // after `local`, before all that could show a way
  const os::MarkRule out{.priority = kPriority, .in = bridge, .bit = kPacketMark};
  const os::MarkRule back{
      .priority = kPriority, .in = "lo", .to = range, .to_prefix = prefix, .bit = kPacketMark};
  std::vector<os::MarkRule> rules = {out};
  for (uint8_t protocol : {IPPROTO_TCP, IPPROTO_UDP}) {
    rules.push_back(back);
    rules.back().protocol = protocol;
  }
  // The kernel looks for the protocol in packets that come in only if a rule for other links than lo asks for
  // it.
  rules.push_back(out);
  rules.back().protocol = IPPROTO_UDP;
  return rules;
}

}  // namespace

Status Networks::PrepareRules() {
  const std::string conf = "/proc/sys/net/ipv4/conf/" + instance_;
  RETURN_IF_ERROR(WriteExisting(conf + "/src_valid_mark", "1"));
  RETURN_IF_ERROR(WriteExisting(conf + "/rp_filter", "1"));
  for (const auto& rule : ClosingRules(instance_, first_, prefix_)) RETURN_IF_ERROR(netlink_.AddRule(rule));
  return OkStatus();
}

Status Networks::PrepareFirewall() {
  if (firewall_ == nullptr) {
    ASSIGN_OR_RETURN(os::Nftables opened, os::Nftables::Open());
    firewall_ = std::make_unique<os::Nftables>(std::move(opened));
  }
  RETURN_IF_ERROR(firewall_->Run(RulesetText(ruleset_)).With("firewall").status());
  if (watch_ != nullptr) (void)watch_->Changed(instance_);  // that was us
  ASSIGN_OR_RETURN(listing_, Listing());
  uint32_t in_use = addresses_.empty() ? next_address_ : std::max(next_address_, *addresses_.rbegin());
  permitted_to_ = first_ + 2;
  RETURN_IF_ERROR(PermitAddresses(in_use));
  for (uint32_t address : builders_) RETURN_IF_ERROR(SetBuilder(address, true));
  return OkStatus();
}

Result<std::string> Networks::Listing() {
  std::string all;
  for (const auto& command : ListingCommands(instance_)) {
    ASSIGN_OR_RETURN(std::string part, firewall_->Run(command));
    all += part;
  }
  return all;
}

Status Networks::SetBuilder(uint32_t address, bool on) {
  return firewall_
      ->Run((on ? "add" : "delete") + std::string(" element inet ") + instance_ + " builders { " +
            os::Ipv4Text(address) + " }")
      .With("firewall")
      .status();
}

void Networks::OnEvent() {
  if (watch_ == nullptr || !watch_->Changed(instance_) || !prepared_) return;
  auto now = Listing();
  if (now.ok() && *now == listing_) return;
  LOG_WARN("somebody changed the firewall table, which is made again", {{"table", instance_}});
  if (Status status = PrepareFirewall(); !status.ok()) {
    LOG_ERROR(
        "the firewall table could not be made again: containers reach nothing until the next one starts",
        {{"table", instance_}, {"error", status}});
  }
}

Status Networks::PermitAddresses(uint32_t address) {
  if (address < permitted_to_) return OkStatus();
  uint32_t end = std::min(last_, std::max(address + 1, permitted_to_ + kPermitBatch));
  std::string elements;
  for (uint32_t at = permitted_to_; at < end; ++at) {
    elements += (elements.empty() ? "" : ", ") + os::Ipv4Text(at) + " . " + MacText(MacOf(at));
  }
  RETURN_IF_ERROR(firewall_->Run("add element inet " + instance_ + " members { " + elements + " }")
                      .With("firewall")
                      .status());
  permitted_to_ = end;
  return OkStatus();
}

// Whoever reloads the machine's rules may have flushed ours; a container without them would reach the host.
Status Networks::KeepFirewall() {
  if (firewall_->Run("list chain inet " + instance_ + " input").ok()) return OkStatus();
  LOG_WARN("the firewall table is gone, and is made again", {{"table", instance_}});
  return PrepareFirewall();
}

Result<uint32_t> Networks::TakeAddress() {
  uint32_t count = last_ - first_ - 2;
  for (uint32_t i = 0; i < count; ++i) {
    uint32_t address = next_address_++;
    if (next_address_ >= last_) next_address_ = first_ + 2;
    if (!addresses_.insert(address).second) continue;
    RETURN_IF_ERROR(PermitAddresses(address));
    return address;
  }
  return ResourceExhausted("all addresses of " + range_text_ + " are in use");
}

Result<Pair> Networks::Take(bool nat, bool build) {
  Pair pair;
  if (nat && !pool_.empty()) {
    pair = std::move(pool_.front());
    pool_.pop_front();
  } else {
    ASSIGN_OR_RETURN(pair, Make(nat));
  }
  if (!nat || !build || ruleset_.build_destinations.empty()) return pair;
  if (Status status = SetBuilder(pair.address, true); !status.ok()) {
    Return(pair);
    return status;
  }
  pair.builder = true;
  builders_.insert(pair.address);
  return pair;
}

Status Networks::AddToPool() {
  ASSIGN_OR_RETURN(Pair pair, Make(true));
  pool_.push_back(std::move(pair));
  return OkStatus();
}

void Networks::Drain() {
  for (const auto& pair : pool_) Return(pair);
  pool_.clear();
}

void Networks::Return(const Pair& pair) {
  if (pair.base != 0) ranges_.Return(pair.base);
  addresses_.erase(pair.address);
  if (pair.address != 0) {
    if (Status status = netlink_.DeleteNeighbor(bridge_, pair.address); !status.ok())
      LOG_WARN("an address stays known", {{"address", os::Ipv4Text(pair.address)}, {"error", status}});
  }
  if (!pair.builder) return;
  builders_.erase(pair.address);
  if (Status status = SetBuilder(pair.address, false); !status.ok())
    LOG_WARN("an address may still reach what builds may",
             {{"address", os::Ipv4Text(pair.address)}, {"error", status}});
}

Result<Pair> Networks::Make(bool nat) {
  Pair pair;
  Status status = nat ? Prepare() : OkStatus();
  if (status.ok() && nat) status = KeepFirewall();
  if (status.ok()) status = MakeNamespaces(&pair);
  if (status.ok() && nat) status = ConnectHostSide(&pair);
  if (status.ok()) status = ConfigureInside(&pair, nat);
  if (status.ok()) status = MakeOwnFiles(&pair);
  if (!status.ok()) {
    Return(pair);
    return status;
  }
  return pair;
}

Status Networks::MakeNamespaces(Pair* pair) {
  ASSIGN_OR_RETURN(pair->base, ranges_.Take());
  ASSIGN_OR_RETURN(os::UserAndNet made, os::MakeUserAndNet(pair->base, IdRanges::kSize));
  pair->user_ns = std::move(made.user);
  pair->net_ns = std::move(made.net);
  return OkStatus();
}

Status Networks::ConnectHostSide(Pair* pair) {
  ASSIGN_OR_RETURN(pair->address, TakeAddress());
  os::Mac mac = MacOf(pair->address);
  for (int attempt = 0; attempt < 1000; ++attempt) {
    char name[IF_NAMESIZE];
    next_link_ = (next_link_ + 1) & 0xfffff;
    std::snprintf(name, sizeof name, "%sv%x", instance_.c_str(), next_link_);
    Status status = netlink_.AddVeth(name, "eth0", mac, pair->net_ns.get(), mtu_);
    if (status.error() == EEXIST) continue;  // of an older container whose namespace is still being torn down
    RETURN_IF_ERROR(status);
    int index = static_cast<int>(::if_nametoindex(name));
    if (index == 0) return ErrnoStatus(std::string("finding link ") + name);
    (void)WriteExisting(std::string("/proc/sys/net/ipv6/conf/") + name + "/disable_ipv6", "1");
    RETURN_IF_ERROR(netlink_.AddNeighbor(bridge_, pair->address, mac));
    return netlink_.AddBridgePort(index, bridge_, mac);
  }
  return ResourceExhausted("no free name for a veth pair");
}

Status Networks::ConfigureInside(Pair* pair, bool nat) {
  InNetwork inside(pair->net_ns.get(), host_ns_.get());
  RETURN_IF_ERROR(inside.status());
  ASSIGN_OR_RETURN(os::Netlink netlink, os::Netlink::Open());
  constexpr int kLoopback = 1;
  RETURN_IF_ERROR(netlink.SetUp(kLoopback));
  ASSIGN_OR_RETURN(uint32_t inside_address, os::ParseIpv4(kInsideAddress));
  RETURN_IF_ERROR(netlink.AddAddress(kLoopback, inside_address, 32));
  if (nat) {
    int index = static_cast<int>(::if_nametoindex("eth0"));
    if (index == 0) return ErrnoStatus("finding eth0");
    (void)WriteExisting("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
    // The machine has one table of neighbours for all containers and itself: here nobody but the gateway is
    // one, and it is known.
    RETURN_IF_ERROR(netlink.AddAddress(index, pair->address, 32));
    RETURN_IF_ERROR(netlink.SetUp(index));
    RETURN_IF_ERROR(netlink.AddNeighbor(index, gateway_, MacOf(gateway_)));
    RETURN_IF_ERROR(netlink.AddDefaultRoute(gateway_, index));
  }
  // ping without rights, and any port for any user inside.
  (void)WriteExisting("/proc/sys/net/ipv4/ping_group_range", "0 4294836225");
  (void)WriteExisting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
  pair->http_listener.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!pair->http_listener.valid()) return ErrnoStatus("making the HTTP socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(80);
  address.sin_addr.s_addr = htonl(inside_address);
  if (::bind(pair->http_listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(pair->http_listener.get(), 1024) != 0) {
    return ErrnoStatus("listening at http://" + std::string(kInsideAddress));
  }
  return OkStatus();
}

// One tmpfs for /dev and the files of /etc. It is made out here, since device nodes can't be made in a user
// namespace.
Status Networks::MakeOwnFiles(Pair* pair) {
  ASSIGN_OR_RETURN(os::FsContext context, os::FsContext::Open("tmpfs"));
  RETURN_IF_ERROR(context.Set("mode", "0755"));
  RETURN_IF_ERROR(context.Set("size", "65536k"));
  RETURN_IF_ERROR(context.Set("uid", std::to_string(pair->base)));
  RETURN_IF_ERROR(context.Set("gid", std::to_string(pair->base)));
  ASSIGN_OR_RETURN(pair->own_files, context.Mount(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC));
  os::ScopedFsIds ids(pair->base, pair->base);
  const int root = pair->own_files.get();
  for (const char* dir : {"dev", "etc", "empty", "dev/pts", "dev/shm", "dev/mqueue"}) {
    if (::mkdirat(root, dir, 0755) != 0) return ErrnoStatus(std::string("creating ") + dir);
  }
  static constexpr struct {
    const char* path;
    unsigned major, minor;
  } kNodes[] = {{"dev/null", 1, 3},   {"dev/zero", 1, 5},    {"dev/full", 1, 7},
                {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0}};
  for (const auto& node : kNodes) {
    // chmod: mknod obeys the umask.
    if (::mknodat(root, node.path, S_IFCHR | 0666, makedev(node.major, node.minor)) != 0 ||
        ::fchmodat(root, node.path, 0666, 0) != 0) {
      return ErrnoStatus(std::string("creating ") + node.path);
    }
  }
  static constexpr const char* kLinks[][2] = {{"/proc/self/fd", "dev/fd"},
                                              {"/proc/self/fd/0", "dev/stdin"},
                                              {"/proc/self/fd/1", "dev/stdout"},
                                              {"/proc/self/fd/2", "dev/stderr"},
                                              {"pts/ptmx", "dev/ptmx"}};
  for (const auto& link : kLinks) {
    if (::symlinkat(link[0], root, link[1]) != 0) return ErrnoStatus(std::string("creating ") + link[1]);
  }
  return OkStatus();
}

namespace {

Status RemoveVeths(os::Netlink* netlink, const std::string& instance) {
  ASSIGN_OR_RETURN(auto links, netlink->Links());
  for (const auto& link : links) {
    if (!link.name.starts_with(instance + "v")) continue;
    Status status = netlink->DeleteLink(link.name);
    if (!status.ok() && status.error() != ENODEV) return status;
  }
  return OkStatus();
}

Status RemoveBridgeAndTable(os::Netlink* netlink, os::Nftables* firewall, const std::string& instance) {
  const auto bridge = static_cast<int>(::if_nametoindex(instance.c_str()));
  auto routes = netlink->Routes();
  for (const auto& route : routes.ok() ? *routes : std::vector<os::Route>()) {
    if (bridge == 0 || route.out_index != bridge || route.prefix == 0) continue;
    for (const auto& rule : ClosingRules(instance, route.destination, route.prefix))
      (void)netlink->DeleteRule(rule);
  }
  Status status = ::if_nametoindex(instance.c_str()) != 0 ? netlink->DeleteLink(instance) : OkStatus();
  if (status.error() == ENODEV) status = OkStatus();
  // Added first, so that deleting it is right whether it is there or not.
  Status removed =
      firewall->Run("add table inet " + instance + "\ndelete table inet " + instance + "\n").status();
  return status.ok() ? removed : status;
}

}  // namespace

Status Networks::RemoveLeftoverLinks() { return RemoveVeths(&netlink_, instance_); }

Status Networks::Remove() {
  Drain();
  if (!prepared_) return OkStatus();
  prepared_ = false;
  return RemoveBridgeAndTable(&netlink_, firewall_.get(), instance_);
}

Status Networks::RemoveAll(const std::string& instance) {
  ASSIGN_OR_RETURN(os::Netlink netlink, os::Netlink::Open());
  ASSIGN_OR_RETURN(os::Nftables firewall, os::Nftables::Open());
  RETURN_IF_ERROR(RemoveVeths(&netlink, instance));
  return RemoveBridgeAndTable(&netlink, &firewall, instance);
}

}  // namespace lydian::runtime
