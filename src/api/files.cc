#include "api/files.h"

#include "base/ids.h"

namespace lydian::api {

Status NoteStored(Services& services, const std::string& workspace_id, const std::string& sha256,
                  uint64_t size) {
  // Files are collected on this strand too: from here on the row keeps it.
  if (auto there = services.blobs->ObjectSize(sha256); !there.ok()) {
    return there.status().code() == Code::kNotFound
               ? Unavailable("the content was removed before it was noted: put it again")
               : there.status();
  }
  return services.objects->mounts().NoteObject(workspace_id, sha256, size);
}

void StoreFiles(ServicesPtr services, const std::string& workspace_id, std::vector<NewFile> files,
                std::function<void(Status)> done) {
  auto kept = std::make_shared<std::vector<NewFile>>(std::move(files));
  services->files->Post([services, workspace_id, kept, done = std::move(done)] {
    Status status;
    for (const auto& file : *kept) {
      auto stored = services->blobs->PutObject(file.data);
      if (!stored.ok()) {
        status = stored.status();
      } else if (*stored != file.sha256) {
        status = InvalidArgument("the content has the SHA-256 " + *stored + ", not " +
                                 file.sha256.substr(0, 64) + " as announced");
      }
      if (!status.ok()) break;
    }
    services->objects->strand().Post([services, workspace_id, kept, done, status]() mutable {
      for (const auto& file : *kept) {
        if (status.ok()) status = NoteStored(*services, workspace_id, file.sha256, file.data.size());
      }
      done(status);
    });
  });
}

}  // namespace lydian::api
