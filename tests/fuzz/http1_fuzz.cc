// HTTP/1.1 on the same port: requests, bodies, several on one connection. A first line that begins as HTTP/2
// does is the other target's.
#include "fuzz.h"
#include "server_harness.h"

FUZZ_TARGET(http1) {
  (void)lydian::http::PercentDecode(input);
  if (!input.starts_with("PRI * HTTP/2")) lydian::fuzz::ServerHarness::Get().Feed(input);
}
