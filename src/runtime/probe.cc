#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <sstream>

#include "os/caps.h"
#include "os/cgroup.h"
#include "os/mount.h"
#include "os/namespaces.h"
#include "os/netlink.h"
#include "os/nftables.h"
#include "os/process.h"
#include "os/seccomp.h"
#include "runtime/firewalls.h"
#include "runtime/layers.h"
#include "runtime/network.h"
#include "runtime/runtime.h"

namespace lydian::runtime {
namespace {

// Ids that no range of ours covers, for trials.
constexpr uint32_t kTrialBase = 0x6fff0000;

class Probe {
 public:
  explicit Probe(const RuntimeOptions& options) : options_(options) {}

  std::vector<Feature> Run() {
    Kernel();
    Rights();
    Namespaces();
    Cgroups();
    FileSystems();
    Quota();
    Seccomp();
    Network();
    Forwarding();
    return std::move(features_);
  }

 private:
  void Add(Feature feature) { features_.push_back(std::move(feature)); }

  void Kernel() {
    struct utsname name {};
    ::uname(&name);
    int major = 0, minor = 0;
    std::sscanf(name.release, "%d.%d", &major, &minor);
    Add({.name = "kernel",
         .what_for = "everything below",
         .found = name.release,
         .instead = "Linux 5.19 or newer",
         .ok = major > 5 || (major == 5 && minor >= 19),
         .required = true});
  }

  void Rights() {
    auto caps = os::GetCaps();
    os::CapSet have = caps.ok() ? caps->effective : 0;
    const os::CapSet needed = (1ull << CAP_SYS_ADMIN) | (1ull << CAP_NET_ADMIN) | (1ull << CAP_SETUID) |
                              (1ull << CAP_SETGID) | (1ull << CAP_CHOWN) | (1ull << CAP_DAC_OVERRIDE) |
                              (1ull << CAP_MKNOD) | (1ull << CAP_KILL);
    std::string missing;
    for (const auto& name : os::CapNames(needed & ~have)) missing += (missing.empty() ? "" : " ") + name;
    Add({.name = "rights",
         .what_for = "mounts, namespaces, networks",
         .found = missing.empty() ? "all that are needed" : "without " + missing,
         .instead = "run as root",
         .ok = missing.empty(),
         .required = true});
    bool resource = (have & (1ull << CAP_SYS_RESOURCE)) != 0;
    Add({.name = "CAP_SYS_RESOURCE",
         .what_for = "raising limits of processes",
         .found = resource ? "yes" : "no",
         .instead = "limits stay as they were given",
         .ok = resource});
  }

  void Namespaces() {
    std::string missing;
    for (const char* name : {"user", "pid", "mnt", "ipc", "uts", "net", "cgroup"}) {
      if (::access((std::string("/proc/self/ns/") + name).c_str(), F_OK) != 0)
        missing += std::string(" ") + name;
    }
    auto made = missing.empty() ? os::MakeUserAndNet(kTrialBase, 65536)
                                : Result<os::UserAndNet>(NotFound("no" + missing));
    if (made.ok()) namespaces_ = std::move(*made);
    Add({.name = "user namespaces",
         .what_for = "containers apart from the host and each other",
         .found = made.ok() ? "yes, with pid mnt ipc uts net cgroup" : made.status().message(),
         .instead = "sysctl user.max_user_namespaces must not be 0",
         .ok = made.ok(),
         .required = true});
    bool time = ::access("/proc/self/ns/time", F_OK) == 0;
    Add({.name = "time namespace",
         .what_for = "clocks that go on after a restore",
         .found = time ? "yes" : "no",
         .instead = "containers share the host's",
         .ok = time});
  }

  void Cgroups() {
    auto found = os::DescribeCgroups();
    Add({.name = "control groups",
         .what_for = "limits of memory, cpu and processes",
         .found = found.ok() ? *found : found.status().message(),
         .instead = "mount cgroup2 at /sys/fs/cgroup",
         .ok = found.ok(),
         .required = true});
  }

  // An existing folder on the file system of the state directory.
  std::string StateFolder() const {
    std::string dir = options_.state_dir.empty() ? "/var/lib" : options_.state_dir;
    while (dir.size() > 1 && !Exists(dir)) dir = dir.substr(0, std::max<size_t>(dir.rfind('/'), 1));
    return dir.empty() ? "/" : dir;
  }

  void FileSystems() {
    // A folder of the trial's own, as the state directory may not be there yet.
    std::string pattern = StateFolder() + "/.lydian-probe-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) {
      Add({.name = "overlay",
           .what_for = "images as layers",
           .found = ErrnoStatus("creating a folder in " + StateFolder()).message(),
           .instead = "run as root",
           .required = true});
      return;
    }
    auto mapped = MapIds(pattern);
    Add({.name = "id-mapped mounts",
         .what_for = "layers shared by containers, stored with owner 0",
         .found = mapped.ok() ? "yes, in " + StateFolder() : mapped.message(),
         .instead = "put the state directory on ext4, xfs or btrfs",
         .ok = mapped.ok(),
         .required = true});
    std::string found, error;
    for (OverlayMode mode : {OverlayMode::kDescriptors, OverlayMode::kPaths}) {
      auto overlays = Overlays::CreateWith(pattern, mode);
      if (overlays.ok()) {
        found = OverlayModeName(mode);
        break;
      }
      error = overlays.status().message();
    }
    auto filesystems = ReadFile("/proc/filesystems", 65536);
    bool known = filesystems.ok() && filesystems->find("overlay") != std::string::npos;
    Add({.name = "overlay",
         .what_for = "images as layers",
         .found = !found.empty() ? found
                  : known        ? "older form (" + error + ")"
                                 : error,
         .instead = "layers are attached in a mount namespace of the spawner's own",
         .ok = !found.empty() || known,
         .required = true});
    (void)RemoveTree(pattern);
  }

  Status MapIds(const std::string& dir) {
    if (!namespaces_.user.valid()) return FailedPrecondition("no user namespace to map to");
    ASSIGN_OR_RETURN(UniqueFd tree, os::CloneTree(AT_FDCWD, dir));
    return os::ChangeMount(tree.get(), 0, namespaces_.user.get());
  }

  void Quota() {
    bool control = ::access("/dev/loop-control", R_OK | W_OK) == 0;
    std::string mkfs = os::FindProgram("mkfs.ext4");
    std::string found = !control       ? "no /dev/loop-control"
                        : mkfs.empty() ? "no mkfs.ext4"
                                       : "ext4 in a sparse file, by loop device";
    Add({.name = "quota",
         .what_for = "a limit on what a container writes",
         .found = found,
         .instead = "load the module loop; install e2fsprogs",
         .ok = control && !mkfs.empty(),
         .required = true});
    struct statvfs info {};
    if (::statvfs(StateFolder().c_str(), &info) != 0) return;
    uint64_t free = uint64_t{info.f_bavail} * info.f_frsize;
    Add({.name = "free disk",
         .what_for = "starts stop below the reserve",
         .found = std::to_string(free >> 20) + " MiB in " + StateFolder() + ", reserve " +
                  std::to_string(options_.disk_reserve_bytes >> 20) + " MiB",
         .instead = "make room",
         .ok = free >= options_.disk_reserve_bytes});
  }

  void Seccomp() {
    auto filter = os::BuildSeccompFilter();
    auto actions = ReadFile("/proc/sys/kernel/seccomp/actions_avail", 4096);
    bool ok = filter.ok() && actions.ok() && actions->find("errno") != std::string::npos;
    Add({.name = "seccomp",
         .what_for = "system calls that containers may not make",
         .found = ok ? std::to_string(filter->size()) + " instructions" : "no",
         .instead = "a kernel with CONFIG_SECCOMP_FILTER",
         .ok = ok,
         .required = true});
    auto pidfd = os::OpenPidfd(::getpid());
    Add({.name = "pidfd",
         .what_for = "signals and waits that can't hit a stranger",
         .found = pidfd.ok() ? "yes" : pidfd.status().message(),
         .instead = "Linux 5.3 or newer",
         .ok = pidfd.ok(),
         .required = true});
  }

  void Network() {
    Status links = TryLinks();
    Add({.name = "bridge and veth",
         .what_for = "eth0 of containers",
         .found = links.ok() ? "yes" : links.message(),
         .instead = "load the modules bridge and veth",
         .ok = links.ok(),
         .required = true});
    auto firewall = os::Nftables::Open();
    auto listed = firewall.ok() ? firewall->Run("list tables") : firewall.status();
    Status nat = listed.status();
    if (nat.ok()) {
      nat = firewall
                ->Run(
                    "add table inet lyprobe\nadd chain inet lyprobe c { type nat hook postrouting priority "
                    "srcnat; }\n"
                    "add rule inet lyprobe c ip saddr 10.255.255.0/30 oifname != \"lyprobe\" masquerade\n"
                    "delete table inet lyprobe")
                .status();
    }
    Add({.name = "nftables",
         .what_for = "NAT, and what containers may reach",
         .found = nat.ok() ? "yes" : nat.message(),
         .instead = "a kernel with CONFIG_NF_TABLES_INET and NFT_MASQ",
         .ok = nat.ok(),
         .required = true});
    if (options_.address_range.empty()) {
      Add({.name = "address range",
           .what_for = "containers' addresses",
           .found = "chosen at the start",
           .instead = "",
           .ok = true});
      return;
    }
    auto taker = WhoHasRange(options_.address_range, options_.instance);
    std::string problem = taker.ok() ? *taker : taker.status().message();
    Add({.name = "address range",
         .what_for = "containers' addresses",
         .found = problem.empty() ? options_.address_range + " is free"
                                  : options_.address_range + " is taken by " + problem,
         .instead = "configure another range",
         .ok = problem.empty(),
         .required = true});
  }

  Status TryLinks() {
    ASSIGN_OR_RETURN(os::Netlink netlink, os::Netlink::Open());
    std::string bridge = "lyp" + std::to_string(::getpid() % 1000000), veth = bridge + "v";
    RETURN_IF_ERROR(netlink.AddBridge(bridge, {0x02, 0x4c, 0, 0, 0, 1}));
    Status status = namespaces_.net.valid()
                        ? netlink.AddVeth(veth, "eth0", {0x02, 0x4c, 0, 0, 0, 2}, namespaces_.net.get(), 1400)
                        : OkStatus();
    if (status.ok() && namespaces_.net.valid()) {
      status =
          netlink.AddBridgePort(static_cast<int>(::if_nametoindex(veth.c_str())),
                                static_cast<int>(::if_nametoindex(bridge.c_str())), {0x02, 0x4c, 0, 0, 0, 2});
      (void)netlink.DeleteLink(veth);
    }
    Status removed = netlink.DeleteLink(bridge);
    return status.ok() ? removed : status;
  }

  void Forwarding() {
    auto forward = ReadFile("/proc/sys/net/ipv4/ip_forward", 16);
    bool on = forward.ok() && forward->starts_with("1");
    Add({.name = "ip_forward",
         .what_for = "a route out of containers",
         .found = on ? "1" : "0",
         .instead = "`lydian up` sets net.ipv4.ip_forward=1 when the first container needs it",
         .ok = on});
    auto blocks = FindBlockingFirewalls(options_.instance);
    std::string found, instead;
    for (const auto& block : blocks) {
      found += (found.empty() ? "" : "; ") + block.what;
      if (!block.remedy.empty()) instead += (instead.empty() ? "" : "; ") + block.remedy;
    }
    Add({.name = "other firewalls",
         .what_for = "containers' packets must not be dropped by Docker's, ufw's or firewalld's rules",
         .found = found.empty() ? "none that drops" : found,
         .instead = instead,
         .ok = blocks.empty()});
  }

  const RuntimeOptions& options_;
  os::UserAndNet namespaces_;
  std::vector<Feature> features_;
};

}  // namespace

std::vector<Feature> ProbeFeatures(const RuntimeOptions& options) { return Probe(options).Run(); }

}  // namespace lydian::runtime
