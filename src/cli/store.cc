// `lydian store ...`: asked of the control that runs, over its admin socket.
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/text.h"
#include "cli/admin_client.h"
#include "cli/commands.h"
#include "cli/verbs.h"
#include "lydian/admin.pb.h"

namespace lydian::cli {
namespace {

constexpr Millis kPatience(60 * 60 * 1000);  // it may read all there is

template <typename Response, typename Request>
Result<Response> Ask(const std::string& state, const std::string& method, const Request& request) {
  if (::geteuid() != 0) return PermissionDenied("`lydian store` needs to be run as root");
  ASSIGN_OR_RETURN(StatePaths paths, FindState(state));
  ASSIGN_OR_RETURN(AdminClient client, AdminClient::Connect(paths, kControlAdmin));
  return client.Call<Request, Response>(method, request, kPatience);
}

template <typename Notes>
void PrintNotes(const Notes& notes) {
  for (const auto& note : notes) std::fprintf(stderr, "%s\n", note.c_str());
}

}  // namespace

int StoreDu(const std::string& state, bool json) {
  auto answer = Ask<StoreUsageResponse>(state, "StoreUsage", StoreUsageRequest());
  if (!answer.ok()) return Fail(answer.status());
  std::sort(answer->mutable_usage()->begin(), answer->mutable_usage()->end(),
            [](const StoreUsage& a, const StoreUsage& b) { return a.bytes() > b.bytes(); });
  if (json) return PrintJson(*answer);
  std::printf("%-10s %-8s %-32s %-16s %-24s %s\n", "SIZE", "COUNT", "KIND", "WORKSPACE", "APP", "IN");
  for (const StoreUsage& usage : answer->usage()) {
    std::printf("%-10s %-8llu %-32s %-16s %-24s %s\n", BytesText(usage.bytes()).c_str(),
                static_cast<unsigned long long>(usage.count()), usage.kind().c_str(),
                usage.workspace().c_str(), usage.app().c_str(), usage.place().c_str());
  }
  PrintNotes(answer->notes());
  return kExitOk;
}

int StoreGc(const std::string& state, bool dry_run, bool json) {
  StoreCollectRequest request;
  request.set_dry_run(dry_run);
  auto answer = Ask<StoreCollectResponse>(state, "StoreCollect", request);
  if (!answer.ok()) return Fail(answer.status());
  if (json) return PrintJson(*answer);
  std::printf("%-22s %-10s %-10s %-10s %s\n", "KIND", dry_run ? "WOULD GO" : "FREED", "SIZE", "IN USE",
              "WITHOUT USE, KEPT");
  uint64_t bytes = 0;
  for (const StoreCollected& line : answer->collected()) {
    bytes += line.freed_bytes();
    std::printf("%-22s %-10llu %-10s %-10llu %llu (for %s)\n", line.kind().c_str(),
                static_cast<unsigned long long>(line.freed()), BytesText(line.freed_bytes()).c_str(),
                static_cast<unsigned long long>(line.in_use()),
                static_cast<unsigned long long>(line.waiting()), AgeText(line.keep_secs()).c_str());
  }
  if (!dry_run) std::printf("%s were freed.\n", BytesText(bytes).c_str());
  PrintNotes(answer->notes());
  return kExitOk;
}

int StoreVerify(const std::string& state, bool json) {
  auto answer = Ask<StoreVerifyResponse>(state, "StoreVerify", StoreVerifyRequest());
  if (!answer.ok()) return Fail(answer.status());
  const int code = answer->damages().empty() ? kExitOk : kExitFailed;
  if (json) return PrintJson(*answer) == kExitOk ? code : kExitFailed;
  for (const StoreDamage& damage : answer->damages()) {
    std::printf("%s %s: %s\n    %s\n", damage.kind().c_str(), damage.id().c_str(), damage.what().c_str(),
                damage.mend().c_str());
  }
  std::printf("%llu things were looked at, %d are damaged.\n",
              static_cast<unsigned long long>(answer->checked()), answer->damages_size());
  PrintNotes(answer->notes());
  return code;
}

}  // namespace lydian::cli
