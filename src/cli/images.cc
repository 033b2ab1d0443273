#include <climits>
#include <cstdio>
#include <cstdlib>

#include "cli/admin_client.h"
#include "cli/commands.h"
#include "cli/verbs.h"
#include "lydian/admin.pb.h"

namespace lydian::cli {
namespace {

Result<AdminClient> Worker(const std::string& state) {
  BlockStopSignals();
  ASSIGN_OR_RETURN(StatePaths paths, FindState(state));
  return AdminClient::Connect(paths, kWorkerAdmin);
}

// Prints a long operation's lines as they come.
Status Follow(AdminClient& client, const std::string& method, const std::string& request) {
  Status outcome;
  Status status = client.Stream(method, request, [&](const std::string& bytes) {
    ProgressEvent event;
    if (!event.ParseFromString(bytes)) return Internal("the worker's progress can't be read");
    if (!event.text().empty()) {
      std::fwrite(event.text().data(), 1, event.text().size(), stdout);
      if (event.text().back() != '\n') std::fputc('\n', stdout);
      std::fflush(stdout);
    }
    if (!event.error().empty()) {
      outcome =
          Status(event.error_code() > 0 && event.error_code() <= 16 ? static_cast<Code>(event.error_code())
                                                                    : Code::kInternal,
                 event.error());
    }
    return OkStatus();
  });
  return status.ok() ? outcome : status;
}

int Report(const Status& status) {
  if (status.code() == Code::kCancelled) {
    std::fprintf(stderr, "lydian: stopped; what was done so far is kept\n");
    return 130;
  }
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace

int ImageImport(const std::string& state, const std::string& name, const std::string& archive) {
  char path[PATH_MAX];
  if (::realpath(archive.c_str(), path) == nullptr) return Fail(ErrnoStatus("finding " + archive));
  auto client = Worker(state);
  if (!client.ok()) return Fail(client.status());
  ImageImportRequest request;
  request.set_name(name);
  request.set_path(path);
  return Report(Follow(*client, "ImportImage", request.SerializeAsString()));
}

int ImageBase(const std::string& state, const std::string& name) {
  auto client = Worker(state);
  if (!client.ok()) return Fail(client.status());
  BaseMakeRequest request;
  request.set_name(name);
  request.set_client_runtime(true);
  return Report(Follow(*client, "MakeBase", request.SerializeAsString()));
}

int ImageBases(const std::string& state) {
  auto client = Worker(state);
  if (!client.ok()) return Fail(client.status());
  auto list = client->Call<BaseListRequest, BaseListResponse>("Bases", {}, Millis(30'000));
  if (!list.ok()) return Fail(list.status());
  std::printf("%-36s %-10s %-6s %s\n", "BASE", "VERSION", "MADE", "");
  for (const BaseEntry& base : list->bases()) {
    std::printf("%-36s %-10s %-6s %s\n", base.name().c_str(), base.version().c_str(),
                base.made() ? "yes" : "no", base.note().c_str());
  }
  return kExitOk;
}

}  // namespace lydian::cli
