#include "runtime_fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>

#include "os/cgroup.h"
#include "os/process.h"

namespace lydian::runtime {
namespace {

constexpr char kInstance[] = "lytest1";

size_t Entries(const std::string& path, const std::string& prefix = "") {
  size_t count = 0;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return 0;
  while (struct dirent* entry = ::readdir(dir)) {
    std::string name = entry->d_name;
    if (name != "." && name != ".." && name.starts_with(prefix)) ++count;
  }
  ::closedir(dir);
  return count;
}

size_t Lines(const std::string& path) {
  std::ifstream in(path);
  return static_cast<size_t>(std::count(std::istreambuf_iterator<char>(in), {}, '\n'));
}

// Processes whose parent is this one.
size_t Children() {
  std::ifstream in("/proc/self/task/" + std::to_string(::getpid()) + "/children");
  size_t count = 0;
  for (std::string pid; in >> pid;) ++count;
  return count;
}

}  // namespace

std::string RuntimeTest::state_dir() {
  const char* set = std::getenv("LYDIAN_TEST_STATE");
  return set != nullptr ? set : "/var/tmp/lydian-runtime-test";
}

const std::string& RuntimeTest::Rootfs() {
  static const std::string path = [] {
    if (const char* set = std::getenv("LYDIAN_TEST_ROOTFS")) return std::string(set);
    std::string dir = state_dir() + "/rootfs";
    if (Exists(dir + "/bin/sh")) return dir;
    if (os::FindProgram("mmdebstrap").empty()) return std::string();
    std::cerr << "making a root file system in " << dir << ", a minute\n";
    std::string temporary = dir + ".new";
    (void)RemoveTree(temporary);
    (void)MakeDirs(state_dir());
    auto made = os::RunProgram(
        {"mmdebstrap", "--variant=minbase", "--include=python3-minimal", "bookworm", temporary});
    if (!made.ok() || made->status != 0) {
      std::cerr << (made.ok() ? made->output : made.status().ToString()) << "\n";
      return std::string();
    }
    return ::rename(temporary.c_str(), dir.c_str()) == 0 ? dir : std::string();
  }();
  return path;
}

RuntimeOptions RuntimeTest::Options() const {
  RuntimeOptions options;
  options.state_dir = state_dir() + "/state";
  options.instance = kInstance;
  options.init_path = LYDIAN_INIT;
  options.address_range = "";
  options.disk_reserve_bytes = 64 << 20;
  return options;
}

void RuntimeTest::SetUp() {
  if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: containers need root";
  if (auto cgroups = os::DescribeCgroups(); !cgroups.ok()) GTEST_SKIP() << "SKIPPED: " << cgroups.status();
  if (Rootfs().empty()) GTEST_SKIP() << "SKIPPED: no root file system: mmdebstrap is not here or failed";
  auto runtime = Runtime::Create(Options());
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  runtime_ = std::move(*runtime);
  Status cleaned = runtime_->CleanLeftovers();
  ASSERT_TRUE(cleaned.ok()) << cleaned;
}

void RuntimeTest::TearDown() { runtime_.reset(); }

Job RuntimeTest::NewJob(const std::vector<std::string>& argv) const {
  static int next = 0;
  Job job;
  job.set_version(1);
  job.set_container_id("ct-test" + std::to_string(++next));
  job.mutable_rootfs()->add_lowers(Rootfs());
  for (const auto& word : argv) job.mutable_process()->add_argv(word);
  job.mutable_process()->add_env("PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
  job.mutable_process()->add_env("LC_ALL=C.UTF-8");
  job.set_hostname("box");
  return job;
}

std::unique_ptr<Container> RuntimeTest::Start(const Job& job) {
  StepError error;
  auto started = runtime_->Start(job, {}, &error);
  EXPECT_TRUE(started.ok()) << error.step << ": " << started.status();
  return started.ok() ? std::move(*started) : nullptr;
}

Outcome RuntimeTest::Finish(Process* process) {
  Outcome outcome;
  struct pollfd fds[2] = {{process->fds["stdout"].get(), POLLIN, 0},
                          {process->fds["stderr"].get(), POLLIN, 0}};
  std::string* texts[2] = {&outcome.out, &outcome.err};
  while (fds[0].fd >= 0 || fds[1].fd >= 0) {
    if (::poll(fds, 2, 60'000) <= 0) break;
    for (int i = 0; i < 2; ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      char buffer[4096];
      ssize_t n = ::read(fds[i].fd, buffer, sizeof buffer);
      if (n <= 0) {
        fds[i].fd = -1;
      } else {
        texts[i]->append(buffer, static_cast<size_t>(n));
      }
    }
  }
  auto status = os::WaitPidfd(process->pidfd.get(), 60'000);
  EXPECT_TRUE(status.ok()) << status.status();
  outcome.status = status.ok() ? *status : -1;
  return outcome;
}

Outcome RuntimeTest::Run(const Job& job) {
  auto container = Start(job);
  if (container == nullptr) return {};
  Outcome outcome = Finish(&container->main);
  outcome.memory = runtime_->Memory(*container);
  Status removed = runtime_->Remove(std::move(container));
  EXPECT_TRUE(removed.ok()) << removed;
  return outcome;
}

std::ostream& operator<<(std::ostream& out, const Census& c) {
  return out << "{fds " << c.fds << ", mounts " << c.mounts << ", cgroups " << c.cgroups << ", links "
             << c.links << ", loops " << c.loops << ", children " << c.processes << "}";
}

Census Count(const std::string& instance) {
  size_t cgroups = 0;
  for (const char* root :
       {"/sys/fs/cgroup/memory/", "/sys/fs/cgroup/cpu/", "/sys/fs/cgroup/pids/", "/sys/fs/cgroup/"}) {
    cgroups += Entries(root + ("lydian-" + instance), "ct-");
  }
  size_t loops = 0;
  for (int i = 0; i < 256; ++i) {
    auto backing = ReadFile("/sys/block/loop" + std::to_string(i) + "/loop/backing_file", 4096);
    if (backing.ok() && backing->starts_with(RuntimeTest::state_dir())) ++loops;
  }
  return {Entries("/proc/self/fd"),
          Lines("/proc/self/mountinfo"),
          cgroups,
          Entries("/sys/class/net", instance + "v"),
          loops,
          Children()};
}

Census Settle(const std::string& instance, const Census* expected, Runtime* runtime) {
  Census now = Count(instance);
  for (int i = 0; i < 100; ++i) {
    if (expected != nullptr ? now == *expected : now.links + now.loops + now.cgroups + now.processes == 0)
      break;
    ::poll(nullptr, 0, 100);
    if (runtime != nullptr) runtime->DrainPools();
    now = Count(instance);
  }
  return now;
}

}  // namespace lydian::runtime

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  int failed = RUN_ALL_TESTS();
  const auto& unit = *::testing::UnitTest::GetInstance();
  if (failed == 0 && unit.skipped_test_count() == unit.test_to_run_count()) return 77;
  return failed;
}
