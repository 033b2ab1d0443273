#include "runtime/firewalls.h"

#include <sstream>

#include "base/fd.h"
#include "os/nftables.h"
#include "os/process.h"

namespace lydian::runtime {
namespace {

std::string Trim(const std::string& line) {
  size_t first = line.find_first_not_of(" \t"), last = line.find_last_not_of(" \t\r");
  return first == std::string::npos ? "" : line.substr(first, last - first + 1);
}

std::string Owner(const std::string& rules) {
  if (rules.find("DOCKER-USER") != std::string::npos) return "Docker";
  if (rules.find("ufw-") != std::string::npos) return "ufw";
  return "";
}

// How to let the bridge's packets through, in the words of who drops them.
std::string Remedy(const std::string& owner, const std::string& hook, const std::string& bridge) {
  if (hook == "input") {
    return owner == "ufw" ? "ufw allow in on " + bridge + " to any port 53"
                          : "iptables -I INPUT -i " + bridge + " -p udp --dport 53 -j ACCEPT";
  }
  if (owner == "ufw") return "ufw route allow in on " + bridge + " && ufw route allow out on " + bridge;
  std::string chain = owner == "Docker" ? "DOCKER-USER" : "FORWARD";
  return "iptables -I " + chain + " -i " + bridge + " -j ACCEPT && iptables -I " + chain + " -o " + bridge +
         " -j ACCEPT";
}

Block MakeBlock(const std::string& where, const std::string& owner, const std::string& hook,
                const std::string& bridge) {
  return {where + ": policy drop" + (owner.empty() ? "" : " (" + owner + ")"), Remedy(owner, hook, bridge)};
}

// Whether the chain lets the bridge through by a rule that names it: then its policy does not matter.
bool Accepts(const std::string& rules, const std::string& bridge) {
  return rules.find("\"" + bridge + "\"") != std::string::npos ||
         rules.find(" " + bridge + " ") != std::string::npos;
}

}  // namespace

std::vector<Block> ParseNftBlocks(const std::string& ruleset, const std::string& instance) {
  std::vector<Block> blocks;
  const std::string owner = Owner(ruleset);
  size_t at = ruleset.starts_with("table ") ? 0 : std::string::npos;
  while (at != std::string::npos && at < ruleset.size()) {
    size_t end = ruleset.find("\ntable ", at);
    std::string table = ruleset.substr(at, end == std::string::npos ? end : end - at);
    at = end == std::string::npos ? end : end + 1;
    std::string name = Trim(table.substr(0, table.find('{')));
    if (name == "table inet " + instance || Accepts(table, instance)) continue;
    std::istringstream lines(table);
    std::string line, chain;
    while (std::getline(lines, line)) {
      line = Trim(line);
      if (line.starts_with("chain ")) chain = Trim(line.substr(6, line.find('{') - 6));
      if (!line.starts_with("type filter hook ") || line.find("policy drop") == std::string::npos) continue;
      for (const char* hook : {"forward", "input"}) {
        if (line.find(std::string("hook ") + hook + " ") != std::string::npos) {
          blocks.push_back(MakeBlock(name + ", chain " + chain, owner, hook, instance));
        }
      }
    }
  }
  return blocks;
}

std::vector<Block> ParseIptablesBlocks(const std::string& rules, const std::string& instance) {
  std::vector<Block> blocks;
  if (Accepts(rules, instance)) return blocks;
  const std::string owner = Owner(rules);
  if (rules.find("-P FORWARD DROP") != std::string::npos)
    blocks.push_back(MakeBlock("iptables FORWARD", owner, "forward", instance));
  if (rules.find("-P INPUT DROP") != std::string::npos)
    blocks.push_back(MakeBlock("iptables INPUT", owner, "input", instance));
  return blocks;
}

std::vector<Block> FindBlockingFirewalls(const std::string& instance) {
  std::vector<Block> blocks;
  auto nftables = os::Nftables::Open();
  if (nftables.ok()) {
    if (auto ruleset = nftables->Run("list ruleset"); ruleset.ok())
      blocks = ParseNftBlocks(*ruleset, instance);
  }
  // iptables of the older kind has rules of its own, which nft does not show.
  auto legacy = ReadFile("/proc/net/ip_tables_names", 4096);
  if (legacy.ok() && legacy->find("filter") != std::string::npos) {
    auto rules = os::RunProgram({"iptables-legacy", "-S"});
    if (rules.ok() && rules->status == 0) {
      for (auto& block : ParseIptablesBlocks(rules->output, instance)) blocks.push_back(std::move(block));
    }
  }
  return blocks;
}

}  // namespace lydian::runtime
