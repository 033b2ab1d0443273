// A gRPC server's connection: HTTP/2 frames, header blocks, calls, messages. The input's first byte says
// what the rest is: 'r' the bytes as they stand; 'p' the same behind a preface; else records of
// {type, flags, stream, length, payload}, from which whole frames are made, so that what nghttp2 refuses
// early doesn't hide all that is ours. A payload of HEADERS is lines of "name: value".
#include <algorithm>

#include "fuzz.h"
#include "server_harness.h"

namespace {

constexpr std::string_view kPreface("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
constexpr char kHeaders = 1;

// A literal without indexing (RFC 7541, 6.2.2), lengths below 127.
void AddText(std::string& block, std::string_view text) {
  text = text.substr(0, 126);
  block.push_back(static_cast<char>(text.size()));
  block += text;
}

std::string HeaderBlock(std::string_view lines) {
  std::string block;
  while (!lines.empty()) {
    const std::string_view line = lydian::fuzz::TakeUntil(lines, '\n');
    const size_t colon = std::min(line.find(": "), line.size());
    block.push_back('\0');
    AddText(block, line.substr(0, colon));
    AddText(block, line.substr(std::min(colon + 2, line.size())));
  }
  return block;
}

std::string Frames(std::string_view records) {
  std::string frames(kPreface);
  while (records.size() >= 4) {
    const char type = static_cast<char>(records[0] % 10), flags = records[1], stream = records[2];
    const size_t length = std::min<size_t>(static_cast<unsigned char>(records[3]), records.size() - 4);
    const std::string_view raw = records.substr(4, length);
    records.remove_prefix(4 + length);
    const std::string payload = type == kHeaders ? HeaderBlock(raw) : std::string(raw);
    frames.push_back('\0');
    frames.push_back(static_cast<char>(payload.size() >> 8));
    frames.push_back(static_cast<char>(payload.size()));
    frames += {type, flags, '\0', '\0', '\0', stream};
    frames += payload;
  }
  return frames;
}

}  // namespace

FUZZ_TARGET(http2) {
  if (input.empty()) return;
  const char kind = input[0];
  input.remove_prefix(1);
  std::string bytes = kind == 'r'   ? std::string(input)
                      : kind == 'p' ? std::string(kPreface).append(input)
                                    : Frames(input);
  lydian::fuzz::ServerHarness::Get().Feed(bytes);
}
