// Memory, processes, disk, cpu; and that a start that fails leaves nothing.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>

#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

using ::testing::HasSubstr;

TEST_F(RuntimeTest, ReportsRunningOutOfMemory) {
  Job job = NewJob({"python3", "-c", "x = bytearray(200 << 20); print(len(x))"});
  job.mutable_limits()->set_memory_bytes(64 << 20);
  Outcome outcome = Run(job);
  ASSERT_TRUE(WIFSIGNALED(outcome.status)) << outcome.status;
  EXPECT_EQ(WTERMSIG(outcome.status), SIGKILL);
  EXPECT_TRUE(outcome.memory.oom_killed);
  EXPECT_EQ(outcome.memory.limit_bytes, uint64_t{64} << 20);
  EXPECT_GE(outcome.memory.peak_bytes, uint64_t{60} << 20);

  Outcome calm = Run(Shell("true"));
  EXPECT_FALSE(calm.memory.oom_killed);
  EXPECT_GT(calm.memory.limit_bytes, uint64_t{128} << 20);
}

TEST_F(RuntimeTest, LimitsProcesses) {
  Job job = Shell("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 5 & done; echo all");
  job.mutable_limits()->set_pids(10);
  Outcome outcome = Run(job);
  EXPECT_THAT(outcome.err, HasSubstr("fork"));
  EXPECT_THAT(
      Run(Shell("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 0 & done; echo all"))
          .out,
      "all\n");
}

TEST_F(RuntimeTest, KeepsWritesToTheirQuota) {
  Job job = Shell(
      "head -c 100000000 /dev/zero > /root/big; stat -c %s /root/big; rm /root/big; echo small > /root/x && "
      "cat /root/x");
  job.mutable_rootfs()->set_quota_bytes(64 << 20);
  Outcome outcome = Run(job);
  EXPECT_THAT(outcome.err, HasSubstr("No space left on device"));
  EXPECT_THAT(outcome.out, HasSubstr("small\n"));
  EXPECT_EQ(Run(Shell("head -c 100000000 /dev/zero > /root/big && stat -c %s /root/big; df -k / | tail -1 | "
                      "{ read a size b; test $size -gt 19000000 && echo twenty; }"))
                .out,
            "100000000\ntwenty\n");
}

TEST_F(RuntimeTest, RemovingDoesNotWaitForWritesThatNobodyWants) {
  auto container = Start(Shell("head -c 700000000 /dev/zero > /root/big; echo done; exec sleep 1000"));
  ASSERT_NE(container, nullptr);
  char text[8];
  ASSERT_GT(::read(container->main.fds["stdout"].get(), text, sizeof text), 0);
  auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  EXPECT_EQ(Settle(Options().instance).loops, 0u);
}

TEST_F(RuntimeTest, LimitsCpu) {
  Job job = NewJob(
      {"python3", "-c",
       "import time\nt = time.monotonic(); c = time.process_time()\nwhile time.monotonic() - t < 2: pass\n"
       "print((time.process_time() - c) / 2)"});
  job.mutable_limits()->set_milli_cpu(200);
  Outcome outcome = Run(job);
  EXPECT_LT(std::stod(outcome.out), 0.35);
}

TEST_F(RuntimeTest, RefusesStartsBelowTheDiskReserve) {
  runtime_.reset();
  RuntimeOptions options = Options();
  options.disk_reserve_bytes = uint64_t{1} << 60;
  auto runtime = Runtime::Create(options);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  StepError error;
  auto started = (*runtime)->Start(Shell("true"), {}, &error);
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(error.step, "disk");
  EXPECT_THAT(started.status().message(), HasSubstr("No space left on device"));
  EXPECT_FALSE((*runtime)->Refill() && (*runtime)->Refill() && (*runtime)->Refill() && (*runtime)->Refill() &&
               (*runtime)->Refill() && (*runtime)->Refill() && (*runtime)->Refill() && (*runtime)->Refill() &&
               (*runtime)->Refill() && (*runtime)->Refill() && (*runtime)->Refill() && (*runtime)->Refill());
}

struct Failure {
  const char* what;
  void (*spoil)(Job*);
  const char* step;
  const char* message;
};

TEST_F(RuntimeTest, AFailedStartNamesItsStepAndLeavesNothing) {
  Run(Shell("true"));
  runtime_->DrainPools();
  const std::string instance = Options().instance;
  const Failure failures[] = {
      {"no program", [](Job* job) { job->mutable_process()->set_argv(0, "no-such-program"); }, "exec",
       "no-such-program: No such file or directory"},
      {"not executable", [](Job* job) { job->mutable_process()->set_argv(0, "/etc/passwd"); }, "exec",
       "/etc/passwd: Permission denied"},
      {"no argv", [](Job* job) { job->mutable_process()->clear_argv(); }, "job", "argv"},
      {"no layer", [](Job* job) { job->mutable_rootfs()->set_lowers(0, "/no/such/layer"); }, "overlay",
       "/no/such/layer"},
      {"a file as a layer", [](Job* job) { job->mutable_rootfs()->set_lowers(0, "/etc/passwd"); }, "overlay",
       "Not a directory"},
      {"no layers", [](Job* job) { job->clear_rootfs(); }, "job", "no layers"},
      {"no source",
       [](Job* job) {
         auto* mount = job->add_mounts();
         mount->set_kind(Mount::BIND);
         mount->set_source("/no/such/source");
         mount->set_target("/mnt");
       },
       "bind", "/no/such/source"},
      {"a target through a file",
       [](Job* job) {
         auto* mount = job->add_mounts();
         mount->set_kind(Mount::TMPFS);
         mount->set_target("/etc/passwd/x");
       },
       "mount", "/etc/passwd/x: Not a directory"},
      {"a cwd that is a file", [](Job* job) { job->mutable_process()->set_cwd("/etc/passwd"); }, "cwd",
       "Not a directory"},
      {"a bad id", [](Job* job) { job->set_container_id("../x"); }, "job", "container id"},
      {"no device", [](Job* job) { job->add_devices()->set_path("/dev/no-such"); }, "bind", "/dev/no-such"},
      {"a quota that can't be", [](Job* job) { job->mutable_rootfs()->set_quota_bytes(uint64_t{1} << 62); },
       "disk", "GiB at most"},
      {"a later version", [](Job* job) { job->set_version(9); }, "job", "version"},
      {"too long a command", [](Job* job) { job->mutable_process()->add_argv(std::string(20 << 20, 'x')); },
       "exec", "Argument list too long"},
  };
  Census before = Settle(instance, nullptr, runtime_.get());
  for (const auto& failure : failures) {
    Job job = Shell("true");
    job.set_api_socket(true);
    failure.spoil(&job);
    StepError error;
    auto started = runtime_->Start(job, {}, &error);
    ASSERT_FALSE(started.ok()) << failure.what;
    EXPECT_EQ(error.step, failure.step) << failure.what << ": " << started.status();
    EXPECT_THAT(started.status().message(), HasSubstr(failure.message)) << failure.what;
  }
  Census after = Settle(instance, &before, runtime_.get());
  EXPECT_EQ(after, before);
  EXPECT_EQ(Run(Shell("echo fine")).out, "fine\n");
}

TEST_F(RuntimeTest, AFailedExecLeavesTheContainerRunning) {
  auto container = Start(Shell("exec sleep 100"));
  ASSERT_NE(container, nullptr);
  lydian::Process process;
  process.add_argv("no-such-program");
  StepError error;
  auto exec = runtime_->Exec(*container, process, {}, &error);
  ASSERT_FALSE(exec.ok());
  EXPECT_EQ(error.step, "exec");
  EXPECT_THAT(error.status.message(), HasSubstr("no-such-program: No such file or directory"));
  EXPECT_EQ(error.status.error(), ENOENT);
  EXPECT_EQ(::kill(container->main.pid, 0), 0);
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

}  // namespace
}  // namespace lydian::runtime
