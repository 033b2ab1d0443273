// A file tree that a tenant made, as far as a process with rights on the host may touch it at all. Every path
// is resolved beneath the tree's root with no symbolic link, magic link or other mount on the way, and only
// regular files are opened, after a look at what they are. No other code of build, image and worker opens a
// path below such a tree (tools/check_layers.py); work on files that needs more is lydian-stage's, inside a
// container (docs/formats/stage.md). Thread-safety: const methods from any thread. Errors: the errno with the
// path; FAILED_PRECONDITION where a link stands in the way.
#pragma once

#include <sys/stat.h>

#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "base/tree.h"

namespace lydian::image {

class Tree {
 public:
  // `root` is a path of ours, down to its last part.
  static Result<Tree> Open(const std::string& root);
  static Result<Tree> At(int folder, const std::string& name);

  int root() const { return root_.get(); }
  // Of the entry itself, a link too.
  Result<struct stat> Stat(const std::string& path) const;
  Result<UniqueFd> OpenFile(const std::string& path) const;
  Result<std::string> Read(const std::string& path, size_t limit) const;
  Result<bool> Empty() const;
  Result<std::vector<std::string>> Names() const;  // of its root folder
  // A folder of it as a tree of its own.
  Result<Tree> Below(const std::string& path) const;

  // With all below it; one that isn't there is fine.
  Status Remove(const std::string& path) const;
  // A folder with nothing in it; another stays.
  void RemoveEmptyFolder(const std::string& path) const;
  // As mkdir -p: 0755, but /root 0700, /tmp and /var/tmp 1777. An O_PATH descriptor.
  Result<UniqueFd> MakeFolder(const std::string& path) const;
  // A new file of root's with the bytes of `content`; replaces a file or link.
  Status Put(const std::string& path, int content, unsigned mode) const;
  // Another name of a file that Put has made; replaces a file or link.
  Status Link(const std::string& existing, const std::string& path) const;

 private:
  explicit Tree(UniqueFd root) : root_(std::move(root)) {}
  Result<UniqueFd> OpenBeneath(const std::string& path, int flags) const;
  Result<UniqueFd> FolderOf(const std::string& full) const;
  UniqueFd root_;
};

struct CopyLimits {
  WalkLimits walk;               // `check` is also asked while a file is copied
  uint64_t bytes = UINT64_MAX;   // of files' content and attributes, as often as they are copied
  uint64_t shared = UINT64_MAX;  // of files that have several names
};

// All of `from` into the empty `to`, owner ids as they are stored: an overlay's upper, with its whiteouts and
// opaque folders, as a layer. Hard links stay links, holes stay holes. Sockets are left out. `links`: an
// empty folder on the file system of `to`, outside of it, for the copy's own use; it may be removed
// afterwards.
Status CopyUpper(const Tree& from, const Tree& to, int links, const CopyLimits& limits);

}  // namespace lydian::image
