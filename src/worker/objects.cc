#include "worker/objects.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

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
    if (Exists(path)) return path;
    if (fetching_.insert(sha256).second) break;
    changed_.wait(lock);  // somebody fetches it
  }
  lock.unlock();
  Status status = Download(sha256, path);
  lock.lock();
  fetching_.erase(sha256);
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
