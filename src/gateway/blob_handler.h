// Blobs over HTTP, by signed URL and without a token: PUT of a whole blob or of a part, POST that completes
// parts, GET and HEAD with ranges. docs/formats/blob-urls.md. Bodies are streamed to and from the store.
//
// Thread-safety: Handle from any thread; it blocks. Ownership: store, signer and clock outlive it.
// Errors: 403 for a signature that is wrong or has expired, 404, 400 for a body that isn't what was announced
// (nothing of it is kept), 409 for parts that are missing, 416, 507 on a full disk. Each with a sentence as
// its body.
#pragma once

#include "base/clock.h"
#include "blob/blob_store.h"
#include "blob/url_signer.h"
#include "rpc/http.h"

namespace lydian::gateway {

class BlobHandler : public http::Handler {
 public:
  BlobHandler(blob::BlobStore* store, const blob::UrlSigner* signer, const Clock* clock)
      : store_(store), signer_(signer), clock_(clock) {}
  http::Response Handle(http::Exchange& exchange) override;

 private:
  struct Target {
    std::string id;
    enum class Kind { kWhole, kPart, kComplete } kind = Kind::kWhole;
    uint64_t number = 0, part_length = 0;
    uint64_t size = 0;    // as announced and signed
    std::string md5_hex;  // likewise; empty: the client announced none
  };
  Result<Target> ParseAndVerify(const http::Request& request) const;
  Result<http::Response> Dispatch(http::Exchange& exchange);
  Result<http::Response> Put(http::Exchange& exchange, const Target& target);
  Result<http::Response> Complete(http::Exchange& exchange, const Target& target);
  Result<http::Response> Get(const http::Request& request, const Target& target);

  blob::BlobStore* const store_;
  const blob::UrlSigner* const signer_;
  const Clock* const clock_;
};

}  // namespace lydian::gateway
