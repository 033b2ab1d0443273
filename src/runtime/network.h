// The instance's bridge, firewall and NAT, and pairs of {user namespace, network namespace} that are ready
// for containers. A network namespace must be owned by its container's user namespace, or /sys can't be
// mounted and port 80 not bound there. Thread-safety: none; the spawner's one thread (it changes its own
// network namespace for a moment). Ownership: a Pair owns its namespaces; when the last user of one is gone,
// the kernel removes eth0 and its other end.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "os/netlink.h"
#include "os/nftables.h"
#include "os/process.h"
#include "runtime/id_ranges.h"
#include "runtime/ruleset.h"
#include "runtime/runtime.h"

namespace lydian::runtime {

struct Pair {
  uint32_t base = 0;  // the host id of root inside
  UniqueFd user_ns, net_ns;
  UniqueFd http_listener;  // 169.254.77.1:80 on its lo
  UniqueFd own_files;      // a tmpfs: dev/ with its nodes, etc/ for hostname, hosts, resolv.conf
  uint32_t address = 0;    // of eth0, host byte order; 0 = none
  bool builder = false;    // may reach what builds may
};

class Networks {
 public:
  // Without `instance`'s bridge yet; the first pair with NAT makes it.
  static Result<std::unique_ptr<Networks>> Create(const RuntimeOptions& options);
  // Bridge, addresses, firewall. Idempotent.
  Status Prepare();
  // With `nat` out of the pool if it has one. `build`: it may reach the options' build destinations.
  Result<Pair> Take(bool nat, bool build = false);
  // Adds one to the pool.
  Status AddToPool();
  size_t pooled() const { return pool_.size(); }
  void Drain();
  void Return(const Pair& pair);  // its range and address may be used again
  // Removes veths of this instance that belong to no container: after a spawner was killed.
  Status RemoveLeftoverLinks();
  // Bridge and firewall, when no container is left.
  Status Remove();
  // The same and all leftovers, of an instance that does not run.
  static Status RemoveAll(const std::string& instance);
  // Readable when somebody may have changed the firewall; -1 = not to be had. Then KeepFirewall has to be
  // called.
  int event_fd() const { return watch_ != nullptr ? watch_->fd() : -1; }
  void OnEvent();
  const std::string& range() const { return range_text_; }
  bool turned_forwarding_on() const { return turned_forwarding_on_; }

 private:
  Networks(std::string instance, IdRanges ranges, os::Netlink netlink)
      : instance_(std::move(instance)), ranges_(std::move(ranges)), netlink_(std::move(netlink)) {}

  Status ChooseRange(const std::string& wanted);
  Result<std::string> RangeTaker(uint32_t first, int prefix);
  Status PrepareBridge();
  Status PrepareRules();
  Status PrepareFirewall();
  Status KeepFirewall();
  Status PermitAddresses(uint32_t address);
  Status SetBuilder(uint32_t address, bool on);
  Result<std::string> Listing();
  Result<Pair> Make(bool nat);
  Status MakeNamespaces(Pair* pair);
  Status ConnectHostSide(Pair* pair);
  Status ConfigureInside(Pair* pair, bool nat);
  Status MakeOwnFiles(Pair* pair);
  Result<uint32_t> TakeAddress();

  std::string instance_, state_dir_, range_text_;
  IdRanges ranges_;
  os::Netlink netlink_;
  std::unique_ptr<os::Nftables> firewall_;
  std::unique_ptr<os::TableWatch> watch_;
  Ruleset ruleset_;
  std::string listing_;  // of the table as we made it
  std::set<uint32_t> builders_;
  UniqueFd host_ns_;
  uint32_t first_ = 0, last_ = 0, gateway_ = 0, mtu_ = 1500;
  int prefix_ = 16, bridge_ = 0;
  bool prepared_ = false, turned_forwarding_on_ = false;
  uint32_t next_address_ = 0, permitted_to_ = 0;
  std::set<uint32_t> addresses_;
  uint32_t next_link_ = 0;
  std::deque<Pair> pool_;
};

// Why the range can't be had, "" if it can: "a route of eth1". `own` is the bridge whose own routes don't
// count.
Result<std::string> WhoHasRange(const std::string& range, const std::string& own);

}  // namespace lydian::runtime
