// gRPC's own part of what goes over HTTP/2: the prefix of messages, status texts, timeouts.
// Source: "gRPC over HTTP2" (grpc/doc/PROTOCOL-HTTP2.md). Thread-safety: none of their own.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace lydian::rpc {

inline constexpr size_t kPrefixBytes = 5;  // 1 byte: compressed or not; 4 bytes: length, big-endian
std::string MessagePrefix(size_t length);

// Puts messages together from what comes.
class MessageParser {
 public:
  explicit MessageParser(size_t most_bytes) : most_bytes_(most_bytes) {}
  // Appends the messages that `bytes` complete. After an error no more may be fed.
  Status Feed(std::string_view bytes, std::vector<std::string>* messages);
  bool in_message() const { return have_prefix_ != 0; }
  size_t held_bytes() const { return message_.size(); }

 private:
  Status BeginMessage();

  size_t most_bytes_;
  unsigned char prefix_[kPrefixBytes] = {};
  size_t have_prefix_ = 0;
  size_t length_ = 0;
  std::string message_;
};

// What may be sent as one: at most 4 KiB, cut between characters; bytes that are not UTF-8 become U+FFFD.
std::string SafeStatusText(std::string_view text);
// "grpc-message": percent-encoded.
std::string EncodeStatusText(std::string_view text);
std::string DecodeStatusText(std::string_view text);

// "grpc-timeout": "100m". Nothing for a text that isn't one.
std::optional<std::chrono::nanoseconds> ParseTimeout(std::string_view text);
std::string FormatTimeout(std::chrono::nanoseconds left);

}  // namespace lydian::rpc
