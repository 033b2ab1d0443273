// What each command does. Each prints and returns the process's exit code (commands.h).
#pragma once

#include <google/protobuf/message.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace lydian::cli {

// "lydian: what went wrong" on stderr; kExitFailed.
int Fail(const Status& status);
// The message as JSON on stdout, with its own names and all its fields.
int PrintJson(const google::protobuf::Message& message);

int Login(const std::string& state);
int ShowStatus(const std::string& state, bool json);
int TokenCreate(const std::string& state, const std::string& workspace, const std::string& name, bool json);
int TokenList(const std::string& state, bool json);
int TokenRevoke(const std::string& state, const std::string& token_id, bool json);
int StoreDu(const std::string& state, bool json);
int StoreGc(const std::string& state, bool dry_run, bool json);
int StoreVerify(const std::string& state, bool json);  // kExitFailed when there is damage
int Doctor(const std::string& state, const std::string& address_range);
int ImageImport(const std::string& state, const std::string& name, const std::string& archive);
int ImageBase(const std::string& state, const std::string& name);
int ImageBases(const std::string& state);

struct RunOptions {
  std::string image, rootfs, workdir, network = "nat";
  uint64_t memory_bytes = 0, disk_bytes = 0;
  double cpus = 0;
  uint32_t pids = 0;
  bool client_runtime = false, timing = false, drain_pools = false;
  std::vector<std::string> env, command;
};
int DebugRun(const std::string& state, const RunOptions& options);
int DebugJob(const std::string& state, const RunOptions& options);

}  // namespace lydian::cli
