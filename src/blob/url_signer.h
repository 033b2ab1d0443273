// Signs the URLs under which blobs are put and fetched without a token, and the keys of pages.
// docs/formats/blob-urls.md. Thread-safety: all methods. Errors: PERMISSION_DENIED for a signature that is
// wrong or has expired.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace lydian::blob {

class UrlSigner {
 public:
  // `key`: 32 random bytes of this installation.
  explicit UrlSigner(std::string key) : key_(std::move(key)) {}

  // "/blob/<object>?size=..&expires=..&signature=..". `object` is a blob's id, or that with "/part/.." or
  // "/complete/..".
  std::string SignedPath(std::string_view verb, std::string_view object, uint64_t size,
                         int64_t expires_unix_seconds) const;
  // The fields as they came. HEAD is allowed where GET is.
  Status Verify(std::string_view verb, std::string_view object, uint64_t size, int64_t expires_unix_seconds,
                std::string_view signature, int64_t now_unix_seconds) const;

  // Who knows it may see the app's page: 32 hex digits, for ever.
  std::string PageKey(std::string_view app_id) const;
  bool PageKeyIs(std::string_view app_id, std::string_view key) const;

 private:
  std::string Signature(std::string_view verb, std::string_view object, uint64_t size, int64_t expires) const;
  const std::string key_;
};

}  // namespace lydian::blob
