#include "spawner/frames.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstring>

namespace lydian::spawner {
namespace {

constexpr size_t kFdsAtOnce = 250;  // the kernel's limit is 253 a message
constexpr size_t kReadBytes = 64 << 10;

}  // namespace

Result<FrameReader::Outcome> FrameReader::Read(int socket) {
  if (at_ > 0 && at_ == buffer_.size()) {
    buffer_.clear();
    at_ = 0;
  } else if (at_ > (size_t{1} << 20)) {
    buffer_.erase(0, at_);
    at_ = 0;
  }
  char bytes[kReadBytes];
  iovec part{bytes, sizeof bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 253)];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do {
    n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Outcome::kWouldBlock;
  if (n < 0) return ErrnoStatus("reading from the socket");
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      fds_.emplace_back(fd);
    }
  }
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return ResourceExhausted("descriptors were lost on the way: too many files are open in this process");
  }
  if (fds_.size() > kMaxLooseFds) return InvalidArgument("descriptors arrive that no frame names");
  if (n == 0) return Outcome::kEnd;
  buffer_.append(bytes, static_cast<size_t>(n));
  return Outcome::kData;
}

Result<std::optional<std::string>> FrameReader::Next() {
  if (buffer_.size() - at_ < 4) return std::optional<std::string>();
  unsigned char head[4];
  std::memcpy(head, buffer_.data() + at_, 4);
  size_t length = head[0] | head[1] << 8 | head[2] << 16 | static_cast<size_t>(head[3]) << 24;
  if (length > kMaxFrameBytes) {
    return InvalidArgument("a frame of " + std::to_string(length) + " bytes; at most " +
                           std::to_string(kMaxFrameBytes) + " are allowed");
  }
  if (buffer_.size() - at_ - 4 < length) return std::optional<std::string>();
  std::optional<std::string> frame(std::in_place, buffer_, at_ + 4, length);
  at_ += 4 + length;
  return frame;
}

Result<std::vector<UniqueFd>> FrameReader::TakeFds(size_t count) {
  if (count > fds_.size()) {
    return InvalidArgument("a frame names " + std::to_string(count) + " descriptors, " +
                           std::to_string(fds_.size()) + " have come");
  }
  std::vector<UniqueFd> taken;
  taken.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    taken.push_back(std::move(fds_.front()));
    fds_.pop_front();
  }
  return taken;
}

void FrameWriter::Push(std::string_view message, std::vector<UniqueFd> fds) {
  CHECK(message.size() <= kMaxFrameBytes);
  Frame frame;
  auto length = static_cast<uint32_t>(message.size());
  for (int shift = 0; shift < 32; shift += 8)
    frame.bytes.push_back(static_cast<char>(length >> shift & 0xff));
  frame.bytes.append(message);
  frame.fds = std::move(fds);
  bytes_ += frame.bytes.size();
  queue_.push_back(std::move(frame));
}

Result<bool> FrameWriter::Write(int socket) {
  while (!queue_.empty()) {
    Frame& frame = queue_.front();
    size_t left = frame.bytes.size() - frame.sent;
    size_t fds = std::min(kFdsAtOnce, frame.fds.size() - frame.fds_sent);
    // While descriptors are left over for another message, a single byte goes with these.
    bool more_fds = frame.fds.size() - frame.fds_sent > fds;
    iovec part{frame.bytes.data() + frame.sent, more_fds ? 1 : left};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kFdsAtOnce)];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (fds > 0) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(sizeof(int) * fds);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int) * fds);
      for (size_t i = 0; i < fds; ++i) {
        int fd = frame.fds[frame.fds_sent + i].get();
        std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof fd);
      }
    }
    ssize_t n = ::sendmsg(socket, &message, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    if (n < 0) return ErrnoStatus("writing to the socket");
    frame.fds_sent += fds;
    frame.sent += static_cast<size_t>(n);
    bytes_ -= static_cast<size_t>(n);
    if (frame.sent == frame.bytes.size()) queue_.pop_front();
  }
  return true;
}

}  // namespace lydian::spawner
