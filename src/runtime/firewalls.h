// Rules of others that drop containers' packets. A rule of ours that accepts can't overrule another table's
// drop: all that can be done is to say so, and how to let them through. Thread-safety: pure parsers;
// FindBlockingFirewalls reads the machine.
#pragma once

#include <string>
#include <vector>

namespace lydian::runtime {

struct Block {
  std::string what;    // "table ip filter, chain FORWARD: policy drop (Docker)"
  std::string remedy;  // a command
};

// `ruleset`: what `nft list ruleset` prints.
std::vector<Block> ParseNftBlocks(const std::string& ruleset, const std::string& instance);
// `rules`: what `iptables-legacy -S` prints.
std::vector<Block> ParseIptablesBlocks(const std::string& rules, const std::string& instance);
std::vector<Block> FindBlockingFirewalls(const std::string& instance);

}  // namespace lydian::runtime
