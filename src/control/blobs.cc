#include "control/blobs.h"

namespace lydian::control {

Status Blobs::Announce(const Scope& scope, const std::string& blob_id, uint64_t size, int64_t seconds,
                       const std::function<bool(const std::string& blob_id)>& stored) {
  Uploads& uploads = uploads_[scope.workspace_id];
  auto full = [&] { return uploads.open.size() >= limits_.count || uploads.bytes + size > limits_.bytes; };
  const double now = clock_->UnixSeconds();
  const SteadyTime steady = std::chrono::steady_clock::now();
  if (full() && steady >= uploads.looked_at + limits_.look_every) {
    uploads.looked_at = steady;
    std::erase_if(uploads.open, [&](const Upload& upload) {
      if (upload.until > now && !stored(upload.id)) return false;
      uploads.bytes -= upload.size;
      return true;
    });
  }
  if (full()) {
    return ResourceExhausted("this workspace has " + std::to_string(uploads.open.size()) +
                             " uploads open, of " + std::to_string(uploads.bytes >> 20) + " MiB; " +
                             std::to_string(limits_.count) + " and " + std::to_string(limits_.bytes >> 20) +
                             " MiB are the most: try again when some have ended");
  }
  RETURN_IF_ERROR(db_->Execute("INSERT INTO blob (id, workspace_id, size, created_at) VALUES (?, ?, ?, ?)",
                               {blob_id, scope.workspace_id, size, now}));
  uploads.open.push_back({blob_id, size, now + static_cast<double>(seconds)});
  uploads.bytes += size;
  return OkStatus();
}

}  // namespace lydian::control
