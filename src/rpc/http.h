// HTTP/1.1 on the same port: blobs, pages, metrics. Boost.Beast behind it.
// Thread-safety: Handle is called from several threads. Bodies are streamed, never held whole.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace lydian::http {

struct Request {
  std::string method;                                        // "GET"
  std::string path;                                          // decoded, without query
  std::string target;                                        // as sent
  std::vector<std::pair<std::string, std::string>> query;    // decoded
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  bool has_length = false;
  uint64_t content_length = 0;
  std::string peer;  // "127.0.0.1" or "unix"

  std::string_view header(std::string_view name) const;  // "" if absent
  std::string_view param(std::string_view name) const;   // "" if absent
};

struct Response {
  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  // Instead of body: `file_length` bytes of a file from `file_offset`; the fd is owned and closed.
  int file_fd = -1;
  uint64_t file_offset = 0;
  uint64_t file_length = 0;
};

// One exchange. Handle runs on a thread of the HTTP pool and may block.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const Request& request() const = 0;
  // The next part of the body; empty at its end. An error when the client went away or sent less than it
  // announced.
  virtual Result<std::string> ReadBody(size_t most = 1 << 18) = 0;
};

class Handler {
 public:
  virtual ~Handler() = default;
  virtual Response Handle(Exchange& exchange) = 0;
};

// Text with <, >, &, " and ' escaped.
std::string EscapeHtml(std::string_view text);
std::string PercentDecode(std::string_view text);

}  // namespace lydian::http
