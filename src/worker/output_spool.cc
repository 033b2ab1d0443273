#include "worker/output_spool.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstring>

namespace lydian::worker {
namespace {

// Before every output; native byte order: only the machine that wrote it reads it.
struct Header {
  uint32_t size;
  uint32_t unused;
  uint64_t checksum;  // XXH3 of the output's bytes
};

// An empty file is cut to nothing only when it has grown beyond this.
constexpr uint64_t kKeptBytes = uint64_t{4} << 20;

}  // namespace

Result<std::unique_ptr<OutputSpool>> OutputSpool::Open(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus("opening " + path);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  std::unique_ptr<OutputSpool> spool(new OutputSpool(std::move(fd)));
  spool->Read(bytes);
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
  std::string bytes(sizeof(Header), '\0');
  output.AppendToString(&bytes);
  Header header{};
  header.size = static_cast<uint32_t>(bytes.size() - sizeof header);
  header.checksum = XXH3_64bits(bytes.data() + sizeof header, header.size);
  std::memcpy(bytes.data(), &header, sizeof header);
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        pwrite(fd_.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(end_ + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("keeping an output");
    done += static_cast<size_t>(n);
  }
  end_ += bytes.size();
  ++live_;
  return {};
}

void OutputSpool::Forget() {
  if (live_ == 0 || --live_ > 0) return;
  if (end_ > kKeptBytes) (void)!ftruncate(fd_.get(), 0);
  end_ = 0;
}

}  // namespace lydian::worker
