// Bytes that processes print, to text: the worker's way and the builds', which must agree with protobuf on
// what UTF-8 is.
#include <google/protobuf/stubs/common.h>

#include "build/log_text.h"
#include "fuzz.h"
#include "lydian/admin.pb.h"
#include "worker/log_text.h"

namespace {

// As a peer will judge it: a string field that isn't UTF-8 doesn't parse.
bool IsUtf8(const std::string& text) {
  lydian::ProgressEvent event;
  event.set_text(text);
  lydian::ProgressEvent read;
  return read.ParseFromString(event.SerializeAsString());
}

}  // namespace

FUZZ_TARGET(log_text) {
  namespace worker = lydian::worker;
  namespace build = lydian::build;
  if (input.empty()) return;
  const size_t step = static_cast<unsigned char>(input[0]) % 16 + 1;
  input.remove_prefix(1);

  const std::string text = worker::ToValidUtf8(input);
  CHECK(IsUtf8(text) && worker::ToValidUtf8(text) == text);
  if (text == input) CHECK(IsUtf8(std::string(input)));
  CHECK(worker::WholeLines(input) <= input.size());
  CHECK(worker::IncompleteTail(input) <= std::min<size_t>(3, input.size()));
  // In entries: nothing lost, no character cut.
  std::string joined;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t cut = worker::CutForEntry(rest, step + 3);
    CHECK(cut > 0 && cut <= rest.size() && cut <= step + 3);
    CHECK(IsUtf8(std::string(rest.substr(0, cut))));
    joined += rest.substr(0, cut);
    rest.remove_prefix(cut);
  }
  CHECK(joined == text);

  const std::string whole = build::ToUtf8(input);
  CHECK(IsUtf8(whole) && build::ToUtf8(whole) == whole);
  build::Utf8Stream stream;
  std::string parts;
  build::Tail tail(step);
  for (size_t at = 0; at < input.size(); at += step) {
    const std::string part = stream.Feed(input.substr(at, step));
    CHECK(IsUtf8(part));
    parts += part;
    tail.Add(part);
  }
  parts += stream.Flush();
  CHECK(parts == whole);
  CHECK(IsUtf8(tail.text()));
}
