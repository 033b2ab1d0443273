// Frames on the spawner's socket, and the request in each.
#include <sys/socket.h>

#include "fuzz.h"
#include "lydian/spawner.pb.h"
#include "spawner/frames.h"

using namespace lydian::spawner;  // NOLINT: a test

FUZZ_TARGET(spawner_frames) {
  int pair[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
  lydian::UniqueFd ours(pair[0]);
  const lydian::UniqueFd theirs(pair[1]);
  FrameReader reader;
  while (!input.empty()) {
    const size_t part = std::min<size_t>(input.size(), static_cast<unsigned char>(input[0]) + size_t{1});
    CHECK(send(ours.get(), input.data(), part, MSG_NOSIGNAL) == static_cast<ssize_t>(part));
    input.remove_prefix(part);
    if (!reader.Read(theirs.get()).ok()) return;
    for (;;) {
      const auto frame = reader.Next();
      if (!frame.ok()) return;
      if (!frame->has_value()) break;
      lydian::SpawnerRequest request;
      (void)request.ParseFromString(**frame);
      lydian::SpawnerReply reply;
      if (reply.ParseFromString(**frame) && reply.has_container())
        CHECK(reader.TakeFds(static_cast<size_t>(reply.container().fds_size())).ok() ==
              (reply.container().fds_size() == 0));
    }
  }
  ours.reset();
  const auto end = reader.Read(theirs.get());
  CHECK(end.ok() && *end == FrameReader::Outcome::kEnd);
}
