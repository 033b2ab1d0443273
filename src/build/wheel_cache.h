// Wheels that were downloaded once, in a folder outside any state, for every later download by a toolbox of
// ours. A wheel is kept with its digest, checked against it before it is lent, and never replaced: what is
// lent is what came from the index the first time. Thread-safety: every method from any thread, and from
// several processes. Errors: the errno with the name.
#pragma once

#include <map>
#include <string>

#include "base/status.h"
#include "image/tree.h"

namespace lydian::build {

class WheelCache {
 public:
  // `cache_dir` "" = nothing is kept.
  explicit WheelCache(const std::string& cache_dir);

  // The folder to lend, every wheel in it checked; "" = none. One that is not as it was goes, with a line in
  // the log.
  Result<std::string> Checked();
  // New wheels of a folder in a tree that a toolbox left.
  Status Keep(const image::Tree& tree, const std::string& folder);
  // What versions kept that let wheels be made in images of others.
  static Status DropOld(const std::string& cache_dir);

 private:
  Result<UniqueFd> Lock();
  std::map<std::string, std::string> ReadDigests() const;
  Status WriteDigests(const std::map<std::string, std::string>& digests) const;
  Status KeepOne(const image::Tree& tree, const std::string& path, const std::string& name,
                 std::map<std::string, std::string>& digests);

  std::string dir_;
};

}  // namespace lydian::build
