#include "build/log_text.h"

#include <algorithm>

namespace lydian::build {
namespace {

// Bytes of the character that starts `text`: 1..4; 0 = not one; -1 = it may become one with more bytes.
int CharacterLength(std::string_view text) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  unsigned char first = byte(0);
  if (first < 0x80) return 1;
  int length = first >= 0xC2 && first <= 0xDF   ? 2
               : (first & 0xF0) == 0xE0         ? 3
               : first >= 0xF0 && first <= 0xF4 ? 4
                                                : 0;
  if (length == 0) return 0;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= text.size()) return -1;
    unsigned char c = byte(i), low = 0x80, high = 0xBF;
    if (i == 1 && first == 0xE0) low = 0xA0;   // overlong
    if (i == 1 && first == 0xED) high = 0x9F;  // surrogates
    if (i == 1 && first == 0xF0) low = 0x90;
    if (i == 1 && first == 0xF4) high = 0x8F;
    if (c < low || c > high) return 0;
  }
  return length;
}

// At most `most` bytes, from the start of a character on.
std::string LastBytes(const std::string& text, size_t most) {
  size_t at = text.size() - std::min(most, text.size());
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
  return text.substr(at);
}

}  // namespace

std::string Utf8Stream::Take(bool all) {
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    int length = CharacterLength(rest);
    if (length < 0 && !all) break;
    if (length <= 0) {
      out += "\xEF\xBF\xBD";
      rest.remove_prefix(1);
    } else {
      out += rest.substr(0, length);
      rest.remove_prefix(length);
    }
  }
  pending_ = std::string(rest);
  return out;
}

std::string Utf8Stream::Feed(std::string_view bytes) {
  pending_ += bytes;
  return Take(false);
}

std::string Utf8Stream::Flush() { return Take(true); }

std::string ToUtf8(std::string_view bytes) {
  Utf8Stream stream;
  std::string out = stream.Feed(bytes);
  return out + stream.Flush();
}

void Tail::Add(std::string_view text) {
  kept_ += text;
  if (kept_.size() > 2 * limit_) kept_ = LastBytes(kept_, limit_);
}

std::string Tail::text() const {
  if (kept_.size() <= limit_) return kept_;
  std::string end = LastBytes(kept_, limit_);
  size_t line = end.find('\n');
  if (line != std::string::npos && line + 1 < end.size()) return end.substr(line + 1);
  return end;
}

}  // namespace lydian::build
