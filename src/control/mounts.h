// Mounts: lists of files by SHA-256, and which of those contents a workspace has uploaded. The bytes are in
// the blob store; a workspace can only mount what it has itself put there, so a hash alone opens nothing.
//
// Anonymous mounts have an id that follows from their content. The client's own mount
// ("modal-client-mount-1.6.4") is made by workers; here it is one id a version, which belongs to everybody.
//
// Thread-safety: the objects strand only, except Files.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/status.h"
#include "control/scope.h"
#include "lydian/worker.pb.h"
#include "store/database.h"

namespace lydian::control {

struct Mount {
  std::string id, workspace_id, environment_id, client_version, checksum;
};

class Mounts {
 public:
  Mounts(store::Database* db, Clock* clock, Strand* strand) : db_(db), clock_(clock), strand_(strand) {}

  Result<std::vector<std::string>> Missing(const std::string& workspace_id,
                                           const std::vector<std::string>& sha256);
  // The workspace has put this content into the blob store.
  Status NoteObject(const std::string& workspace_id, const std::string& sha256, uint64_t size);
  // FAILED_PRECONDITION when a file was not uploaded; INVALID_ARGUMENT for a path that isn't absolute and
  // clean.
  Result<Mount> Create(const Scope& scope, const std::string& environment_id, std::vector<ContextFile> files);
  // Without the list of files, which may be long.
  Result<Mount> Get(const Scope& scope, const std::string& mount_id);
  Result<Mount> ById(const std::string& mount_id);
  Result<std::vector<ContextFile>> FilesOf(const Mount& mount);
  // The id of a client version's mount; a row is made for it.
  Result<Mount> ClientMount(const std::string& version);

  // For workers, from any thread; `reply` comes on the objects strand.
  void Files(const std::string& mount_id, std::function<void(Result<GetMountResponse>)> reply);

 private:
  store::Database* db_;
  Clock* clock_;
  Strand* strand_;
};

// "/a/b" without empty, "." or ".." parts; a trailing slash is an error.
Status CheckAbsolutePath(const std::string& path);

}  // namespace lydian::control
