// Short answers that every handler gives. Private to the module. Thread-safety: all functions.
#pragma once

#include "base/status.h"
#include "rpc/http.h"

namespace lydian::gateway {

http::Response TextAnswer(int status, std::string body);
// The status code that goes with an error, and its sentence as plain text.
http::Response ErrorAnswer(const Status& error);
http::Response HtmlAnswer(int status, std::string body);

}  // namespace lydian::gateway
