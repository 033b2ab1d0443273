#include "blob/blob_store.h"

#include <unistd.h>

#include <algorithm>

#include "base/ids.h"

namespace lydian::blob {
namespace {

constexpr size_t kMostId = 128;

Result<std::string> ReadWhole(Reader reader, size_t limit, std::string_view what) {
  if (reader.size > limit) {
    return ResourceExhausted(std::string(what) + " has " + std::to_string(reader.size) +
                             " bytes, more than " + std::to_string(limit));
  }
  std::string bytes(reader.size, '\0');
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t count =
        pread(reader.fd.get(), bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus(what);
    if (count == 0) return DataLoss(std::string(what) + " became shorter");
    at += static_cast<size_t>(count);
  }
  return bytes;
}

}  // namespace

bool ValidBlobId(std::string_view id) {
  if (id.size() < 5 || id.size() > kMostId || !id.starts_with("bl-")) return false;
  return std::all_of(id.begin() + 3, id.end(), [](unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  });
}

bool ValidSha256(std::string_view hex) {
  return hex.size() == 64 && std::all_of(hex.begin(), hex.end(), [](unsigned char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

Result<Stored> BlobStore::PutBlob(std::string_view id, std::string_view bytes) {
  ASSIGN_OR_RETURN(auto writer, BeginBlob(id, bytes.size()));
  RETURN_IF_ERROR(writer->Append(bytes));
  return writer->Commit({.size = bytes.size()});
}

Result<std::string> BlobStore::GetBlob(std::string_view id, size_t limit) {
  ASSIGN_OR_RETURN(Reader reader, OpenBlob(id));
  return ReadWhole(std::move(reader), limit, id);
}

Result<std::string> BlobStore::PutObject(std::string_view bytes) {
  std::string sha256 = Sha256Hex(bytes);
  ASSIGN_OR_RETURN(auto writer, BeginObject(sha256, bytes.size()));
  RETURN_IF_ERROR(writer->Append(bytes));
  auto stored = writer->Commit({.size = bytes.size()});
  if (!stored.ok()) return stored.status();
  return sha256;
}

Result<std::string> BlobStore::GetObject(std::string_view sha256_hex, size_t limit) {
  ASSIGN_OR_RETURN(Reader reader, OpenObject(sha256_hex));
  return ReadWhole(std::move(reader), limit, sha256_hex);
}

}  // namespace lydian::blob
