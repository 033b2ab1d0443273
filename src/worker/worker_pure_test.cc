// Exit texts, environments, HTTP heads.
#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/fd.h"
#include "base/ids.h"
#include "worker/exit_text.h"
#include "worker/guest_http.h"
#include "worker/task_job.h"

namespace lydian::worker {
namespace {

ExitEvent Ended(int status, bool oom = false, uint64_t peak = 0, uint64_t limit = 0) {
  ExitEvent event;
  event.set_status(status);
  event.set_oom_killed(oom);
  event.set_memory_peak_bytes(peak);
  event.set_memory_limit_bytes(limit);
  return event;
}

TEST(ExitText, SaysHow) {
  EXPECT_EQ(DescribeExit(Ended(3 << 8), false).text(), "exit code 3");
  EXPECT_EQ(DescribeExit(Ended(SIGKILL), false).text(), "killed by signal 9 (SIGKILL)");
  EXPECT_EQ(DescribeExit(Ended(SIGSEGV | 0x80), false).text(), "killed by signal 11 (SIGSEGV)");
  const TaskExit oom = DescribeExit(Ended(SIGKILL, true, (256 << 20) - 4096, 256 << 20), false);
  EXPECT_TRUE(oom.oom());
  EXPECT_EQ(oom.text(), "out of memory: used 256 MiB of 256 MiB");
  EXPECT_EQ(DescribeExit(Ended(137 << 8, true, 256 << 20, 256 << 20), false).text(),
            "out of memory: used 256 MiB of 256 MiB");
  EXPECT_EQ(DescribeExit(Ended(SIGKILL, true, uint64_t{16} << 30, uint64_t{22} << 30), false).text(),
            "out of memory: used 16 GiB, within its limit of 22 GiB, when the machine had no more memory for "
            "containers");
  EXPECT_EQ(DescribeExit(Ended(SIGKILL, true, uint64_t{3} << 30, 0), false).text(),
            "out of memory: used 3 GiB, more than the machine had left for containers");
  // A child was killed; the main process went on and ended by itself.
  EXPECT_FALSE(DescribeExit(Ended(1 << 8, true, 1, 256 << 20), false).oom());
  EXPECT_EQ(DescribeExit(Ended(0, true, 1, 256 << 20), false).text(), "exit code 0");
  EXPECT_FALSE(DescribeExit(Ended(SIGKILL, true, 1, 256 << 20), true).oom());
}

TaskSpec Spec() {
  TaskSpec spec;
  spec.set_task_id("ta-1");
  spec.set_environment_name("main");
  spec.mutable_image()->set_image_id("im-1");
  spec.mutable_image()->mutable_config()->add_env("PATH=/opt/bin:/usr/bin");
  spec.mutable_image()->mutable_config()->add_env("PYTHONPATH=/app");
  spec.mutable_image()->mutable_config()->add_env("COLOR=image");
  (*spec.mutable_env())["COLOR"] = "secret";
  (*spec.mutable_env())["TOKEN"] = "x=y\nz";
  return spec;
}

TEST(TaskJob, EnvironmentComesInOrder) {
  TaskSpec spec = Spec();
  (*spec.mutable_env())["MODAL_TASK_ID"] = "ta-forged";
  const EnvMap env = TaskEnv(spec);
  EXPECT_EQ(env.at("COLOR"), "secret");
  EXPECT_EQ(env.at("TOKEN"), "x=y\nz");
  EXPECT_EQ(env.at("PATH"), "/opt/bin:/usr/bin");
  EXPECT_EQ(env.at("PYTHONPATH"), "/root:/pkg:/app");
  EXPECT_EQ(env.at("MODAL_TASK_ID"), "ta-1");
  EXPECT_EQ(env.at("MODAL_SERVER_URL"), "unix://localhost/run/modal.sock");
  EXPECT_EQ(env.at("MODAL_DISABLE_API_PROXY"), "1");
  EXPECT_EQ(env.at("LANG"), "C.UTF-8");
  EXPECT_FALSE(env.contains("OMP_NUM_THREADS"));
  spec.mutable_limits()->set_milli_cpu_request(1500);
  EXPECT_EQ(TaskEnv(spec).at("OMP_NUM_THREADS"), "2");
}

TEST(TaskJob, NothingOfTheTaskBeforeTheIdentity) {
  const TaskJob made = MakeTaskJob(Spec(), {"ct-1", {"/l/1", "/l/2"}, "/t/arguments.bin", "python"});
  ASSERT_FALSE(made.plain);
  for (const std::string& entry : made.job.process().env()) {
    EXPECT_EQ(entry.find("secret"), std::string::npos);
    EXPECT_EQ(entry.find("ta-1"), std::string::npos);
  }
  EXPECT_TRUE(made.job.process().control_fd());
  EXPECT_EQ(made.job.process().argv(0), "python");
  EXPECT_EQ(made.job.process().argv(3), kLauncherPath);
  ASSERT_GT(made.identity.size(), 4u);
  const auto identity = nlohmann::json::parse(made.identity.substr(4));
  EXPECT_EQ(identity["env"]["COLOR"], "secret");
  EXPECT_EQ(identity["cwd"], "/root");
  EXPECT_EQ(OwnerTaskId(made.job.owner_data()), "ta-1");
}

TEST(TaskJob, WhatForcesThePlainStart) {
  TaskSpec spec = Spec();
  EXPECT_FALSE(NeedsPlainStart(spec));
  for (const char* name : {"LD_PRELOAD", "PYTHONHASHSEED", "MODAL_LOGLEVEL", "PATH", "LC_ALL"}) {
    TaskSpec with = spec;
    (*with.mutable_env())[name] = "1";
    EXPECT_TRUE(NeedsPlainStart(with)) << name;
  }
  spec.mutable_image()->mutable_config()->add_entrypoint("/entry.sh");
  const TaskJob made = MakeTaskJob(spec, {"ct-1", {}, "/t/arguments.bin", "python3"});
  EXPECT_TRUE(made.plain);
  EXPECT_TRUE(made.identity.empty());
  EXPECT_FALSE(made.job.process().control_fd());
  EXPECT_EQ(made.job.process().argv(0), "/entry.sh");
  EXPECT_EQ(made.job.process().argv(1), "python3");
  EXPECT_EQ(made.job.process().argv(5), "modal._container_entrypoint");
}

TEST(TaskJob, FindsPythonOnTheImagesPath) {
  const ImageSpec image = Spec().image();
  std::set<std::string> files = {"/usr/bin/python3", "/opt/python"};
  auto has = [&](const std::string& path) { return files.contains(path); };
  EXPECT_EQ(FindPython(image, has), "python3");
  files.insert("/opt/bin/python");
  EXPECT_EQ(FindPython(image, has), "python");
}

TEST(HttpHead, OneRequestIsPassedOn) {
  const std::string text =
      "PUT /blob/bl-1?sig=x HTTP/1.1\r\nHost: 169.254.77.1\r\nContent-Length: 5\r\nConnection: "
      "keep-alive\r\n\r\nhello";
  Result<HttpHead> head = ParseHttpHead(text);
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->method, "PUT");
  EXPECT_EQ(head->target, "/blob/bl-1?sig=x");
  EXPECT_EQ(head->content_length, 5u);
  EXPECT_EQ(text.substr(head->bytes), "hello");
  EXPECT_EQ(head->forwarded,
            "PUT /blob/bl-1?sig=x HTTP/1.1\r\nhost: 169.254.77.1\r\ncontent-length: 5\r\nconnection: "
            "close\r\n\r\n");
  EXPECT_EQ(ParseHttpHead("GET / HTTP/1.1\r\nHost: x\r\n")->bytes, 0u);
}

TEST(HttpHead, WhatSmugglesIsRefused) {
  for (const char* text : {"GET /\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "GET / HTTP/2.0\r\n\r\n",
                           "GET / HTTP/1.1\r\nA : b\r\n\r\n", "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
                           "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                           "PUT / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                           "PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                           "PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                           "GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", "\r\n\r\n"}) {
    EXPECT_FALSE(ParseHttpHead(text).ok()) << text;
  }
  EXPECT_EQ(ParseHttpHead(std::string(40'000, 'a')).status().code(), Code::kResourceExhausted);
}

}  // namespace
}  // namespace lydian::worker
