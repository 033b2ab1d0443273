#include "gateway/answers.h"

namespace lydian::gateway {
namespace {

int HttpStatus(Code code) {
  switch (code) {
    case Code::kOk:
      return 200;
    case Code::kPermissionDenied:
      return 403;
    case Code::kNotFound:
      return 404;
    case Code::kAborted:
    case Code::kAlreadyExists:
    case Code::kFailedPrecondition:
      return 409;
    case Code::kInvalidArgument:
    case Code::kOutOfRange:
    case Code::kDataLoss:
      return 400;
    case Code::kDeadlineExceeded:
      return 408;
    case Code::kResourceExhausted:
      return 507;
    case Code::kUnavailable:
      return 503;
    case Code::kUnimplemented:
      return 501;
    default:
      return 500;
  }
}

}  // namespace

http::Response TextAnswer(int status, std::string body) {
  http::Response response;
  response.status = status;
  response.headers = {{"Content-Type", "text/plain; charset=utf-8"}, {"X-Content-Type-Options", "nosniff"}};
  response.body = std::move(body);
  return response;
}

http::Response ErrorAnswer(const Status& error) {
  return TextAnswer(HttpStatus(error.code()), error.message() + "\n");
}

http::Response HtmlAnswer(int status, std::string body) {
  http::Response response;
  response.status = status;
  // Nothing is loaded from anywhere, no script runs, and the address (it holds a key) goes to nobody.
  response.headers = {
      {"Content-Type", "text/html; charset=utf-8"},
      {"Content-Security-Policy",
       "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cache-Control", "no-store"}};
  response.body = std::move(body);
  return response;
}

}  // namespace lydian::gateway
