// The command line: parses, runs, returns the exit code. What starts processes is handed in (bin).
// Not thread-safe: one call a process.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cli/state.h"

namespace lydian::cli {

// Exit codes of `lydian`. `debug run` returns its command's own, or 128 + the signal that killed it.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,
  kExitUsage = 2,
};

struct UpOptions {
  std::string state = kDefaultState;
  std::string listen = "127.0.0.1:7070";
  bool insecure = false;      // other addresses than loopback without TLS
  bool detach = false;        // returns when everything serves
  std::string address_range;  // empty: one that is free is chosen
  uint64_t memory_reserve_bytes = 0;
  uint64_t disk_bytes = uint64_t{20} << 30;
  uint32_t pids = 4096;
  bool lend_host_settings = false;  // this machine's package indexes and proxies reach build steps
  uint32_t step_timeout_s = 3600;   // of one step of an image build
  uint32_t build_timeout_s = 4 * 3600;
  std::vector<std::string> denied_networks;  // IPv4, as in 10.1.0.0/16: reached by no container
  bool deny_private = false;
  uint64_t queued_inputs = 8'000'000;  // unfinished inputs of all, and the bytes of their arguments
  uint64_t queued_bytes = uint64_t{32} << 30;
  uint64_t list_stopped_s = 3600;                // how long stopped apps are listed
  uint64_t app_log_bytes = uint64_t{256} << 20;  // kept of one app's log, and of all
  uint64_t log_bytes = uint64_t{4} << 30;
  uint32_t log_age_s = 30 * 86'400;  // seconds: a log's line, and what nobody refers to any more
  uint32_t keep_files_s = 86'400, keep_images_s = 14 * 86'400, keep_apps_s = 30 * 86'400;
  std::string user = "lydian";  // control's
  bool check_runtime =
      true;  // whether this machine can run containers; tests of the supervisor alone don't ask
};

struct Wiring {
  std::function<int(const UpOptions&)> up;
  std::function<int(const std::string& state)> down;
  std::function<int(int argc, char** argv)> internal;  // from the role on
};

int RunCommandLine(int argc, char** argv, const Wiring& wiring);

}  // namespace lydian::cli
