#include "build/mount_layer.h"

#include "base/ids.h"
#include "image/stage.h"

namespace lydian::build {

Result<std::string> MakeMountLayer(image::LayerStore& layers, const std::string& mount_id,
                                   const std::vector<ContextFile>& files, const Fetcher& fetch) {
  std::string id = DigestId("ly", "mount " + mount_id);
  if (layers.Find(id).ok()) return id;
  ASSIGN_OR_RETURN(auto transaction, layers.Begin());
  // Folders get the usual modes: an overlay shows those of its topmost layer, and /root must not turn
  // readable, nor /tmp closed.
  ASSIGN_OR_RETURN(OverlayView view, OverlayView::ReadOnly({transaction->dir() + "/upper"}));
  for (const auto& file : files) {
    std::string path = image::JoinPath("/", file.path());
    size_t slash = path.rfind('/');
    if (path == "/") return InvalidArgument("mount " + mount_id + " holds a file without a name");
    ASSIGN_OR_RETURN(std::string content, fetch(file.sha256()));
    auto folder = view.MakeDir(slash == 0 ? "/" : path.substr(0, slash));
    if (!folder.ok()) return folder.status().With("mount " + mount_id);
    int mode = file.mode() == 0 ? 0644 : static_cast<int>(file.mode() & 07777);
    RETURN_IF_ERROR(PlaceFile(folder->get(), path.substr(slash + 1), content, mode, 0, 0)
                        .With("mount " + mount_id + ": " + path));
  }
  RETURN_IF_ERROR(transaction->Commit(id, "mount " + mount_id).status());
  return id;
}

}  // namespace lydian::build
