// The text of an instance's firewall table: what containers may send to whom. Thread-safety: pure functions.
// Errors: INVALID_ARGUMENT with the text that is no network.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace lydian::runtime {

// A bit in the mark of each packet that has passed the table's first chain. Routing rules refuse what comes
// from a bridge without it, so that nothing gets through while the table is gone. The worker's name server
// marks its answers.
inline constexpr uint32_t kPacketMark = 0x10000000;

// "10.0.0.0/8", or an address alone. Checked, and with the host part cleared.
Result<std::string> ParseNetwork(const std::string& text);

struct Ruleset {
  std::string instance;             // of the bridge and the table
  std::string range;                // "10.77.0.0/16": the containers'
  std::vector<std::string> denied;  // networks, beside those that are never reached
  bool deny_private = false;        // and all that belong to no public owner
  // "10.1.2.3:3128": what containers of builds reach nevertheless.
  std::vector<std::string> build_destinations;
};

// One transaction, in which the table is never absent. Sets to be filled: `members` (address . hardware
// address of each container), `builders` (addresses of containers of builds).
std::string RulesetText(const Ruleset& rules);
// Whose output changes when somebody changes the table, and not when members and builders come and go. To be
// run one by one: nft looks up what the last of several asks for.
std::vector<std::string> ListingCommands(const std::string& instance);

}  // namespace lydian::runtime
