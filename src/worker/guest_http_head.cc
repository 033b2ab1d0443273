#include <algorithm>
#include <cctype>
#include <vector>

#include "worker/guest_http.h"

namespace lydian::worker {
namespace {

constexpr size_t kMostHead = 32 << 10;

bool IsToken(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) ||
           std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
  });
}

std::string Lower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool HasControl(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](unsigned char c) { return (c < 0x20 && c != '\t') || c == 0x7F; });
}

Status ParseRequestLine(std::string_view line, HttpHead* head) {
  const size_t first = line.find(' ');
  const size_t second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos || line.find(' ', second + 1) != std::string_view::npos) {
    return InvalidArgument("the first line is not METHOD TARGET VERSION");
  }
  head->method = line.substr(0, first);
  head->target = line.substr(first + 1, second - first - 1);
  head->version = line.substr(second + 1);
  if (!IsToken(head->method) || head->target.empty() || HasControl(head->target))
    return InvalidArgument("the first line is malformed");
  if (head->version != "HTTP/1.1" && head->version != "HTTP/1.0")
    return InvalidArgument("only HTTP/1.1 is spoken here");
  return {};
}

Status ParseHeader(std::string_view line, HttpHead* head) {
  const size_t colon = line.find(':');
  // A folded line, or space before the colon, is how requests are smuggled past a proxy.
  if (colon == std::string_view::npos || !IsToken(line.substr(0, colon)))
    return InvalidArgument("a header line is malformed");
  const std::string name = Lower(line.substr(0, colon));
  const std::string_view value = Trim(line.substr(colon + 1));
  if (HasControl(value)) return InvalidArgument("a header has control characters");
  if (name == "content-length") {
    if (head->has_length || value.empty() || value.size() > 18 ||
        !std::all_of(value.begin(), value.end(), [](unsigned char c) { return std::isdigit(c); })) {
      return InvalidArgument("Content-Length is not one number");
    }
    head->has_length = true;
    head->content_length = std::stoull(std::string(value));
  } else if (name == "transfer-encoding") {
    head->chunked = true;
    return {};
  } else if (name == "expect") {
    head->expects_continue = Lower(value) == "100-continue";
    return {};
  } else if (name == "host") {
    head->host = value;
  } else if (name == "connection" || name == "keep-alive" || name == "proxy-connection" || name == "te" ||
             name == "trailer" || name == "upgrade") {
    return {};
  }
  head->forwarded.append(name).append(": ").append(value).append("\r\n");
  return {};
}

}  // namespace

Result<HttpHead> ParseHttpHead(std::string_view data) {
  const size_t end = data.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    if (data.size() >= kMostHead) return ResourceExhausted("the head of the request is too long");
    return HttpHead{};
  }
  if (end >= kMostHead) return ResourceExhausted("the head of the request is too long");
  HttpHead head;
  std::string_view lines = data.substr(0, end + 2);
  bool first = true;
  while (!lines.empty()) {
    const size_t stop = lines.find("\r\n");
    const std::string_view line = lines.substr(0, stop);
    lines.remove_prefix(stop + 2);
    RETURN_IF_ERROR(first ? ParseRequestLine(line, &head) : ParseHeader(line, &head));
    first = false;
  }
  if (head.chunked && head.has_length) return InvalidArgument("both Content-Length and Transfer-Encoding");
  head.bytes = end + 4;
  head.forwarded =
      head.method + " " + head.target + " HTTP/1.1\r\n" + head.forwarded + "connection: close\r\n\r\n";
  return head;
}

}  // namespace lydian::worker
