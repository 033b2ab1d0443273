// Files that control holds, by SHA-256, kept on this machine; and what a mount consists of.
// Thread-safety: all methods. Fetch and Mount block and must not run on the strand. Errors: what control
// answers; DATA_LOSS when the bytes are not what their name says; RESOURCE_EXHAUSTED when the disk is full.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "build/builder.h"
#include "worker/link.h"

namespace lydian::worker {

class Objects : public build::ContentSource {
 public:
  Objects(std::string dir, Link* link) : dir_(std::move(dir)), link_(link) {}
  Status Open();  // makes the folder, removes what a killed worker left half-made
  Result<std::string> Fetch(const std::string& sha256) override;
  // What is here, with the time since each was last fetched or asked for.
  std::vector<StoredObject> List();
  // The size of what has gone; FAILED_PRECONDITION when it was used in the last `min_idle_secs`.
  Result<uint64_t> Remove(const std::string& sha256, double min_idle_secs);
  // DATA_LOSS when its bytes are not what its name says. Reads all of it.
  Status Check(const std::string& sha256);
  // The files of a mount; asked once.
  void Mount(const std::string& mount_id, std::function<void(Result<std::vector<ContextFile>>)> reply);

 private:
  Status Download(const std::string& sha256, const std::string& path);

  double IdleSecs(const std::string& sha256) const;

  const std::string dir_;
  Link* link_;
  std::mutex mutex_;  // guards the two below
  std::condition_variable changed_;
  std::set<std::string> fetching_;
  std::map<std::string, SteadyTime> used_;  // since the start; before it, a file's own time
};

}  // namespace lydian::worker
