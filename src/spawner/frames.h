// Frames of the spawner's protocol over a unix stream socket: a 4-byte little-endian length, then a message;
// descriptors travel with a frame's first bytes and are taken in order by the frames that name them.
// docs/formats/spawner.md.
//
// Not thread-safe. Ownership: descriptors belong to the reader until taken, to the writer until sent.
// Errors: a frame beyond kMaxFrameBytes or more than kMaxLooseFds descriptors that no frame has asked for is
// INVALID_ARGUMENT; the connection is then of no more use.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::spawner {

inline constexpr size_t kMaxFrameBytes = size_t{64} << 20;
inline constexpr size_t kMaxLooseFds = 1024;

class FrameReader {
 public:
  enum class Outcome { kData, kWouldBlock, kEnd };

  // One recvmsg.
  Result<Outcome> Read(int socket);
  // The next whole frame's message, if there is one.
  Result<std::optional<std::string>> Next();
  // The next `count` descriptors; they have arrived when the frame that names them has.
  Result<std::vector<UniqueFd>> TakeFds(size_t count);

 private:
  std::string buffer_;
  size_t at_ = 0;  // what of buffer_ was taken
  std::deque<UniqueFd> fds_;
};

class FrameWriter {
 public:
  void Push(std::string_view message, std::vector<UniqueFd> fds);
  // Sends what the socket takes. True when nothing is left; false when it would block.
  Result<bool> Write(int socket);
  size_t bytes() const { return bytes_; }
  bool empty() const { return queue_.empty(); }

 private:
  struct Frame {
    std::string bytes;
    size_t sent = 0;
    std::vector<UniqueFd> fds;
    size_t fds_sent = 0;
  };
  std::deque<Frame> queue_;
  size_t bytes_ = 0;
};

}  // namespace lydian::spawner
