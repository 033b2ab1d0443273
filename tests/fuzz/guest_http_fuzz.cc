// The head of a request that a container sends to 169.254.77.1, as the relay reads it. What it passes on must
// read the same to control: no second request may hide in it.
#include "fuzz.h"
#include "worker/guest_http.h"

FUZZ_TARGET(guest_http) {
  const auto head = lydian::worker::ParseHttpHead(input);
  if (!head.ok() || head->bytes == 0) return;
  CHECK(head->bytes <= input.size());
  const auto again = lydian::worker::ParseHttpHead(head->forwarded);
  CHECK(again.ok());
  CHECK(again->bytes == head->forwarded.size());
  CHECK(again->method == head->method && again->target == head->target && again->host == head->host);
  CHECK(again->has_length == head->has_length && again->content_length == head->content_length);
  CHECK(!again->chunked && !again->expects_continue);
  for (size_t at = 0; (at = head->forwarded.find_first_of("\r\n", at)) != std::string::npos; at += 2)
    CHECK(head->forwarded.compare(at, 2, "\r\n") == 0);
}
