#include "control/index_set.h"

#include <cstring>

#include "base/ids.h"

namespace lydian::control {

const uint64_t IndexHash::kSecret = [] {
  uint64_t secret = 0;
  const std::string random = RandomBytes(sizeof secret);
  memcpy(&secret, random.data(), sizeof secret);
  return secret;
}();

}  // namespace lydian::control
