#include "gateway/blob_handler.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/ids.h"
#include "base/log.h"
#include "blob/blob_urls.h"
#include "gateway/answers.h"

namespace lydian::gateway {
namespace {

constexpr std::string_view kPrefix = "/blob/";
constexpr size_t kMostXml = 1 << 20;
// The client looks for this sentence of the S3 protocol, and then tells its user that a file has changed
// meanwhile.
constexpr std::string_view kMd5Mismatch = "The Content-MD5 you specified did not match what we received.";

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

int HexDigit(char c) { return c >= 'a' ? c - 'a' + 10 : c - '0'; }

std::string HexDecode(std::string_view hex) {
  std::string raw;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    raw.push_back(static_cast<char>(HexDigit(hex[i]) << 4 | HexDigit(hex[i + 1])));
  return raw;
}

bool IsMd5Hex(std::string_view text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// The ETags of a CompleteMultipartUpload document, in order, without quotes.
std::vector<std::string> EtagsOf(std::string_view xml) {
  constexpr std::string_view kOpen = "<ETag>", kClose = "</ETag>";
  std::vector<std::string> etags;
  for (size_t at = 0; (at = xml.find(kOpen, at)) != xml.npos;) {
    at += kOpen.size();
    const size_t end = xml.find(kClose, at);
    if (end == xml.npos) break;
    std::string_view etag = xml.substr(at, end - at);
    for (std::string_view quote : {std::string_view("\""), std::string_view("&quot;")}) {
      if (etag.starts_with(quote) && etag.ends_with(quote) && etag.size() >= 2 * quote.size()) {
        etag = etag.substr(quote.size(), etag.size() - 2 * quote.size());
      }
    }
    etags.emplace_back(etag);
    at = end;
  }
  return etags;
}

std::string MultipartEtag(const std::vector<std::string>& md5s) {
  std::string raw;
  for (const std::string& md5 : md5s) raw += HexDecode(md5);
  return Md5Hex(raw) + "-" + std::to_string(md5s.size());
}

struct Range {
  uint64_t first = 0, length = 0;
};

// A single range of "bytes=..."; nothing for a form that is to be ignored. `length` 0: it can't be satisfied.
std::optional<Range> ParseRange(std::string_view header, uint64_t size) {
  constexpr std::string_view kUnit = "bytes=";
  if (!header.starts_with(kUnit)) return std::nullopt;
  header.remove_prefix(kUnit.size());
  const size_t dash = header.find('-');
  if (dash == header.npos || header.find(',') != header.npos) return std::nullopt;
  const std::string_view from = header.substr(0, dash), to = header.substr(dash + 1);
  const auto first = Number(from), last = Number(to);
  if ((!from.empty() && !first) || (!to.empty() && !last) || (from.empty() && to.empty()))
    return std::nullopt;
  if (!first) return Range{size - std::min(size, *last), std::min(size, *last)};
  if (last && *last < *first) return std::nullopt;
  if (*first >= size) return Range{};
  return Range{*first, std::min(size - 1, last.value_or(size - 1)) - *first + 1};
}

}  // namespace

http::Response BlobHandler::Handle(http::Exchange& exchange) {
  auto response = Dispatch(exchange);
  if (response.ok()) return std::move(response).value();
  const Status& error = response.status();
  if (error.code() == Code::kResourceExhausted || error.code() == Code::kInternal) {
    LOG_ERROR("a blob request failed",
              {{"method", exchange.request().method}, {"path", exchange.request().path}, {"error", error}});
  }
  return ErrorAnswer(error);
}

Result<http::Response> BlobHandler::Dispatch(http::Exchange& exchange) {
  const http::Request& request = exchange.request();
  ASSIGN_OR_RETURN(Target target, ParseAndVerify(request));
  const bool whole = target.kind == Target::Kind::kWhole;
  if (request.method == "PUT" && target.kind != Target::Kind::kComplete) return Put(exchange, target);
  if (request.method == "POST" && target.kind == Target::Kind::kComplete) return Complete(exchange, target);
  if ((request.method == "GET" || request.method == "HEAD") && whole) return Get(request, target);
  return TextAnswer(405, request.method + " means nothing here\n");
}

Result<BlobHandler::Target> BlobHandler::ParseAndVerify(const http::Request& request) const {
  std::string_view object = request.path;
  if (!object.starts_with(kPrefix)) return NotFound("no such page");
  object.remove_prefix(kPrefix.size());
  const auto size = Number(request.param("size")), expires = Number(request.param("expires"));
  if (!size || !expires || *expires > INT64_MAX) return PermissionDenied("this URL is not signed");
  RETURN_IF_ERROR(signer_->Verify(request.method, object, *size, static_cast<int64_t>(*expires),
                                  request.param("signature"), clock_->UnixNanos() / 1'000'000'000));
  // From here on the path is one that we made ourselves; it is parsed strictly all the same.
  Target target;
  target.size = *size;
  const size_t slash = object.find('/');
  target.id = std::string(object.substr(0, slash));
  if (!blob::ValidBlobId(target.id)) return NotFound("no such blob");
  if (slash == object.npos) return target;
  std::string_view rest = object.substr(slash + 1);
  if (rest.starts_with("md5/")) {
    target.md5_hex = std::string(rest.substr(4));
    if (!IsMd5Hex(target.md5_hex)) return NotFound("no such page");
    return target;
  }
  const bool part = rest.starts_with("part/");
  if (!part && !rest.starts_with("complete/")) return NotFound("no such page");
  target.kind = part ? Target::Kind::kPart : Target::Kind::kComplete;
  rest.remove_prefix(rest.find('/') + 1);
  if (part) {
    const size_t end = rest.find('/');
    target.number = Number(rest.substr(0, end)).value_or(0);
    rest = end == rest.npos ? std::string_view() : rest.substr(end + 1);
  }
  target.part_length = Number(rest).value_or(0);
  return target;
}

Result<http::Response> BlobHandler::Put(http::Exchange& exchange, const Target& target) {
  const http::Request& request = exchange.request();
  if (request.has_length && request.content_length != target.size) {
    return InvalidArgument("a body of " + std::to_string(request.content_length) +
                           " bytes; this URL is for one of " + std::to_string(target.size));
  }
  blob::Expected expected{.size = target.size};
  if (const std::string_view announced = request.header("content-md5"); !announced.empty()) {
    expected.md5_hex = blob::Md5HexOfBase64(announced);
    if (expected.md5_hex.empty()) return InvalidArgument("Content-MD5 is not an MD5 in base64");
    if (!target.md5_hex.empty() && target.md5_hex != expected.md5_hex)
      return InvalidArgument(std::string(kMd5Mismatch));
  }
  if (!target.md5_hex.empty()) expected.md5_hex = target.md5_hex;
  auto begun = target.kind == Target::Kind::kPart
                   ? store_->BeginPart(target.id, target.number, target.part_length)
                   : store_->BeginBlob(target.id, target.size);
  ASSIGN_OR_RETURN(std::unique_ptr<blob::Writer> writer, std::move(begun));
  uint64_t received = 0;
  for (;;) {
    ASSIGN_OR_RETURN(const std::string bytes, exchange.ReadBody());
    if (bytes.empty()) break;
    received += bytes.size();
    if (received > target.size)
      return InvalidArgument("a body of more than the " + std::to_string(target.size) +
                             " bytes that were announced");
    RETURN_IF_ERROR(writer->Append(bytes));
  }
  if (received < target.size)
    return DataLoss("a body of " + std::to_string(received) + " bytes; " + std::to_string(target.size) +
                    " were announced");
  auto stored = writer->Commit(expected);
  if (stored.status().code() == Code::kDataLoss) return InvalidArgument(std::string(kMd5Mismatch));
  if (!stored.ok()) return stored.status();
  http::Response response;
  response.headers.emplace_back("ETag", "\"" + stored->md5_hex + "\"");
  return response;
}

Result<http::Response> BlobHandler::Complete(http::Exchange& exchange, const Target& target) {
  std::string xml;
  for (;;) {
    ASSIGN_OR_RETURN(const std::string bytes, exchange.ReadBody());
    if (bytes.empty()) break;
    xml += bytes;
    if (xml.size() > kMostXml) return InvalidArgument("a list of parts of more than 1 MiB");
  }
  const std::vector<std::string> announced = EtagsOf(xml);
  if (!std::all_of(announced.begin(), announced.end(), IsMd5Hex))
    return InvalidArgument("an ETag of the list is not one that a part was given");
  auto md5s = store_->CompleteParts(target.id, target.size, target.part_length);
  if (!md5s.ok()) {
    // A repeat whose first answer got lost. What was checked then is what the client holds now.
    const auto size = store_->BlobSize(target.id);
    if (md5s.status().code() != Code::kFailedPrecondition || !size.ok() || *size != target.size ||
        announced.empty())
      return md5s.status();
    md5s = announced;
  }
  if (!announced.empty() && announced != *md5s) {
    RETURN_IF_ERROR(store_->DeleteBlob(target.id));
    return InvalidArgument("the list of parts is not what was uploaded: begin again");
  }
  http::Response response;
  response.headers.emplace_back("Content-Type", "application/xml");
  response.body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CompleteMultipartUploadResult><ETag>\"" +
                  MultipartEtag(*md5s) + "\"</ETag></CompleteMultipartUploadResult>\n";
  return response;
}

Result<http::Response> BlobHandler::Get(const http::Request& request, const Target& target) {
  ASSIGN_OR_RETURN(blob::Reader reader, store_->OpenBlob(target.id));
  http::Response response;
  response.headers = {{"Content-Type", "application/octet-stream"},
                      {"Accept-Ranges", "bytes"},
                      {"ETag", "\"" + target.id + "\""},  // an id's content does not change
                      {"Cache-Control", "private, no-transform"}};
  response.file_length = reader.size;
  if (const auto range = ParseRange(request.header("range"), reader.size)) {
    if (range->length == 0) {
      response = TextAnswer(416, "the blob has " + std::to_string(reader.size) + " bytes\n");
      response.headers.emplace_back("Content-Range", "bytes */" + std::to_string(reader.size));
      return response;
    }
    response.status = 206;
    response.file_offset = range->first;
    response.file_length = range->length;
    response.headers.emplace_back("Content-Range", "bytes " + std::to_string(range->first) + "-" +
                                                       std::to_string(range->first + range->length - 1) +
                                                       "/" + std::to_string(reader.size));
  }
  response.file_fd = reader.fd.release();
  return response;
}

}  // namespace lydian::gateway
