#include "bin/preflight.h"

#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "bin/listeners.h"
#include "runtime/ruleset.h"
#include "runtime/runtime.h"

namespace lydian::bin {
namespace {

constexpr uint64_t kMinMemory = uint64_t{900} << 20;
constexpr uint64_t kMinDisk = uint64_t{3} << 30;  // the runtime starts nothing below a reserve of 2 GiB

std::string Gib(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

// The folder itself or the nearest parent that exists.
std::string Existing(std::string folder) {
  while (folder.size() > 1 && !Exists(folder))
    folder = folder.substr(0, std::max<size_t>(folder.rfind('/'), 1));
  return folder.empty() ? "." : folder;
}

}  // namespace

Status CheckMachine(const UpOptions& options) {
  if (::geteuid() != 0)
    return PermissionDenied("`lydian up` makes containers, and needs to be run as root (sudo lydian up)");
  ASSIGN_OR_RETURN(HostPort address, ParseHostPort(options.listen));
  if (!IsLoopback(address.host) && !options.insecure) {
    return FailedPrecondition(
        "--listen " + options.listen +
        " can be reached from other machines, and tokens and data would travel unencrypted: give --insecure "
        "as well if the "
        "network is yours alone, or put a proxy with TLS before it. (Its certificate has to be one that the "
        "client trusts: it "
        "knows the public authorities of its certifi package only. For a private one, append the authority "
        "to the file that "
        "`python -c 'import certifi; print(certifi.where())'` names, wherever the client runs.)");
  }
  for (const auto& network : options.denied_networks) {
    RETURN_IF_ERROR(runtime::ParseNetwork(network).With("--deny-network").status());
  }
  struct sysinfo info {};
  if (::sysinfo(&info) == 0 && uint64_t{info.totalram} * info.mem_unit < kMinMemory) {
    return ResourceExhausted("this machine has " + Gib(uint64_t{info.totalram} * info.mem_unit) +
                             " of memory; Lydian needs 1 GiB");
  }
  struct statvfs disk {};
  std::string folder = Existing(options.state);
  if (::statvfs(folder.c_str(), &disk) == 0 && uint64_t{disk.f_bavail} * disk.f_frsize < kMinDisk) {
    return ResourceExhausted("no space left: " + Gib(uint64_t{disk.f_bavail} * disk.f_frsize) +
                             " are free at " + folder + ", Lydian needs " + Gib(kMinDisk) +
                             " there to start; make room or choose another place with --state DIR");
  }
  return OkStatus();
}

Status CheckKernel(const UpOptions& options, const cli::StatePaths& paths, const std::string& init_path) {
  runtime::RuntimeOptions runtime_options;
  runtime_options.state_dir = paths.worker_dir();
  runtime_options.instance = cli::InstanceName(paths.root);
  runtime_options.init_path = init_path;
  runtime_options.address_range = options.address_range;
  std::string missing;
  for (const runtime::Feature& feature : runtime::ProbeFeatures(runtime_options)) {
    if (feature.required && !feature.ok)
      missing += "\n  " + feature.name + " (" + feature.what_for + "): " + feature.found;
  }
  if (missing.empty()) return OkStatus();
  return FailedPrecondition("this machine lacks what containers need:" + missing +
                            "\n`lydian doctor` has the whole table");
}

}  // namespace lydian::bin
