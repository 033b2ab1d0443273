#include "build/mount_layer.h"

#include <fcntl.h>

#include <cerrno>
#include <map>

#include "base/ids.h"
#include "base/paths.h"

namespace lydian::build {

Result<std::string> MakeMountLayer(image::LayerStore& layers, const std::string& mount_id,
                                   const std::vector<ContextFile>& files, const Fetcher& fetch) {
  std::string id = image::MountLayerId(mount_id);
  if (layers.Find(id).ok()) return id;
  ASSIGN_OR_RETURN(auto transaction, layers.Begin());
  // Folders get the usual modes: an overlay shows those of its topmost layer, and /root must not turn
  // readable, nor /tmp closed.
  ASSIGN_OR_RETURN(image::Tree upper, transaction->Upper());
  std::map<std::string, const ContextFile*> by_path;  // the last of a name counts
  for (const auto& file : files) {
    const std::string path = JoinPath("/", file.path());
    if (path == "/") return InvalidArgument("mount " + mount_id + " holds a file without a name");
    by_path[path] = &file;
  }
  std::map<std::pair<std::string, unsigned>, std::string> placed;  // content and mode: where
  for (const auto& [path, file] : by_path) {
    const unsigned mode = file->mode() == 0 ? 0644 : file->mode();
    std::string& first = placed[{file->sha256(), mode}];
    if (!first.empty()) {  // many names cost what one does
      Status linked = upper.Link(first, path);
      if (linked.ok()) continue;
      if (linked.error() != EMLINK) return std::move(linked).With("mount " + mount_id);
    }
    first = path;
    ASSIGN_OR_RETURN(std::string source, fetch(file->sha256()));
    UniqueFd content(::open(source.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!content.valid()) return ErrnoStatus("opening content " + file->sha256());
    RETURN_IF_ERROR(upper.Put(path, content.get(), mode).With("mount " + mount_id + ": " + path));
  }
  RETURN_IF_ERROR(transaction->Commit(id, "mount " + mount_id).status());
  return id;
}

}  // namespace lydian::build
