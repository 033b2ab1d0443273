#include "rpc/wire.h"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace lydian::rpc {
namespace {

constexpr size_t kFirstReserve = size_t{1} << 20;  // more is taken as it comes, not as it is announced
constexpr size_t kMostStatusText = 4096;
constexpr size_t kTimeoutDigits = 8;
constexpr int64_t kLongestTimeout = int64_t{100} * 365 * 86'400 * 1'000'000'000;  // a century: no overflow

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The length of the UTF-8 character at the start of `text`, 0 when there is none.
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto tail = [&](size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return tail(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const unsigned low = lead == 0xE0 ? 0xA0 : 0x80, high = lead == 0xED ? 0x9F : 0xBF;
    return tail(1, low, high) && tail(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const unsigned low = lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xF4 ? 0x8F : 0xBF;
    return tail(1, low, high) && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::string MessagePrefix(size_t length) {
  std::string prefix(kPrefixBytes, '\0');
  for (size_t i = 0; i < 4; ++i) prefix[1 + i] = static_cast<char>(length >> (24 - 8 * i) & 0xFF);
  return prefix;
}

Status MessageParser::BeginMessage() {
  if (prefix_[0] == 1) {
    return Unimplemented("compressed messages are not taken here: send them with grpc-encoding identity");
  }
  if (prefix_[0] != 0) return Internal("the bytes are not a gRPC message");
  length_ = 0;
  for (size_t i = 1; i < kPrefixBytes; ++i) length_ = length_ << 8 | prefix_[i];
  if (length_ > most_bytes_) {
    return ResourceExhausted("a message of " + std::to_string(length_) + " bytes is over the limit of " +
                             std::to_string(most_bytes_));
  }
  message_.reserve(std::min(length_, kFirstReserve));
  return {};
}

Status MessageParser::Feed(std::string_view bytes, std::vector<std::string>* messages) {
  while (!bytes.empty() || have_prefix_ == kPrefixBytes) {
    if (have_prefix_ < kPrefixBytes) {
      const size_t part = std::min(bytes.size(), kPrefixBytes - have_prefix_);
      memcpy(prefix_ + have_prefix_, bytes.data(), part);
      have_prefix_ += part;
      bytes.remove_prefix(part);
      if (have_prefix_ < kPrefixBytes) return {};
      RETURN_IF_ERROR(BeginMessage());
    }
    const size_t part = std::min(bytes.size(), length_ - message_.size());
    message_.append(bytes.substr(0, part));
    bytes.remove_prefix(part);
    if (message_.size() < length_) return {};
    messages->push_back(std::move(message_));
    message_ = {};
    have_prefix_ = 0;
  }
  return {};
}

std::string SafeStatusText(std::string_view text) {
  std::string safe;
  safe.reserve(std::min(text.size(), kMostStatusText));
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    const std::string_view next = length > 0 ? text.substr(0, length) : std::string_view("\xEF\xBF\xBD");
    if (safe.size() + next.size() > kMostStatusText) break;
    safe += next;
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return safe;
}

std::string EncodeStatusText(std::string_view text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size());
  for (char c : text) {
    if (c >= ' ' && c <= '~' && c != '%') {
      encoded += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      encoded += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return encoded;
}

std::string DecodeStatusText(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const int high = text[i] == '%' && i + 2 < text.size() ? HexDigit(text[i + 1]) : -1;
    const int low = high >= 0 ? HexDigit(text[i + 2]) : -1;
    if (low < 0) {
      decoded += text[i];
      continue;
    }
    decoded += static_cast<char>(high << 4 | low);
    i += 2;
  }
  return decoded;
}

std::optional<std::chrono::nanoseconds> ParseTimeout(std::string_view text) {
  if (text.size() < 2 || text.size() > kTimeoutDigits + 1) return {};
  int64_t amount = 0;
  const char* const unit = text.data() + text.size() - 1;
  const auto [end, error] = std::from_chars(text.data(), unit, amount);
  if (error != std::errc() || end != unit || amount < 0) return {};
  int64_t nanos = 0;
  switch (*unit) {
    case 'H':
      nanos = 3'600'000'000'000;
      break;
    case 'M':
      nanos = 60'000'000'000;
      break;
    case 'S':
      nanos = 1'000'000'000;
      break;
    case 'm':
      nanos = 1'000'000;
      break;
    case 'u':
      nanos = 1'000;
      break;
    case 'n':
      nanos = 1;
      break;
    default:
      return {};
  }
  return std::chrono::nanoseconds(std::min(amount, kLongestTimeout / nanos) * nanos);
}

std::string FormatTimeout(std::chrono::nanoseconds left) {
  const int64_t millis = std::max<int64_t>(1, std::chrono::ceil<Millis>(left).count());
  if (millis < 100'000'000) return std::to_string(millis) + "m";
  return std::to_string(std::min<int64_t>(millis / 1000, 99'999'999)) + "S";
}

}  // namespace lydian::rpc
