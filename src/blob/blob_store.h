// Where bytes are kept: blobs by id ("bl-...", arguments, results and uploads, of any content) and objects by
// the SHA-256 of their content (files of mounts and build contexts). A write is a transaction: a reader sees
// all of it or nothing, and its size and digests are checked before it is there.
//
//   ASSIGN_OR_RETURN(auto writer, store->BeginBlob(id, size));
//   RETURN_IF_ERROR(writer->Append(bytes));
//   ASSIGN_OR_RETURN(Stored stored, writer->Commit({.size = size}));
//
// Thread-safety: the store from any thread; a Writer from one at a time. Everything blocks: call it on a
// pool. Ownership: the caller owns writers and readers; they may outlive the store's deletion of what they
// read. Errors: INVALID_ARGUMENT for an id or digest of a wrong form; NOT_FOUND; DATA_LOSS when the bytes are
// not what was expected; RESOURCE_EXHAUSTED "no space left on <path>" on a full disk or quota; nothing
// half-made stays in either case.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace lydian::blob {

struct Stored {
  uint64_t size = 0;
  std::string md5_hex;     // empty when it was not asked for
  std::string sha256_hex;  // likewise
};

// What the bytes have to be. Empty fields are not checked.
struct Expected {
  std::optional<uint64_t> size;
  std::string md5_hex;
  std::string sha256_hex;
};

class Writer {
 public:
  virtual ~Writer() = default;  // without Commit, nothing stays
  virtual Status Append(std::string_view bytes) = 0;
  virtual Result<Stored> Commit(const Expected& expected = {}) = 0;
};

struct Reader {
  UniqueFd fd;
  uint64_t size = 0;
};

enum class Digest { kNone, kMd5, kSha256, kBoth };

class BlobStore {
 public:
  virtual ~BlobStore() = default;

  // Replaces a blob of the same id, at Commit. `size_hint` (0: unknown): RESOURCE_EXHAUSTED where the disk
  // has not that much room now; nothing is reserved.
  virtual Result<std::unique_ptr<Writer>> BeginBlob(std::string_view id, uint64_t size_hint = 0,
                                                    Digest digest = Digest::kMd5) = 0;
  virtual Result<Reader> OpenBlob(std::string_view id) = 0;
  virtual Result<uint64_t> BlobSize(std::string_view id) = 0;
  virtual Status DeleteBlob(std::string_view id) = 0;  // also its parts; OK when there is none

  // A blob in parts of `part_length` bytes (the last may be shorter), numbered from 1, in any order and
  // several at once. A part that is written again replaces the earlier one. Parts survive a restart for a
  // day.
  virtual Result<std::unique_ptr<Writer>> BeginPart(std::string_view id, uint64_t number,
                                                    uint64_t part_length) = 0;
  // Makes the blob from its parts. Returns the MD5s of the parts, in order. FAILED_PRECONDITION when one is
  // missing.
  virtual Result<std::vector<std::string>> CompleteParts(std::string_view id, uint64_t size,
                                                         uint64_t part_length) = 0;

  // Commit checks the digest. An object that is there already is left as it is.
  virtual Result<std::unique_ptr<Writer>> BeginObject(std::string_view sha256_hex,
                                                      uint64_t size_hint = 0) = 0;
  virtual Result<Reader> OpenObject(std::string_view sha256_hex) = 0;
  virtual Result<uint64_t> ObjectSize(std::string_view sha256_hex) = 0;
  virtual Status DeleteObject(std::string_view sha256_hex) = 0;
  // The content of a blob becomes an object too, without a copy where the file system allows. DATA_LOSS when
  // it has another digest.
  virtual Status ObjectFromBlob(std::string_view blob_id, std::string_view sha256_hex) = 0;

  // Takes it from its place at once, whatever its size; its room comes back with RemoveRetired. OK when there
  // is none. Of a blob its parts too.
  virtual Status RetireBlob(std::string_view id) = 0;
  virtual Status RetireObject(std::string_view sha256_hex) = 0;
  virtual Status RemoveRetired() = 0;
  // Of uploads that nobody has written to for as long.
  virtual Status RemoveOldParts(double older_than_secs) = 0;
  // Everything that is whole, in no order. An error of `each` ends it and is returned.
  struct Entry {
    std::string name;  // a blob's id, an object's digest
    uint64_t size = 0;
    double changed_at = 0;  // Unix seconds
  };
  virtual Status ListBlobs(const std::function<Status(const Entry& entry)>& each) = 0;
  virtual Status ListObjects(const std::function<Status(const Entry& entry)>& each) = 0;
  // Reads all of it: DATA_LOSS when its bytes are not what its name says.
  virtual Status CheckObject(std::string_view sha256_hex) = 0;

  // For small things, in one call.
  Result<Stored> PutBlob(std::string_view id, std::string_view bytes);
  Result<std::string> GetBlob(std::string_view id, size_t limit = size_t{1} << 30);
  Result<std::string> PutObject(std::string_view bytes);  // its SHA-256
  Result<std::string> GetObject(std::string_view sha256_hex, size_t limit = size_t{1} << 30);
};

struct DirectoryOptions {
  std::string path;  // gets blobs/ and objects/
  // fsync before a thing is there: it then survives a power cut, not just the death of the process, at
  // milliseconds each.
  bool durable = false;
};

// One process at a time. Removes what a killed one left half-written.
Result<std::unique_ptr<BlobStore>> OpenDirectory(DirectoryOptions options);

// "bl-" and letters and digits; 64 lower-case hex digits. Nothing else becomes part of a path.
bool ValidBlobId(std::string_view id);
bool ValidSha256(std::string_view hex);

}  // namespace lydian::blob
