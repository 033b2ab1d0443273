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

#include "build/builder.h"
#include "worker/link.h"

namespace lydian::worker {

class Objects : public build::ContentSource {
 public:
  Objects(std::string dir, Link* link) : dir_(std::move(dir)), link_(link) {}
  Status Open();  // makes the folder, removes what a killed worker left half-made
  Result<std::string> Fetch(const std::string& sha256) override;
  // The files of a mount; asked once.
  void Mount(const std::string& mount_id, std::function<void(Result<std::vector<ContextFile>>)> reply);

 private:
  Status Download(const std::string& sha256, const std::string& path);

  const std::string dir_;
  Link* link_;
  std::mutex mutex_;  // guards the set
  std::condition_variable changed_;
  std::set<std::string> fetching_;
};

}  // namespace lydian::worker
