#include "worker/output_spool.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>

namespace lydian::worker {
namespace {

// At the beginning of the file.
constexpr char kMagic[] = "LYOUTPUTSPOOL2\n";
constexpr uint64_t kStart = sizeof kMagic;

// Before every output; native byte order: only the machine that wrote it reads it.
struct Header {
  uint32_t size;
  uint32_t unused;
  uint64_t checksum;  // XXH3 of the output's bytes
};

// An empty file is cut to nothing, and one that isn't made anew, only when it has grown beyond this.
constexpr uint64_t kKeptBytes = uint64_t{4} << 20;

Status WriteAt(int fd, std::string_view bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("keeping an output");
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return {};
}

void AppendRecord(const Output& output, std::string* bytes) {
  const size_t begin = bytes->size();
  bytes->append(sizeof(Header), '\0');
  output.AppendToString(bytes);
  Header header{};
  header.size = static_cast<uint32_t>(bytes->size() - begin - sizeof header);
  header.checksum = XXH3_64bits(bytes->data() + begin + sizeof header, header.size);
  std::memcpy(bytes->data() + begin, &header, sizeof header);
}

}  // namespace

Result<std::unique_ptr<OutputSpool>> OutputSpool::Open(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus("opening " + path);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  std::unique_ptr<OutputSpool> spool(new OutputSpool(path, std::move(fd)));
  spool->end_ = kStart;
  const std::string_view magic(kMagic, kStart);
  if (bytes.size() >= kStart) {
    if (!bytes.starts_with(magic)) return DataLoss(path + " is not a spool of outputs of this version");
    spool->Read(bytes);
  } else {  // new, or its maker died here
    RETURN_IF_ERROR(WriteAt(spool->fd_.get(), magic, 0));
  }
  spool->limit_ = std::max(kKeptBytes, spool->end_);
  return spool;
}

// What counts stands at the beginning without a gap. Behind it may be the half of one that nobody was told
// of, or older ones.
void OutputSpool::Read(const std::string& bytes) {
  Header header{};
  while (bytes.size() - end_ >= sizeof header) {
    std::memcpy(&header, bytes.data() + end_, sizeof header);
    const uint64_t begin = end_ + sizeof header;
    if (header.size > bytes.size() - begin) return;
    if (XXH3_64bits(bytes.data() + begin, header.size) != header.checksum) return;
    Output output;
    if (!output.ParseFromArray(bytes.data() + begin, static_cast<int>(header.size))) return;
    found_.push_back(std::move(output));
    ++live_;
    end_ = begin + header.size;
  }
}

Status OutputSpool::Add(const Output& output) {
  std::string bytes;
  AppendRecord(output, &bytes);
  RETURN_IF_ERROR(WriteAt(fd_.get(), bytes, end_));
  end_ += bytes.size();
  ++live_;
  return {};
}

Status OutputSpool::Rewrite(const std::vector<const Output*>& needed) {
  limit_ = 2 * end_;  // unless it ends well
  std::string bytes(kMagic, kStart);
  for (const Output* output : needed) AppendRecord(*output, &bytes);
  const std::string fresh = path_ + ".new";
  UniqueFd fd(open(fresh.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus("making " + fresh);
  RETURN_IF_ERROR(WriteAt(fd.get(), bytes, 0));
  if (rename(fresh.c_str(), path_.c_str()) != 0) return ErrnoStatus("renaming " + fresh);
  fd_ = std::move(fd);
  end_ = bytes.size();
  live_ = needed.size();
  limit_ = std::max(kKeptBytes, 2 * end_);
  return {};
}

void OutputSpool::Forget() {
  if (live_ == 0 || --live_ > 0) return;
  if (end_ > kKeptBytes) (void)!ftruncate(fd_.get(), kStart);
  end_ = kStart;
  limit_ = kKeptBytes;
}

}  // namespace lydian::worker
