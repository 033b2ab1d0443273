// A spawner that is killed: its containers end with it, and its successor finds and removes what they left.
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <iostream>

#include "os/process.h"
#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

using ::testing::HasSubstr;

bool Alive(pid_t pid) {
  auto stat = ReadFile("/proc/" + std::to_string(pid) + "/stat", 4096);
  return stat.ok() && stat->find(") Z") == std::string::npos;
}

bool EndsSoon(pid_t pid) {
  for (int i = 0; i < 100 && Alive(pid); ++i) ::poll(nullptr, 0, 50);
  return !Alive(pid);
}

TEST_F(RuntimeTest, AKilledSpawnerTakesItsContainersAlong) {
  runtime_.reset();
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  pid_t spawner = ::fork();
  if (spawner == 0) {
    auto runtime = Runtime::Create(Options());
    if (!runtime.ok()) ::_exit(1);
    while ((*runtime)->Refill()) {
    }
    Job job = Shell("sleep 1000 & exec sleep 1000");
    auto container = (*runtime)->Start(job, {}, nullptr);
    if (!container.ok()) ::_exit(2);
    lydian::Process process;
    process.add_argv("sleep");
    process.add_argv("1000");
    process.add_env("PATH=/bin");
    auto exec = (*runtime)->Exec(**container, process, {}, nullptr);
    if (!exec.ok()) ::_exit(3);
    int pids[3] = {(*container)->init_pid, (*container)->main.pid, exec->pid};
    if (::write(pipe[1], pids, sizeof pids) != sizeof pids) ::_exit(4);
    while (true) ::pause();
  }
  ::close(pipe[1]);
  int pids[3];
  ASSERT_EQ(::read(pipe[0], pids, sizeof pids), static_cast<ssize_t>(sizeof pids));
  ::close(pipe[0]);
  for (int pid : pids) EXPECT_TRUE(Alive(pid));
  ASSERT_EQ(::kill(spawner, SIGKILL), 0);
  ASSERT_EQ(::waitpid(spawner, nullptr, 0), spawner);
  for (int pid : pids) EXPECT_TRUE(EndsSoon(pid));

  const std::string instance = Options().instance;
  EXPECT_GT(Count(instance).cgroups, 0u);
  auto successor = Runtime::Create(Options());
  ASSERT_TRUE(successor.ok()) << successor.status();
  Status cleaned = (*successor)->CleanLeftovers();
  EXPECT_TRUE(cleaned.ok()) << cleaned;
  Census after = Settle(instance);
  EXPECT_EQ(after.cgroups + after.links + after.loops, 0u) << after;
  runtime_ = std::move(*successor);
  EXPECT_EQ(Run(Shell("echo again")).out, "again\n");
}

TEST_F(RuntimeTest, RemovingTheInstanceLeavesNothingOfIt) {
  const std::string instance = Options().instance;
  Run(Shell("true"));
  EXPECT_TRUE(Exists("/sys/class/net/" + instance));
  runtime_.reset();
  EXPECT_FALSE(Exists("/sys/class/net/" + instance));
  Status removed = RemoveInstance(Options());
  EXPECT_TRUE(removed.ok()) << removed;
  for (const char* dir :
       {"/sys/fs/cgroup/", "/sys/fs/cgroup/memory/", "/sys/fs/cgroup/pids/", "/sys/fs/cgroup/cpu/"}) {
    EXPECT_FALSE(Exists(std::string(dir) + "lydian-" + instance));
  }
}

TEST_F(RuntimeTest, TheProbeFindsWhatContainersNeed) {
  runtime_.reset();
  Census before = Settle(Options().instance);
  RuntimeOptions options = Options();
  bool required = true;
  for (const auto& feature : ProbeFeatures(options)) {
    EXPECT_FALSE(feature.name.empty() || feature.what_for.empty() || feature.found.empty());
    if (feature.required && !feature.ok) {
      ADD_FAILURE() << feature.name << ": " << feature.found;
      required = false;
    }
    std::cout << (feature.ok         ? "ok      "
                  : feature.required ? "MISSING "
                                     : "without ")
              << feature.name << ": " << feature.found << "\n";
  }
  EXPECT_TRUE(required);
  EXPECT_EQ(Settle(Options().instance, &before), before);

  // A range that the host has a route for.
  auto routes = os::RunProgram({"sh", "-c", "ip -4 route show | grep -oE '^[0-9.]+/[0-9]+' | head -1"});
  if (!routes.ok() || routes->output.empty()) return;
  options.address_range = routes->output.substr(0, routes->output.find('/')) + "/24";
  auto refused = Runtime::Create(options);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.status().message(), HasSubstr("is taken by the route"));
}

TEST_F(RuntimeTest, TwoInstancesDoNotMeet) {
  RuntimeOptions options = Options();
  options.instance = "lytest2";
  options.state_dir += "2";
  auto second = Runtime::Create(options);
  ASSERT_TRUE(second.ok()) << second.status();
  auto server = Start(NewJob(
      {"python3", "-c",
       "import socket\ns = socket.socket(); s.bind(('0.0.0.0', 8000)); s.listen(); print('up', flush=True)\n"
       "while True: s.accept()"}));
  ASSERT_NE(server, nullptr);
  char up[8];
  ASSERT_GT(::read(server->main.fds["stdout"].get(), up, sizeof up), 0);
  Job job = NewJob({"python3", "-c",
                    "import socket\ntry:\n  socket.create_connection(('" + server->ip +
                        "', 8000), 1.5); print('reached')\n"
                        "except OSError: print('apart')"});
  auto other = (*second)->Start(job, {}, nullptr);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE((*other)->ip.substr(0, (*other)->ip.find('.', 3)), server->ip.substr(0, server->ip.find('.', 3)));
  EXPECT_EQ(Finish(&(*other)->main).out, "apart\n");
  EXPECT_TRUE((*second)->Remove(std::move(*other)).ok());
  EXPECT_TRUE(runtime_->Remove(std::move(server)).ok());
}

}  // namespace
}  // namespace lydian::runtime
