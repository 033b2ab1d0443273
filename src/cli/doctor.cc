#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "base/fd.h"
#include "build/host_settings.h"
#include "cli/admin_client.h"
#include "cli/commands.h"
#include "cli/verbs.h"
#include "lydian/admin.pb.h"
#include "runtime/runtime.h"

namespace lydian::cli {
namespace {

struct Tool {
  const char *name, *what_for, *without;
  bool required;
};

constexpr Tool kTools[] = {
    {"useradd", "makes the system user of control", "make the user `lydian` by hand", false},
    {"mmdebstrap", "base images from Debian packages", "import an archive: lydian image import", false},
    {"gcc", "builds CPython for base images", "import an archive: lydian image import", false},
    {"make", "builds CPython for base images", "import an archive: lydian image import", false},
    {"mkfs.ext4", "quota images for what containers write", "project quotas, where the file system has them",
     false},
    {"xz", "unpacks source archives", "import an archive: lydian image import", false},
    {"nft", "looking at the rules of the containers' network", "nothing: Lydian itself does not call it",
     false},
};

std::string FindTool(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(std::string(path != nullptr ? path : "") + ":/usr/sbin:/sbin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    std::string file = folder + "/" + name;
    if (::access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

void Row(bool ok, bool required, const std::string& name, const std::string& found,
         const std::string& what_for, const std::string& instead) {
  std::printf("%-8s %-26s %-34s %s%s\n",
              ok         ? "ok"
              : required ? "MISSING"
                         : "-",
              name.c_str(), found.c_str(), what_for.c_str(),
              ok || instead.empty() ? "" : ("; instead: " + instead).c_str());
}

void ShowBases(const std::string& state) {
  std::printf("\nBase images\n");
  auto paths = FindState(state);
  if (!paths.ok()) return (void)std::printf("  (%s)\n", paths.status().message().c_str());
  auto client = AdminClient::Connect(*paths, kWorkerAdmin);
  if (!client.ok()) return (void)std::printf("  (%s)\n", client.status().message().c_str());
  auto list = client->Call<BaseListRequest, BaseListResponse>("Bases", {}, Millis(30'000));
  if (!list.ok()) return (void)std::printf("  (%s)\n", list.status().message().c_str());
  for (const BaseEntry& base : list->bases()) {
    std::printf("%-8s %-36s %-10s %s\n", base.made() ? "made" : "-", base.name().c_str(),
                base.version().c_str(), base.note().c_str());
  }
  std::printf(
      "Another one: a registry mirror, `lydian image import NAME ARCHIVE`, or a recipe of your own.\n");
}

// What of this shell's environment build steps would see; a value may be a credential, so names alone.
void ShowLent() {
  std::string names;
  for (const auto& name : build::HostSettingNames()) names += (names.empty() ? "" : ", ") + name;
  std::printf("\nLent to build steps: the CA bundle; with `lydian up --lend-host-settings` also %s\n",
              names.empty() ? "pip, uv and proxy settings (none are set here)" : names.c_str());
}

}  // namespace

int Doctor(const std::string& state, const std::string& address_range) {
  bool fine = true;
  runtime::RuntimeOptions options;
  auto paths = FindState(state);
  options.state_dir = paths.ok() ? paths->worker_dir() : state + "/worker";
  options.instance = InstanceName(paths.ok() ? paths->root : state);
  options.address_range = address_range;
  std::printf("%-8s %-26s %-34s %s\n", "", "KERNEL, RIGHTS", "FOUND", "WHAT FOR");
  bool root = ::geteuid() == 0;
  Row(root, true, "root", root ? "yes" : "uid " + std::to_string(::geteuid()),
      "containers; run this as root to see the rest", "");
  fine &= root;
  for (const runtime::Feature& feature : runtime::ProbeFeatures(options)) {
    Row(feature.ok, feature.required, feature.name, feature.found, feature.what_for, feature.instead);
    fine &= feature.ok || !feature.required;
  }
  std::printf("\n%-8s %-26s %-34s %s\n", "", "TOOLS", "FOUND", "WHAT FOR");
  for (const Tool& tool : kTools) {
    std::string found = FindTool(tool.name);
    Row(!found.empty(), tool.required, tool.name, found.empty() ? "not there" : found, tool.what_for,
        tool.without);
    fine &= !found.empty() || !tool.required;
  }
  struct statvfs disk {};
  std::string folder = paths.ok() ? paths->root : "/";
  if (::statvfs(folder.c_str(), &disk) == 0) {
    std::printf("\nDisk: %.1f GiB free at %s\n",
                static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize) / (1 << 30),
                folder.c_str());
  }
  ShowLent();
  ShowBases(state);
  return fine ? kExitOk : kExitFailed;
}

}  // namespace lydian::cli
