// Numbers as people read them. Pure functions; thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace lydian {

// "256 MiB", "1.5 GiB", "900 KiB".
std::string BytesText(uint64_t bytes);
// "14 days", "24 h", "90 s".
std::string AgeText(double secs);

}  // namespace lydian
