#include "build/mount_layer.h"

#include <fcntl.h>

#include "base/ids.h"
#include "base/paths.h"

namespace lydian::build {

Result<std::string> MakeMountLayer(image::LayerStore& layers, const std::string& mount_id,
                                   const std::vector<ContextFile>& files, const Fetcher& fetch) {
  std::string id = DigestId("ly", "mount " + mount_id);
  if (layers.Find(id).ok()) return id;
  ASSIGN_OR_RETURN(auto transaction, layers.Begin());
  // Folders get the usual modes: an overlay shows those of its topmost layer, and /root must not turn
  // readable, nor /tmp closed.
  ASSIGN_OR_RETURN(image::Tree upper, transaction->Upper());
  for (const auto& file : files) {
    if (JoinPath("/", file.path()) == "/")
      return InvalidArgument("mount " + mount_id + " holds a file without a name");
    ASSIGN_OR_RETURN(std::string path, fetch(file.sha256()));
    UniqueFd content(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!content.valid()) return ErrnoStatus("opening content " + file.sha256());
    RETURN_IF_ERROR(upper.Put(file.path(), content.get(), file.mode() == 0 ? 0644 : file.mode())
                        .With("mount " + mount_id + ": " + file.path()));
  }
  RETURN_IF_ERROR(transaction->Commit(id, "mount " + mount_id).status());
  return id;
}

}  // namespace lydian::build
