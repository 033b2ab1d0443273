#include "blob/url_signer.h"

#include "base/ids.h"

namespace lydian::blob {

std::string UrlSigner::Signature(std::string_view verb, std::string_view object, uint64_t size,
                                 int64_t expires) const {
  std::string text = "lydian blob url 1\n";  // no other use of the key signs a text that begins so
  text.append(verb == "HEAD" ? "GET" : verb).append("\n").append(object).append("\n");
  text.append(std::to_string(size)).append("\n").append(std::to_string(expires));
  return HmacSha256Hex(key_, text);
}

std::string UrlSigner::SignedPath(std::string_view verb, std::string_view object, uint64_t size,
                                  int64_t expires) const {
  return "/blob/" + std::string(object) + "?size=" + std::to_string(size) +
         "&expires=" + std::to_string(expires) + "&signature=" + Signature(verb, object, size, expires);
}

Status UrlSigner::Verify(std::string_view verb, std::string_view object, uint64_t size, int64_t expires,
                         std::string_view signature, int64_t now) const {
  if (!ConstantTimeEqual(Signature(verb, object, size, expires), signature)) {
    return PermissionDenied("the signature of this URL is wrong");
  }
  if (now >= expires) return PermissionDenied("this URL has expired: ask for a new one");
  return {};
}

std::string UrlSigner::PageKey(std::string_view app_id) const {
  return HmacSha256Hex(key_, "lydian page 1\n" + std::string(app_id)).substr(0, 32);
}

bool UrlSigner::PageKeyIs(std::string_view app_id, std::string_view key) const {
  return ConstantTimeEqual(PageKey(app_id), key);
}

}  // namespace lydian::blob
