#include "rpc/restricted.h"

#include <algorithm>
#include <array>
#include <string>

namespace lydian::rpc {
namespace {

// Those of a feature that isn't built are here when the feature is.
constexpr std::array<std::string_view, 5> kOwnTask = {"BlobCreate", "BlobGet", "FunctionCallPutDataOut",
                                                      "FunctionGetDynamicConcurrency", "TaskResult"};

}  // namespace

Status CheckRestricted(std::string_view method) {
  if (std::find(kOwnTask.begin(), kOwnTask.end(), method) != kOwnTask.end()) return OkStatus();
  return PermissionDenied(std::string(method) +
                          " is not open to this container: it was made with restrict_modal_access=True");
}

}  // namespace lydian::rpc
