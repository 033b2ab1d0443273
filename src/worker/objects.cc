#include "worker/objects.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <memory>

#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"

namespace lydian::worker {
namespace {

bool IsSha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// One try of a download, filled by the channel's thread.
struct Download {
  std::mutex mutex;
  UniqueFd fd;
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> hash{EVP_MD_CTX_new(), EVP_MD_CTX_free};
  uint64_t bytes = 0;
  Status error;
  std::promise<Status> done;
};

}  // namespace

Status Objects::Open() {
  RETURN_IF_ERROR(MakeDirs(dir_, 0700));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir_, error)) {
    if (entry.path().extension() == ".part") RETURN_IF_ERROR(RemoveTree(entry.path().string()));
  }
  return {};
}

Result<std::string> Objects::Fetch(const std::string& sha256) {
  if (!IsSha256(sha256)) return InvalidArgument("an object is named by 64 hexadecimal digits");
  const std::string path = dir_ + "/" + sha256;
  std::unique_lock lock(mutex_);
  while (true) {
    if (Exists(path)) {
      used_[sha256] = std::chrono::steady_clock::now();
      return path;
    }
    if (fetching_.insert(sha256).second) break;
    changed_.wait(lock);  // somebody fetches it
  }
  lock.unlock();
  Status status = Download(sha256, path);
  lock.lock();
  fetching_.erase(sha256);
  used_[sha256] = std::chrono::steady_clock::now();
  changed_.notify_all();
  if (!status.ok()) return std::move(status).With("fetching object " + sha256.substr(0, 12));
  return path;
}

Status Objects::Download(const std::string& sha256, const std::string& path) {
  GetObjectRequest request;
  request.set_sha256(sha256);
  while (true) {
    const std::string part = path + "." + RandomHex(4) + ".part";
    auto download = std::make_shared<worker::Download>();
    download->fd.reset(open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!download->fd.valid()) return ErrnoStatus("opening " + part);
    EVP_DigestInit_ex(download->hash.get(), EVP_sha256(), nullptr);
    rpc::ClientCallbacks callbacks;
    callbacks.on_message = [download](std::string bytes) {
      ObjectChunk chunk;
      std::lock_guard lock(download->mutex);
      if (!download->error.ok()) return;
      if (!chunk.ParseFromString(bytes)) {
        download->error = DataLoss("control sent bytes that are not an ObjectChunk");
        return;
      }
      EVP_DigestUpdate(download->hash.get(), chunk.data().data(), chunk.data().size());
      download->bytes += chunk.data().size();
      download->error = WriteAll(download->fd.get(), chunk.data());
    };
    callbacks.on_done = [download](Status status, rpc::Metadata) {
      download->done.set_value(std::move(status));
    };
    auto call = link_->channel().Start("/lydian.WorkerLink/GetObject", {}, std::move(callbacks));
    call->Write(request.SerializeAsString());
    call->WritesDone();
    Status status = download->done.get_future().get();
    std::lock_guard lock(download->mutex);
    if (!download->error.ok()) status = download->error;
    if (status.code() == Code::kUnavailable) {
      RETURN_IF_ERROR(RemoveTree(part));
      std::promise<void> back;
      link_->WhenUpAfterPause([&back] { back.set_value(); });
      back.get_future().wait();
      continue;
    }
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    EVP_DigestFinal_ex(download->hash.get(), digest, &length);
    if (status.ok() && HexEncode({reinterpret_cast<char*>(digest), length}) != sha256) {
      status =
          DataLoss("what control sent (" + std::to_string(download->bytes) + " bytes) has another SHA-256");
    }
    if (status.ok() && rename(part.c_str(), path.c_str()) != 0) status = ErrnoStatus("renaming " + part);
    if (!status.ok()) (void)unlink(part.c_str());
    return status;
  }
}

// Under mutex_.
double Objects::IdleSecs(const std::string& sha256) const {
  if (auto use = used_.find(sha256); use != used_.end())
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - use->second).count();
  struct stat info {};
  if (stat((dir_ + "/" + sha256).c_str(), &info) != 0) return 0;
  return std::max(0.0, SystemClock().UnixSeconds() - static_cast<double>(info.st_mtime));
}

std::vector<StoredObject> Objects::List() {
  std::vector<StoredObject> all;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir_, error)) {
    StoredObject object;
    object.set_sha256(entry.path().filename().string());
    if (!IsSha256(object.sha256())) continue;
    object.set_bytes(entry.file_size(error));
    std::lock_guard lock(mutex_);
    object.set_idle_secs(IdleSecs(object.sha256()));
    all.push_back(std::move(object));
  }
  return all;
}

Result<uint64_t> Objects::Remove(const std::string& sha256, double min_idle_secs) {
  if (!IsSha256(sha256)) return InvalidArgument("an object is named by 64 hexadecimal digits");
  const std::string path = dir_ + "/" + sha256;
  std::lock_guard lock(mutex_);
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return NotFound("no object " + sha256);
  if (IdleSecs(sha256) < min_idle_secs) return FailedPrecondition("object " + sha256 + " was used lately");
  if (unlink(path.c_str()) != 0) return ErrnoStatus("removing " + path);
  used_.erase(sha256);
  return static_cast<uint64_t>(info.st_size);
}

Status Objects::Check(const std::string& sha256) {
  UniqueFd fd(open((dir_ + "/" + sha256).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("opening object " + sha256);
  Sha256Stream hash;
  std::string buffer(size_t{1} << 20, '\0');
  while (true) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("reading object " + sha256);
    if (count == 0) break;
    hash.Update({buffer.data(), static_cast<size_t>(count)});
  }
  if (hash.Hex() == sha256) return {};
  return DataLoss("the file " + sha256 + " has other bytes than its name says");
}

void Objects::Mount(const std::string& mount_id,
                    std::function<void(Result<std::vector<ContextFile>>)> reply) {
  GetMountRequest request;
  request.set_mount_id(mount_id);
  link_->Call("/lydian.WorkerLink/GetMount", request.SerializeAsString(), {},
              [mount_id, reply = std::move(reply)](Result<std::string> answer) {
                if (!answer.ok()) return reply(answer.status().With("asking for mount " + mount_id));
                GetMountResponse response;
                if (!response.ParseFromString(*answer))
                  return reply(DataLoss("the answer for mount " + mount_id + " does not parse"));
                reply(std::vector<ContextFile>(response.files().begin(), response.files().end()));
              });
}

}  // namespace lydian::worker
