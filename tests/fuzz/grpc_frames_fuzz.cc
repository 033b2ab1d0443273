// Messages on a stream, in whatever parts they come; texts of trailers; timeouts.
#include "fuzz.h"
#include "rpc/wire.h"

using namespace lydian::rpc;  // NOLINT: a test

FUZZ_TARGET(grpc_frames) {
  const std::string text = DecodeStatusText(input);
  CHECK(DecodeStatusText(EncodeStatusText(text)) == text);
  if (const auto timeout = ParseTimeout(input)) (void)FormatTimeout(*timeout);
  if (input.empty()) return;

  // Cut anywhere, the messages are the same.
  const size_t step = static_cast<unsigned char>(input[0]) % 16 + 1;
  input.remove_prefix(1);
  MessageParser whole(4096), parts(4096);
  std::vector<std::string> all, gathered;
  const lydian::Status first = whole.Feed(input, &all);
  lydian::Status second;
  for (size_t at = 0; at < input.size() && second.ok(); at += step)
    second = parts.Feed(input.substr(at, step), &gathered);
  CHECK(first.ok() == second.ok());
  CHECK(all == gathered);
  for (const std::string& message : all) CHECK(message.size() <= 4096);
  if (first.ok()) CHECK(whole.in_message() == parts.in_message());
}
