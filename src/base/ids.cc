#include "base/ids.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <cerrno>

#include "base/status.h"

namespace lydian {
namespace {

constexpr std::string_view kBase62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
constexpr std::string_view kTaskAlphabet =
    "0123456789ABCDEFGHJKMNPQRSTWXYZ0";  // 32 long, so that 5 bits choose evenly enough
constexpr size_t kSuffix = 22;

// Fetched once: OpenSSL 3 would look the algorithm up anew for every digest, at several times its price.
const EVP_MD* Sha256() {
  static const EVP_MD* const kind = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  CHECK(kind != nullptr);
  return kind;
}

std::string Digest(const EVP_MD* kind, std::string_view data) {
  unsigned char out[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  CHECK(EVP_Digest(data.data(), data.size(), out, &length, kind, nullptr) == 1);
  return {reinterpret_cast<char*>(out), length};
}

}  // namespace

std::string RandomBytes(size_t count) {
  std::string out(count, '\0');
  for (size_t at = 0; at < count;) {
    ssize_t n = ::getrandom(out.data() + at, count - at, 0);
    if (n < 0 && errno == EINTR) continue;
    CHECK(n > 0);
    at += static_cast<size_t>(n);
  }
  return out;
}

std::string HexEncode(std::string_view raw) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(raw.size() * 2);
  for (unsigned char c : raw) {
    out += kDigits[c >> 4];
    out += kDigits[c & 15];
  }
  return out;
}

std::string RandomHex(size_t bytes) { return HexEncode(RandomBytes(bytes)); }

std::string NewId(std::string_view prefix) {
  std::string out(prefix);
  out += '-';
  size_t want = out.size() + kSuffix;
  while (out.size() < want) {
    for (unsigned char c : RandomBytes(32)) {
      if (c < 248 && out.size() < want) out += kBase62[c % 62];  // 248 = 4 * 62: no bias
    }
  }
  return out;
}

std::string NewTaskId() {
  std::string out = "ta-";
  for (unsigned char c : RandomBytes(26)) out += kTaskAlphabet[c & 31];
  return out;
}

std::string DigestId(std::string_view prefix, std::string_view content) {
  std::string raw = Digest(Sha256(), content);
  std::string out(prefix);
  out += '-';
  for (size_t i = 0; i < kSuffix; ++i) out += kBase62[static_cast<unsigned char>(raw[i]) % 62];
  return out;
}

std::string Sha256Raw(std::string_view data) { return Digest(Sha256(), data); }
std::string Sha256Hex(std::string_view data) { return HexEncode(Sha256Raw(data)); }
std::string Md5Hex(std::string_view data) { return HexEncode(Digest(EVP_md5(), data)); }

Sha256Stream::Sha256Stream()
    : context_(EVP_MD_CTX_new(), [](void* context) { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context)); }) {
  CHECK(context_ && EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_.get()), Sha256(), nullptr) == 1);
}

void Sha256Stream::Update(std::string_view data) {
  CHECK(EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_.get()), data.data(), data.size()) == 1);
}

std::string Sha256Stream::Hex() {
  unsigned char out[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  CHECK(EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_.get()), out, &length) == 1);
  return HexEncode({reinterpret_cast<char*>(out), length});
}

std::string HmacSha256Hex(std::string_view key, std::string_view data) {
  unsigned char out[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  CHECK(HMAC(Sha256(), key.data(), static_cast<int>(key.size()),
             reinterpret_cast<const unsigned char*>(data.data()), data.size(), out, &length) != nullptr);
  return HexEncode({reinterpret_cast<char*>(out), length});
}

std::string Base64Encode(std::string_view raw) {
  std::string out(4 * ((raw.size() + 2) / 3) + 1, '\0');
  int n = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                          reinterpret_cast<const unsigned char*>(raw.data()), static_cast<int>(raw.size()));
  out.resize(static_cast<size_t>(n));
  return out;
}

std::string Base64Decode(std::string_view text) {
  std::string padded(text);
  while (padded.size() % 4 != 0) padded += '=';
  std::string out(padded.size() / 4 * 3, '\0');
  const int size =
      EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                      reinterpret_cast<const unsigned char*>(padded.data()), static_cast<int>(padded.size()));
  if (size < 0) return "";
  size_t padding = 0;
  while (padding < 2 && padded.size() > padding && padded[padded.size() - 1 - padding] == '=') ++padding;
  out.resize(static_cast<size_t>(size) - padding);
  return out;
}

std::string Base64UrlEncode(std::string_view raw) {
  std::string out = Base64Encode(raw);
  while (!out.empty() && out.back() == '=') out.pop_back();
  for (char& c : out) c = c == '+' ? '-' : c == '/' ? '_' : c;
  return out;
}

bool ConstantTimeEqual(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view IdPrefix(std::string_view id) {
  size_t dash = id.find('-');
  if (dash == std::string_view::npos || dash == 0 || dash + 1 == id.size()) return {};
  if (id.find('-', dash + 1) != std::string_view::npos) return {};
  return id.substr(0, dash);
}

}  // namespace lydian
