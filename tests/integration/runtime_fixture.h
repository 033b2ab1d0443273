// What the runtime's integration tests share: a Runtime of an instance of its own, a root file system, and
// short ways to run a command in a container. Skips loudly where the machine can't run containers.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/runtime.h"

namespace lydian::runtime {

struct Outcome {
  int status = -1;  // as from waitpid
  std::string out, err;
  MemoryUse memory;
};

class RuntimeTest : public ::testing::Test {
 public:
  static std::string state_dir();

 protected:
  void SetUp() override;
  void TearDown() override;

  // A root file system with a shell, coreutils and python3: LYDIAN_TEST_ROOTFS, or made once with mmdebstrap.
  static const std::string& Rootfs();
  RuntimeOptions Options() const;

  Job NewJob(const std::vector<std::string>& argv) const;
  Job Shell(const std::string& script) const { return NewJob({"/bin/sh", "-c", script}); }
  // Starts it, fails the test if that fails.
  std::unique_ptr<Container> Start(const Job& job);
  // Reads stdout and stderr to their end, waits for the process.
  Outcome Finish(Process* process);
  Outcome Run(const Job& job);

  std::unique_ptr<Runtime> runtime_;
};

// How many there are of what a container could leave behind.
struct Census {
  size_t fds, mounts, cgroups, links, loops, processes;
  bool operator==(const Census&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Census& census);
Census Count(const std::string& instance);
// Network namespaces and loop devices are taken down by kernel threads: waits, within reason, until none of
// the instance is left and, with `expected`, until all is as it was.
// `runtime` is given time to reap its helpers meanwhile.
Census Settle(const std::string& instance, const Census* expected = nullptr, Runtime* runtime = nullptr);

}  // namespace lydian::runtime
