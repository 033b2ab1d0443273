#include "store/disk_failure.h"

#include <cstdlib>
#include <mutex>

#include "base/log.h"

namespace lydian::store {
namespace {

std::mutex mutex;  // guards the handler
std::function<void(const Status&)>& Handler() {
  static auto& handler = *new std::function<void(const Status&)>;  // outlives the threads
  return handler;
}

}  // namespace

void DiskFailed(const Status& error) {
  std::function<void(const Status&)> handler;
  {
    std::lock_guard lock(mutex);
    handler = Handler();
  }
  LOG_ERROR(
      "the disk failed under a database, which ends this process: its successor starts from what is there",
      {{"error", error}});
  if (!handler) std::abort();
  handler(error);
}

void SetDiskFailureHandler(std::function<void(const Status&)> handler) {
  std::lock_guard lock(mutex);
  Handler() = std::move(handler);
}

}  // namespace lydian::store
