// COPY and ADD: files that come by descriptor, and parts of another tree, into a stage.
// Thread-safety: none. Errors: what is missing, by the name that the Dockerfile gave it.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "guest/stage/owners.h"
#include "guest/stage/view.h"

namespace lydian::stage {

// What holds for all files of a step.
struct Terms {
  bool keep_owner = true;  // of what is copied; what is put belongs to root then
  Ids owner;
  int mode = -1;  // -1 = as it was
  unsigned max_depth = 0;
  unsigned Mode(unsigned own) const { return mode >= 0 ? static_cast<unsigned>(mode) : own & 07777; }
};

class Copier {
 public:
  Copier(const View& view, const Terms& terms, Budget& budget)
      : view_(view), terms_(terms), budget_(budget) {}

  // The bytes of `content` at `path`; as `name` in it when it ends with a slash or is a folder.
  Status Put(const std::string& path, const std::string& name, unsigned mode, int content);
  // What the patterns name in `source`; a folder's content rather than the folder, as COPY has it.
  Status Copy(const View& source, const std::vector<std::string>& patterns, const std::string& destination,
              const std::string& source_name);

 private:
  // The folder that `path` lies in, kept for the next file of the same.
  Result<int> Folder(const std::string& path);
  Result<std::string> FileTarget(const std::string& path, const std::string& name) const;
  Status CopyOne(const View& source, const std::string& path, const std::string& destination);

  const View& view_;
  const Terms& terms_;
  Budget& budget_;
  std::string folder_path_;
  UniqueFd folder_;
};

}  // namespace lydian::stage
