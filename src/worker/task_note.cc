#include "worker/task_note.h"

#include <xxhash.h>

#include <cstring>

#include "base/fd.h"

namespace lydian::worker {
namespace {

// Native byte order: only the machine that wrote it reads it.
struct Header {
  char magic[8];
  uint64_t checksum;  // XXH3 of what follows
};
constexpr char kMagic[sizeof Header::magic + 1] = "LYTASK1\n";

}  // namespace

Status WriteNote(const std::string& path, const google::protobuf::MessageLite& message, bool durable) {
  const std::string body = message.SerializeAsString();
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof header.magic);
  header.checksum = XXH3_64bits(body.data(), body.size());
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  return WriteFileAtomic(path, bytes + body, 0600, durable);
}

Status ReadNote(const std::string& path, google::protobuf::MessageLite* message) {
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  Header header{};
  if (bytes.size() < sizeof header) return DataLoss(path + " is cut off");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof header.magic) != 0)
    return DataLoss(path + " is not a note of this version");
  const std::string_view body = std::string_view(bytes).substr(sizeof header);
  if (XXH3_64bits(body.data(), body.size()) != header.checksum ||
      !message->ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return DataLoss(path + " is damaged");
  }
  return {};
}

}  // namespace lydian::worker
