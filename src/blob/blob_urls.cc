#include "blob/blob_urls.h"

#include <arpa/inet.h>

#include <algorithm>

#include "base/ids.h"

namespace lydian::blob {
namespace {

constexpr uint64_t kPart = uint64_t{64} << 20;
constexpr uint64_t kMostParts = 1000;     // larger files get longer parts
constexpr int64_t kUploadSeconds = 3600;  // and a second for each MiB; each part is checked as it begins
constexpr int64_t kDownloadSeconds = 3600;
// What the client announces for a file that it didn't read for an MD5: the bytes BA AD, eight times.
constexpr std::string_view kPlaceholderMd5 = "uq26rbqtuq26rbqtuq26rQ==";

int64_t Now(const Clock& clock) { return clock.UnixNanos() / 1'000'000'000; }

std::string WithoutSlash(std::string url) {
  while (url.ends_with('/')) url.pop_back();
  return url;
}

}  // namespace

bool TakesSinglePut(std::string_view url) {
  const size_t scheme = url.find("://");
  if (scheme == url.npos) return false;
  url.remove_prefix(scheme + 3);
  const std::string host(url.substr(0, url.find_first_of(":/?#")));
  if (host == "localhost") return true;
  in_addr address{};
  if (inet_pton(AF_INET, host.c_str(), &address) != 1) return false;
  const uint32_t ip = ntohl(address.s_addr);
  return ip >> 24 == 10 || ip >> 24 == 127 || ip >> 16 == (169 << 8 | 254) || ip >> 20 == (172 << 4 | 1) ||
         ip >> 16 == (192 << 8 | 168);
}

std::string Md5HexOfBase64(std::string_view text) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() != 24 || !text.ends_with("==")) return {};
  std::string raw;
  uint32_t bits = 0, count = 0;
  for (char c : text.substr(0, 22)) {
    const size_t digit = kAlphabet.find(c);
    if (digit == kAlphabet.npos) return {};
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if ((count += 6) >= 8) raw.push_back(static_cast<char>(bits >> (count -= 8)));
  }
  return HexEncode(raw);
}

int64_t UploadSeconds(uint64_t size) { return kUploadSeconds + static_cast<int64_t>(size >> 20); }

UploadPlan PlanUpload(const UrlSigner& signer, const Clock& clock, const std::string& base_url,
                      std::string_view blob_id, uint64_t size, std::string_view md5_base64) {
  const std::string base = WithoutSlash(base_url), id(blob_id);
  const int64_t expires = Now(clock) + UploadSeconds(size);
  UploadPlan plan;
  const bool is_file = md5_base64 == kPlaceholderMd5;
  if (!is_file && TakesSinglePut(base)) {
    // The announced digest is part of what is signed: another body of the same length is refused.
    const std::string md5 = Md5HexOfBase64(md5_base64);
    plan.url = base + signer.SignedPath("PUT", md5.empty() ? id : id + "/md5/" + md5, size, expires);
    return plan;
  }
  // What isn't surely a file stays in one part: of bytes in memory the client makes a whole copy for each
  // part.
  plan.part_length = is_file ? std::max(kPart, (size + kMostParts - 1) / kMostParts) : std::max(kPart, size);
  const uint64_t count = std::max<uint64_t>(1, (size + plan.part_length - 1) / plan.part_length);
  const std::string length = std::to_string(plan.part_length);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t part_size = std::min(plan.part_length, size - i * plan.part_length);
    plan.part_urls.push_back(base + signer.SignedPath("PUT",
                                                      id + "/part/" + std::to_string(i + 1) + "/" + length,
                                                      part_size, expires));
  }
  plan.completion_url = base + signer.SignedPath("POST", id + "/complete/" + length, size, expires);
  return plan;
}

std::string DownloadUrl(const UrlSigner& signer, const Clock& clock, const std::string& base_url,
                        std::string_view blob_id, uint64_t size) {
  return WithoutSlash(base_url) + signer.SignedPath("GET", blob_id, size, Now(clock) + kDownloadSeconds);
}

std::string AppPageUrl(const UrlSigner& signer, const std::string& base_url, std::string_view app_id) {
  return WithoutSlash(base_url) + "/app/" + std::string(app_id) + "?key=" + signer.PageKey(app_id);
}

}  // namespace lydian::blob
