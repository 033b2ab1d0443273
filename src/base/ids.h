// Object ids: "<prefix>-<suffix>", exactly one dash, as the client expects them (docs/formats/ids.md).
// Thread-safety: all functions, from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace lydian {

// Cryptographically random bytes (getrandom). Ends the process if the kernel has none.
std::string RandomBytes(size_t count);
std::string RandomHex(size_t bytes);
// A random suffix of 22 base62 characters: "ap-4fJ...". Not for tasks, whose alphabet differs.
std::string NewId(std::string_view prefix);
// "ta-" and 26 characters of [0-9A-Z] without I, L, O, U, V: a final V would mean a V2 sandbox to the client.
std::string NewTaskId();
// An id that follows from its content: prefix + 22 base62 characters of the SHA-256 of `content`.
std::string DigestId(std::string_view prefix, std::string_view content);

// Lower-case hex of the SHA-256, of the MD5 (an ETag, nothing secret), and raw digests.
std::string Sha256Hex(std::string_view data);
std::string Sha256Raw(std::string_view data);
std::string Md5Hex(std::string_view data);
std::string HmacSha256Hex(std::string_view key, std::string_view data);
std::string HexEncode(std::string_view raw);
std::string Base64Encode(std::string_view raw);
std::string Base64UrlEncode(std::string_view raw);  // without padding
// With padding or without. "" of what is no base64.
std::string Base64Decode(std::string_view text);
// SHA-256 of what comes in pieces: all of it at once may be more than memory should hold. One thread at a
// time.
class Sha256Stream {
 public:
  Sha256Stream();
  void Update(std::string_view data);
  std::string Hex();  // once, at the end

 private:
  std::shared_ptr<void> context_;
};
// In time that does not depend on where they differ.
bool ConstantTimeEqual(std::string_view a, std::string_view b);

// "fc" of "fc-123"; empty when there isn't exactly one dash or a part is empty.
std::string_view IdPrefix(std::string_view id);

}  // namespace lydian
