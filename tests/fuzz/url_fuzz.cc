// Signed URLs and what goes into them. Lines: verb, object, size, expiry, signature, or any text.
#include <cstdlib>

#include "blob/blob_store.h"
#include "blob/blob_urls.h"
#include "blob/url_signer.h"
#include "fuzz.h"

using namespace lydian::blob;  // NOLINT: a test

FUZZ_TARGET(url) {
  static const UrlSigner signer(std::string(32, 'k'));
  (void)TakesSinglePut(input);
  (void)ValidBlobId(input);
  const std::string hex = Md5HexOfBase64(input);
  CHECK(hex.empty() || hex.size() == 32);

  const std::string_view verb = lydian::fuzz::TakeUntil(input, '\n');
  const std::string_view object = lydian::fuzz::TakeUntil(input, '\n');
  const uint64_t size = std::strtoull(std::string(lydian::fuzz::TakeUntil(input, '\n')).c_str(), nullptr, 10);
  const int64_t expires =
      std::strtoll(std::string(lydian::fuzz::TakeUntil(input, '\n')).c_str(), nullptr, 10);
  // Nobody guesses a signature, and a right one is right for its own fields alone.
  CHECK(!signer.Verify(verb, object, size, expires, input, 0).ok());
  const std::string path = signer.SignedPath(verb, object, size, expires);
  constexpr std::string_view kField = "&signature=";
  const size_t at = path.rfind(kField);
  CHECK(at != std::string::npos);
  const std::string_view signature = std::string_view(path).substr(at + kField.size());
  if (verb == "HEAD") return;  // signed as nobody does
  CHECK(signer.Verify(verb, object, size, expires, signature, 0).ok() == (expires > 0));
  CHECK(!signer.Verify(verb, object, size ^ 1, expires, signature, 0).ok());
  CHECK(!signer.Verify(verb, std::string(object) + "/", size, expires, signature, 0).ok());
  CHECK(!signer.PageKeyIs(object, input));
}
