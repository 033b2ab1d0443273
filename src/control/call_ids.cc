#include "base/ids.h"
#include "control/call_engine_state.h"

namespace lydian::control {
namespace {

constexpr std::string_view kDigits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
constexpr size_t kNumberDigits = 6;                 // 62^6 > 2^32
constexpr size_t kIdSize = sizeof("fc-") - 1 + 22;  // as every id's

}  // namespace

std::string MakeCallId(uint32_t number) {
  std::string id = NewId("fc");
  uint64_t rest = number;
  for (size_t i = 1; i <= kNumberDigits; ++i, rest /= kDigits.size())
    id[id.size() - i] = kDigits[rest % kDigits.size()];
  return id;
}

std::optional<uint32_t> CallNumberIn(std::string_view call_id) {
  if (call_id.size() != kIdSize || !call_id.starts_with("fc-")) return std::nullopt;
  uint64_t number = 0;
  for (const char c : call_id.substr(kIdSize - kNumberDigits)) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    number = number * kDigits.size() + digit;
  }
  if (number > UINT32_MAX) return std::nullopt;
  return static_cast<uint32_t>(number);
}

std::string InputId(const std::string& call_id, uint32_t idx) {
  return DigestId("in", call_id + "/" + std::to_string(idx));
}

std::string KeyDigest(const std::string& key) {
  return key.empty() ? "" : Sha256Raw(key).substr(0, 15);  // what a string holds in itself
}

}  // namespace lydian::control
