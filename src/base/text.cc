#include "base/text.h"

#include <cmath>
#include <cstdio>
#include <iterator>

namespace lydian {

std::string BytesText(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  double value = static_cast<double>(bytes);
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  // 1023.97 MiB would print as "1024.0": whole numbers from 10 on.
  const double rounded = value < 10 ? value : std::round(value);
  std::snprintf(text, sizeof text,
                rounded == static_cast<double>(static_cast<uint64_t>(rounded)) ? "%.0f %s" : "%.1f %s",
                rounded, kUnits[unit]);
  return text;
}

std::string AgeText(double secs) {
  const char* unit = "s";
  if (secs >= 2 * 86'400) {
    secs /= 86'400, unit = "days";
  } else if (secs >= 2 * 3600) {
    secs /= 3600, unit = "h";
  }
  char text[32];
  std::snprintf(text, sizeof text, "%.0f %s", secs, unit);
  return text;
}

}  // namespace lydian
