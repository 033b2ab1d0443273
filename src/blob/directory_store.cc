// The store in a directory:
//   blobs/<last two characters of the id>/<id>     objects/<first two digits>/<sha256>
//   blobs/.tmp/ objects/.tmp/                      writes at work, removed at open
//   blobs/.parts/<id>/data, <number>               an upload in parts: the bytes in place, and per whole part
//   "size md5"
//   blobs/.gone/ objects/.gone/                    retired, on their way out; emptied at open
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "base/ids.h"
#include "base/log.h"
#include "blob/blob_store.h"
#include "blob/hasher.h"

namespace lydian::blob {
namespace {

constexpr uint64_t kAskFrom = 1 << 20;
constexpr size_t kCopyBuffer = 1 << 20;
constexpr double kPartsKeptSeconds = 24 * 3600;

Status DiskStatus(const std::string& path, int error = errno) {
  if (error == ENOSPC || error == EDQUOT)
    return {Code::kResourceExhausted, "no space left on " + path, error};
  return ErrnoStatus(path, error);
}

Status WriteAt(int fd, std::string_view bytes, uint64_t offset, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return DiskStatus(path);
    bytes.remove_prefix(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return {};
}

Status Check(const Stored& stored, const Expected& expected) {
  if (expected.size && *expected.size != stored.size) {
    return DataLoss("got " + std::to_string(stored.size) + " bytes, expected " +
                    std::to_string(*expected.size));
  }
  if (!expected.md5_hex.empty() && expected.md5_hex != stored.md5_hex) {
    return DataLoss("the bytes have the MD5 " + stored.md5_hex + ", expected " + expected.md5_hex);
  }
  if (!expected.sha256_hex.empty() && expected.sha256_hex != stored.sha256_hex) {
    return DataLoss("the bytes have the SHA-256 " + stored.sha256_hex + ", expected " + expected.sha256_hex);
  }
  return {};
}

Status SyncDirectory(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || fsync(fd.get()) != 0) return DiskStatus(path);
  return {};
}

std::string Parent(const std::string& path) { return path.substr(0, path.rfind('/')); }

// Moves a whole file to its place.
Status Publish(const std::string& from, const std::string& to, bool durable) {
  RETURN_IF_ERROR(MakeDirs(Parent(to), 0700));
  if (rename(from.c_str(), to.c_str()) != 0) return DiskStatus(to);
  return durable ? SyncDirectory(Parent(to)) : Status();
}

class FileWriter final : public Writer {
 public:
  FileWriter(UniqueFd fd, std::string temporary, std::string target, std::string sha256, bool durable,
             bool md5, bool sha)
      : fd_(std::move(fd)),
        temporary_(std::move(temporary)),
        target_(std::move(target)),
        sha256_(std::move(sha256)),
        durable_(durable),
        hasher_(md5, sha) {}
  ~FileWriter() override {
    if (!temporary_.empty()) unlink(temporary_.c_str());
  }

  Status Append(std::string_view bytes) override {
    RETURN_IF_ERROR(WriteAt(fd_.get(), bytes, size_, target_));
    size_ += bytes.size();
    hasher_.Update(bytes);
    return {};
  }

  Result<Stored> Commit(const Expected& expected) override {
    if (temporary_.empty()) return FailedPrecondition("this write is over");
    Stored stored{size_, hasher_.Md5Hex(), hasher_.Sha256Hex()};
    Status status = Check(stored, expected);
    if (status.ok() && !sha256_.empty()) status = Check(stored, {.sha256_hex = sha256_});
    if (status.ok() && durable_ && fdatasync(fd_.get()) != 0) status = DiskStatus(target_);
    if (status.ok()) status = Publish(temporary_, target_, durable_);
    if (!status.ok()) unlink(temporary_.c_str());
    temporary_.clear();
    if (!status.ok()) return status;
    return stored;
  }

 private:
  UniqueFd fd_;
  std::string temporary_, target_;
  const std::string sha256_;
  const bool durable_;
  Hasher hasher_;
  uint64_t size_ = 0;
};

// One upload in parts, while somebody writes to it. Late writers of a part that is being written anew, or of
// a blob that is complete, must not touch the bytes any more.
struct Upload {
  std::shared_mutex mutex;  // shared to write bytes, alone to change the rest
  std::map<uint64_t, uint64_t> generation;
  bool complete = false;
};

class PartWriter final : public Writer {
 public:
  PartWriter(UniqueFd fd, std::string dir, uint64_t number, uint64_t part_length,
             std::shared_ptr<Upload> upload, uint64_t generation)
      : fd_(std::move(fd)),
        dir_(std::move(dir)),
        number_(number),
        part_length_(part_length),
        upload_(std::move(upload)),
        generation_(generation),
        hasher_(true, false) {}

  Status Append(std::string_view bytes) override {
    if (size_ + bytes.size() > part_length_)
      return InvalidArgument("a part of more than " + std::to_string(part_length_) + " bytes");
    std::shared_lock lock(upload_->mutex);
    RETURN_IF_ERROR(StillOurs());
    RETURN_IF_ERROR(WriteAt(fd_.get(), bytes, (number_ - 1) * part_length_ + size_, dir_));
    size_ += bytes.size();
    hasher_.Update(bytes);
    return {};
  }

  Result<Stored> Commit(const Expected& expected) override {
    Stored stored{size_, hasher_.Md5Hex(), {}};
    RETURN_IF_ERROR(Check(stored, expected));
    std::unique_lock lock(upload_->mutex);
    RETURN_IF_ERROR(StillOurs());
    Status status = WriteFileAtomic(dir_ + "/" + std::to_string(number_),
                                    std::to_string(size_) + " " + stored.md5_hex, 0600);
    if (!status.ok()) return DiskStatus(dir_, status.error());
    return stored;
  }

 private:
  Status StillOurs() const {
    auto it = upload_->generation.find(number_);
    if (upload_->complete || it == upload_->generation.end() || it->second != generation_) {
      return Aborted("part " + std::to_string(number_) +
                     " is being written by somebody else, or its blob is complete");
    }
    return {};
  }

  UniqueFd fd_;
  const std::string dir_;
  const uint64_t number_, part_length_;
  const std::shared_ptr<Upload> upload_;
  const uint64_t generation_;
  Hasher hasher_;
  uint64_t size_ = 0;
};

class DirectoryStore final : public BlobStore {
 public:
  explicit DirectoryStore(DirectoryOptions options)
      : options_(std::move(options)),
        blobs_(options_.path + "/blobs"),
        objects_(options_.path + "/objects") {}

  Status Open() {
    for (const std::string& dir : {blobs_, objects_}) {
      RETURN_IF_ERROR(RemoveTree(dir + "/.tmp"));
      RETURN_IF_ERROR(MakeDirs(dir + "/.tmp", 0700));
      RETURN_IF_ERROR(MakeDirs(dir + "/.gone", 0700));
    }
    RETURN_IF_ERROR(RemoveRetired());
    RETURN_IF_ERROR(MakeDirs(blobs_ + "/.parts", 0700));
    return RemoveOldParts(kPartsKeptSeconds);
  }

  Result<std::unique_ptr<Writer>> BeginBlob(std::string_view id, uint64_t size_hint, Digest digest) override {
    RETURN_IF_ERROR(CheckBlob(id));
    return Begin(blobs_, BlobPath(id), "", size_hint, digest);
  }
  Result<Reader> OpenBlob(std::string_view id) override {
    RETURN_IF_ERROR(CheckBlob(id));
    return OpenFile(BlobPath(id), "blob " + std::string(id));
  }
  Result<uint64_t> BlobSize(std::string_view id) override {
    RETURN_IF_ERROR(CheckBlob(id));
    return FileSize(BlobPath(id), "blob " + std::string(id));
  }
  Status DeleteBlob(std::string_view id) override {
    RETURN_IF_ERROR(CheckBlob(id));
    EndUpload(id);
    RETURN_IF_ERROR(RemoveTree(PartsDir(id)));
    return Unlink(BlobPath(id));
  }

  Result<std::unique_ptr<Writer>> BeginPart(std::string_view id, uint64_t number,
                                            uint64_t part_length) override;
  Result<std::vector<std::string>> CompleteParts(std::string_view id, uint64_t size,
                                                 uint64_t part_length) override;

  Result<std::unique_ptr<Writer>> BeginObject(std::string_view sha256, uint64_t size_hint) override {
    RETURN_IF_ERROR(CheckDigest(sha256));
    return Begin(objects_, ObjectPath(sha256), std::string(sha256), size_hint, Digest::kSha256);
  }
  Result<Reader> OpenObject(std::string_view sha256) override {
    RETURN_IF_ERROR(CheckDigest(sha256));
    return OpenFile(ObjectPath(sha256), "object " + std::string(sha256));
  }
  Result<uint64_t> ObjectSize(std::string_view sha256) override {
    RETURN_IF_ERROR(CheckDigest(sha256));
    return FileSize(ObjectPath(sha256), "object " + std::string(sha256));
  }
  Status DeleteObject(std::string_view sha256) override {
    RETURN_IF_ERROR(CheckDigest(sha256));
    return Unlink(ObjectPath(sha256));
  }
  Status ObjectFromBlob(std::string_view blob_id, std::string_view sha256) override;

  Status RetireBlob(std::string_view id) override {
    RETURN_IF_ERROR(CheckBlob(id));
    EndUpload(id);
    RETURN_IF_ERROR(Retire(PartsDir(id), blobs_));
    return Retire(BlobPath(id), blobs_);
  }
  Status RetireObject(std::string_view sha256) override {
    RETURN_IF_ERROR(CheckDigest(sha256));
    return Retire(ObjectPath(sha256), objects_);
  }
  Status RemoveRetired() override;
  Status RemoveOldParts(double older_than_secs) override;
  Status ListBlobs(const std::function<Status(const Entry&)>& each) override { return List(blobs_, each); }
  Status ListObjects(const std::function<Status(const Entry&)>& each) override {
    return List(objects_, each);
  }
  Status CheckObject(std::string_view sha256) override;

 private:
  static Status CheckBlob(std::string_view id) {
    return ValidBlobId(id) ? Status()
                           : InvalidArgument("not the id of a blob: " + std::string(id.substr(0, 80)));
  }
  static Status CheckDigest(std::string_view hex) {
    return ValidSha256(hex)
               ? Status()
               : InvalidArgument("not a SHA-256 in lower-case hex: " + std::string(hex.substr(0, 80)));
  }
  std::string BlobPath(std::string_view id) const {
    return blobs_ + "/" + std::string(id.substr(id.size() - 2)) + "/" + std::string(id);
  }
  std::string ObjectPath(std::string_view hex) const {
    return objects_ + "/" + std::string(hex.substr(0, 2)) + "/" + std::string(hex);
  }
  std::string PartsDir(std::string_view id) const { return blobs_ + "/.parts/" + std::string(id); }

  void EndUpload(std::string_view id) {
    auto upload = FindUpload(std::string(id));
    if (upload == nullptr) return;
    std::unique_lock lock(upload->mutex);
    upload->generation.clear();
  }
  static Status Retire(const std::string& path, const std::string& space) {
    const std::string gone = space + "/.gone/" + RandomHex(16);
    return rename(path.c_str(), gone.c_str()) == 0 || errno == ENOENT ? Status() : DiskStatus(path);
  }
  static Status List(const std::string& space, const std::function<Status(const Entry&)>& each);
  Result<std::unique_ptr<Writer>> Begin(const std::string& space, std::string target, std::string sha256,
                                        uint64_t size_hint, Digest digest);

  static Result<Reader> OpenFile(const std::string& path, const std::string& what) {
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return errno == ENOENT ? NotFound("no " + what) : DiskStatus(path);
    struct stat status {};
    if (fstat(fd.get(), &status) != 0) return DiskStatus(path);
    return Reader{std::move(fd), static_cast<uint64_t>(status.st_size)};
  }
  static Result<uint64_t> FileSize(const std::string& path, const std::string& what) {
    struct stat status {};
    if (stat(path.c_str(), &status) != 0) return errno == ENOENT ? NotFound("no " + what) : DiskStatus(path);
    return static_cast<uint64_t>(status.st_size);
  }
  static Status Unlink(const std::string& path) {
    return unlink(path.c_str()) == 0 || errno == ENOENT ? Status() : DiskStatus(path);
  }

  std::shared_ptr<Upload> FindUpload(const std::string& id) {
    std::lock_guard lock(mutex_);
    auto it = uploads_.find(id);
    return it == uploads_.end() ? nullptr : it->second.lock();
  }
  std::shared_ptr<Upload> GetUpload(const std::string& id) {
    std::lock_guard lock(mutex_);
    std::erase_if(uploads_, [](const auto& entry) { return entry.second.expired(); });
    std::shared_ptr<Upload> upload = uploads_[id].lock();
    if (!upload) uploads_[id] = upload = std::make_shared<Upload>();
    return upload;
  }

  const DirectoryOptions options_;
  const std::string blobs_, objects_;
  std::mutex mutex_;  // guards uploads_
  std::map<std::string, std::weak_ptr<Upload>> uploads_;
};

// Names in a folder, without those that begin with a dot.
Result<std::vector<std::string>> Names(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), closedir);
  if (!dir) return DiskStatus(path);
  std::vector<std::string> names;
  while (dirent* entry = readdir(dir.get()))
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  return names;
}

Status DirectoryStore::List(const std::string& space, const std::function<Status(const Entry&)>& each) {
  ASSIGN_OR_RETURN(auto folders, Names(space));
  for (const std::string& folder : folders) {
    ASSIGN_OR_RETURN(auto names, Names(space + "/" + folder));
    for (std::string& name : names) {
      struct stat status {};
      if (stat((space + "/" + folder + "/" + name).c_str(), &status) != 0) continue;  // gone meanwhile
      const Entry entry{std::move(name), static_cast<uint64_t>(status.st_size),
                        static_cast<double>(status.st_mtime)};
      RETURN_IF_ERROR(each(entry));
    }
  }
  return {};
}

Status DirectoryStore::RemoveRetired() {
  for (const std::string& space : {blobs_, objects_}) {
    ASSIGN_OR_RETURN(auto names, Names(space + "/.gone"));
    for (const std::string& name : names) RETURN_IF_ERROR(RemoveTree(space + "/.gone/" + name));
  }
  return {};
}

Status DirectoryStore::CheckObject(std::string_view sha256) {
  ASSIGN_OR_RETURN(Reader reader, OpenObject(sha256));
  std::string buffer(kCopyBuffer, '\0');
  Hasher hasher(false, true);
  while (true) {
    const ssize_t count = read(reader.fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return DiskStatus(ObjectPath(sha256));
    if (count == 0) break;
    hasher.Update({buffer.data(), static_cast<size_t>(count)});
  }
  return Check({reader.size, {}, hasher.Sha256Hex()}, {.sha256_hex = std::string(sha256)});
}

Status DirectoryStore::RemoveOldParts(double older_than_secs) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir((blobs_ + "/.parts").c_str()), closedir);
  if (!dir) return DiskStatus(blobs_ + "/.parts");
  const time_t now = time(nullptr);
  while (dirent* entry = readdir(dir.get())) {
    if (entry->d_name[0] == '.') continue;
    const std::string path = blobs_ + "/.parts/" + entry->d_name;
    struct stat status {};
    if (stat(path.c_str(), &status) != 0 || static_cast<double>(now - status.st_mtime) < older_than_secs)
      continue;
    // A part that is being written shows in the file of the bytes alone.
    struct stat data {};
    if (stat((path + "/data").c_str(), &data) == 0 &&
        static_cast<double>(now - data.st_mtime) < older_than_secs) {
      continue;
    }
    EndUpload(entry->d_name);
    RETURN_IF_ERROR(RemoveTree(path));
  }
  return {};
}

Result<std::unique_ptr<Writer>> DirectoryStore::Begin(const std::string& space, std::string target,
                                                      std::string sha256, uint64_t size_hint, Digest digest) {
  std::string temporary = space + "/.tmp/" + RandomHex(16);
  UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return DiskStatus(target);
  // A disk that is too full says so before the bytes travel. Nothing is reserved: what is announced may never
  // come.
  struct statvfs disk {};
  if (size_hint >= kAskFrom && fstatvfs(fd.get(), &disk) == 0 &&
      size_hint / disk.f_frsize >= uint64_t{disk.f_bavail}) {
    unlink(temporary.c_str());
    return DiskStatus(target, ENOSPC);
  }
  return std::unique_ptr<Writer>(
      std::make_unique<FileWriter>(std::move(fd), std::move(temporary), std::move(target), std::move(sha256),
                                   options_.durable, digest == Digest::kMd5 || digest == Digest::kBoth,
                                   digest == Digest::kSha256 || digest == Digest::kBoth));
}

Result<std::unique_ptr<Writer>> DirectoryStore::BeginPart(std::string_view id, uint64_t number,
                                                          uint64_t part_length) {
  RETURN_IF_ERROR(CheckBlob(id));
  constexpr uint64_t kMost = uint64_t{1} << 62;  // of a file's bytes
  if (number == 0 || part_length == 0 || part_length > kMost || number > kMost / part_length) {
    return InvalidArgument("part " + std::to_string(number) + " of " + std::to_string(part_length) +
                           " bytes");
  }
  const std::string dir = PartsDir(id);
  std::shared_ptr<Upload> upload = GetUpload(std::string(id));
  std::unique_lock lock(upload->mutex);
  if (upload->complete) return Aborted("the blob is complete");
  RETURN_IF_ERROR(MakeDirs(dir, 0700));
  RETURN_IF_ERROR(Unlink(dir + "/" + std::to_string(number)));
  UniqueFd fd(open((dir + "/data").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return DiskStatus(dir);
  const uint64_t generation = ++upload->generation[number];
  return std::unique_ptr<Writer>(
      std::make_unique<PartWriter>(std::move(fd), dir, number, part_length, upload, generation));
}

Result<std::vector<std::string>> DirectoryStore::CompleteParts(std::string_view id, uint64_t size,
                                                               uint64_t part_length) {
  RETURN_IF_ERROR(CheckBlob(id));
  if (part_length == 0) return InvalidArgument("parts of no bytes");
  const std::string dir = PartsDir(id);
  std::shared_ptr<Upload> upload = GetUpload(std::string(id));
  std::unique_lock lock(upload->mutex);
  if (upload->complete || !Exists(dir)) {
    return FailedPrecondition(upload->complete || Exists(BlobPath(id)) ? "the blob is complete already"
                                                                       : "no part has been uploaded");
  }
  const uint64_t count = std::max<uint64_t>(1, size / part_length + (size % part_length != 0));
  std::vector<std::string> md5s;
  for (uint64_t i = 0; i < count; ++i) {
    const std::string name = std::to_string(i + 1);
    auto note = ReadFile(dir + "/" + name, 100);
    if (!note.ok())
      return FailedPrecondition("part " + name + " of " + std::to_string(count) + " is missing");
    const uint64_t wanted = std::min(part_length, size - i * part_length);
    const std::string prefix = std::to_string(wanted) + " ";
    if (!note->starts_with(prefix)) {
      return DataLoss("part " + name + " has " + note->substr(0, note->find(' ')) + " bytes, expected " +
                      std::to_string(wanted));
    }
    md5s.push_back(note->substr(prefix.size()));
  }
  UniqueFd fd(open((dir + "/data").c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid() || ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return DiskStatus(dir);
  if (options_.durable && fdatasync(fd.get()) != 0) return DiskStatus(dir);
  RETURN_IF_ERROR(Publish(dir + "/data", BlobPath(id), options_.durable));
  upload->complete = true;
  if (Status status = RemoveTree(dir); !status.ok())
    LOG_WARN("parts of a complete blob stay", {{"blob", id}, {"error", status}});
  return md5s;
}

Status DirectoryStore::ObjectFromBlob(std::string_view blob_id, std::string_view sha256) {
  RETURN_IF_ERROR(CheckDigest(sha256));
  ASSIGN_OR_RETURN(Reader reader, OpenBlob(blob_id));
  const std::string target = ObjectPath(sha256);
  std::string buffer(kCopyBuffer, '\0');
  const auto each = [&](const std::function<Status(std::string_view)>& use) -> Status {
    for (uint64_t at = 0; at < reader.size;) {
      const ssize_t count = pread(reader.fd.get(), buffer.data(), buffer.size(), static_cast<off_t>(at));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return count < 0 ? DiskStatus(BlobPath(blob_id)) : DataLoss("the blob became shorter");
      RETURN_IF_ERROR(use({buffer.data(), static_cast<size_t>(count)}));
      at += static_cast<uint64_t>(count);
    }
    return {};
  };
  Hasher hasher(false, true);
  RETURN_IF_ERROR(each([&](std::string_view bytes) { return hasher.Update(bytes), Status(); }));
  Stored stored{reader.size, {}, hasher.Sha256Hex()};
  RETURN_IF_ERROR(Check(stored, {.sha256_hex = std::string(sha256)}));
  RETURN_IF_ERROR(MakeDirs(Parent(target), 0700));
  const std::string own = "/proc/self/fd/" + std::to_string(reader.fd.get());
  if (linkat(AT_FDCWD, own.c_str(), AT_FDCWD, target.c_str(), AT_SYMLINK_FOLLOW) == 0 || errno == EEXIST)
    return {};
  // Another file system, one without links, or a blob that was deleted meanwhile.
  ASSIGN_OR_RETURN(auto writer, BeginObject(sha256, reader.size));
  RETURN_IF_ERROR(each([&](std::string_view bytes) { return writer->Append(bytes); }));
  auto done = writer->Commit({.size = reader.size});
  return done.status();
}

}  // namespace

Result<std::unique_ptr<BlobStore>> OpenDirectory(DirectoryOptions options) {
  auto store = std::make_unique<DirectoryStore>(std::move(options));
  RETURN_IF_ERROR(store->Open());
  return std::unique_ptr<BlobStore>(std::move(store));
}

}  // namespace lydian::blob
