// Chooses how the client uploads a blob and makes the URLs. The client follows rules of its own: a single PUT
// goes only to a host that it takes for local, and a file whose MD5 it did not compute must go in parts. Of
// bytes in memory it makes one copy for each part, so those go in one, whatever their size.
// Thread-safety: all functions. Ownership: values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "blob/url_signer.h"

namespace lydian::blob {

struct UploadPlan {
  std::string url;  // one PUT; empty for an upload in parts:
  uint64_t part_length = 0;
  std::vector<std::string> part_urls;
  std::string completion_url;
};

// How long the URLs for an upload of this size hold.
int64_t UploadSeconds(uint64_t size);

// `base_url` as the caller reaches us: "http://127.0.0.1:7070", in containers "http://169.254.77.1".
// `md5_base64` as announced.
UploadPlan PlanUpload(const UrlSigner& signer, const Clock& clock, const std::string& base_url,
                      std::string_view blob_id, uint64_t size, std::string_view md5_base64);
std::string DownloadUrl(const UrlSigner& signer, const Clock& clock, const std::string& base_url,
                        std::string_view blob_id, uint64_t size);

// "http://127.0.0.1:7070/app/ap-123?key=...": the page of an app, for whoever knows the address.
std::string AppPageUrl(const UrlSigner& signer, const std::string& base_url, std::string_view app_id);

// "5d41..." of a Content-MD5 ("XUFA...=="); empty when it is not 16 bytes in base64.
std::string Md5HexOfBase64(std::string_view text);

// Whether the client sends a single PUT to this URL's host: localhost, or an IPv4 address that is loopback or
// private.
bool TakesSinglePut(std::string_view url);

}  // namespace lydian::blob
