#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <filesystem>
#include <set>

#include "os/caps.h"
#include "os/seccomp.h"
#include "runtime/firewalls.h"
#include "runtime/id_ranges.h"
#include "runtime/plan.h"
#include "runtime/ruleset.h"

namespace lydian::runtime {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Job GoodJob() {
  Job job;
  job.set_version(1);
  job.set_container_id("ct-1");
  job.mutable_rootfs()->add_lowers("/layers/base");
  job.mutable_process()->add_argv("python");
  return job;
}

RuntimeOptions Options() {
  RuntimeOptions options;
  options.state_dir = "/state";
  options.instance = "lyabc123";
  options.init_path = "/lib/lydian-init";
  return options;
}

TEST(PlanTest, FillsInDefaults) {
  auto plan = MakeStartPlan(GoodJob(), Options());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->hostname, "ct-1");
  EXPECT_EQ(plan->pids, 4096u);
  EXPECT_EQ(plan->quota_bytes, uint64_t{20} << 30);
  EXPECT_EQ(plan->memory_bytes, 0u);
  EXPECT_TRUE(plan->nat);
}

TEST(PlanTest, TheJobsMountsComeAfterTheUsualOnes) {
  Job job = GoodJob();
  auto* mount = job.add_mounts();
  mount->set_kind(Mount::BIND);
  mount->set_source("/data");
  mount->set_target("/mnt/data");
  mount->set_read_only(true);
  auto plan = MakeStartPlan(job, Options());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->mounts.front().target, "/proc");
  EXPECT_EQ(plan->mounts.back().target, "/mnt/data");
  EXPECT_NE(plan->mounts.back().attributes & MOUNT_ATTR_RDONLY, 0u);
  for (const auto& step : plan->mounts) EXPECT_NE(step.attributes & MOUNT_ATTR_NOSUID, 0u) << step.target;
}

TEST(PlanTest, RefusesWhatCouldReachOut) {
  const std::pair<const char*, void (*)(Job*)> bad[] = {
      {"id", [](Job* job) { job->set_container_id("../../etc"); }},
      {"id", [](Job* job) { job->set_container_id(""); }},
      {"layer", [](Job* job) { job->mutable_rootfs()->set_lowers(0, "relative"); }},
      {"layer", [](Job* job) { job->mutable_rootfs()->set_lowers(0, "/a/../b"); }},
      {"writable_dir", [](Job* job) { job->mutable_rootfs()->set_writable_dir("x"); }},
      {"cwd", [](Job* job) { job->mutable_process()->set_cwd("tmp"); }},
      {"argv", [](Job* job) { job->mutable_process()->clear_argv(); }},
      {"NUL", [](Job* job) { job->mutable_process()->add_env(std::string("A=\0B", 4)); }},
      {"65536", [](Job* job) { job->mutable_process()->set_uid(70000); }},
      {"host name", [](Job* job) { job->set_hostname("a b"); }},
      {"kind", [](Job* job) { job->add_mounts()->set_target("/x"); }},
      {"target", [](Job* job) { job->add_mounts()->set_target("/x/../../y"); }},
      {"device", [](Job* job) { job->add_devices()->set_path("/etc/passwd"); }},
      {"version", [](Job* job) { job->set_version(2); }},
  };
  for (const auto& [word, spoil] : bad) {
    Job job = GoodJob();
    spoil(&job);
    auto plan = MakeStartPlan(job, Options());
    ASSERT_FALSE(plan.ok()) << word;
    EXPECT_EQ(plan.status().code(), Code::kInvalidArgument) << plan.status();
    EXPECT_THAT(plan.status().message(), HasSubstr(word));
  }
  Job job = GoodJob();
  job.mutable_process()->set_pty(true);
  EXPECT_EQ(MakeStartPlan(job, Options()).status().code(), Code::kUnimplemented);
}

TEST(PlanTest, CanBePrinted) {
  Job job = GoodJob();
  job.set_api_socket(true);
  job.mutable_limits()->set_memory_bytes(256 << 20);
  auto plan = MakeStartPlan(job, Options());
  ASSERT_TRUE(plan.ok());
  std::string text;
  const Plan printable = DescribePlan(*plan, job, Options());
  for (const auto& step : printable.steps()) text += step.name() + ": " + step.detail() + "\n";
  for (const char* line :
       {"cgroup: lyabc123/ct-1: memory 256 MiB, cpu no ceiling, pids 4096", "overlay: /layers/base",
        "mount: proc at /proc", "sockets: listening at /run/modal.sock",
        "exec: process 2, uid 0, in /: python", "mount: masked at /proc/kcore",
        "mount: sysfs (read-only) at /sys", "mount: tmpfs mode=1777 size=268435456 at /dev/shm"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(PlanTest, SharedMemoryIsAsLargeAsWhatAContainerMayHave) {
  const auto plan = MakeStartPlan(GoodJob(), Options());  // no limit
  ASSERT_TRUE(plan.ok());
  const auto shm = std::find_if(plan->mounts.begin(), plan->mounts.end(),
                                [](const MountStep& mount) { return mount.target == "/dev/shm"; });
  ASSERT_NE(shm, plan->mounts.end());
  EXPECT_THAT(shm->options, testing::Contains("size=100%"));
}

TEST(PlanTest, LooksProgramsUpOnTheirPath) {
  lydian::Process process;
  process.add_argv("tool");
  process.add_env("PATH=/a:/b::/c");
  EXPECT_THAT(ExecCandidates(process), ElementsAre("/a/tool", "/b/tool", "./tool", "/c/tool"));
  process.set_argv(0, "./tool");
  EXPECT_THAT(ExecCandidates(process), ElementsAre("./tool"));
}

TEST(PlanTest, ReserveFollowsTheMachine) {
  EXPECT_EQ(DefaultMemoryReserve(uint64_t{64} << 30), uint64_t{4} << 30);
  EXPECT_EQ(DefaultMemoryReserve(uint64_t{16} << 30), uint64_t{2} << 30);
  EXPECT_EQ(DefaultMemoryReserve(uint64_t{1} << 30), uint64_t{256} << 20);
  // Our own processes lie within it, and leave the host some.
  EXPECT_EQ(DaemonMemory(0, uint64_t{16} << 30), uint64_t{1536} << 20);
  EXPECT_EQ(DaemonMemory(uint64_t{4} << 30, uint64_t{16} << 30), uint64_t{3} << 30);
  EXPECT_EQ(DaemonMemory(0, uint64_t{1} << 30), uint64_t{256} << 20);
}

TEST(RulesetTest, ParsesNetworks) {
  EXPECT_EQ(*ParseNetwork("10.1.2.3/8"), "10.0.0.0/8");
  EXPECT_EQ(*ParseNetwork("1.2.3.4"), "1.2.3.4/32");
  EXPECT_EQ(*ParseNetwork("1.2.3.4/0"), "0.0.0.0/0");
  for (const char* bad : {"", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/8x", "10.0.0/8", "fd00::/8",
                          "10.0.0.0/-1", "a; flush ruleset"})
    EXPECT_EQ(ParseNetwork(bad).status().code(), Code::kInvalidArgument) << bad;
}

TEST(RulesetTest, NamesWhatIsNeverReached) {
  Ruleset rules{.instance = "lyabc123", .range = "10.77.0.0/16"};
  for (const char* network : {"169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.0/24"})
    EXPECT_THAT(RulesetText(rules), HasSubstr(network));
  EXPECT_EQ(RulesetText(rules).find("192.168.0.0/16"), std::string::npos);
  rules.deny_private = true;
  rules.denied = {"8.8.8.0/24"};
  rules.build_destinations = {"10.1.2.3:3128"};
  for (const char* text : {"192.168.0.0/16", "100.64.0.0/10", "8.8.8.0/24", "elements = { 10.1.2.3 . 3128 }"})
    EXPECT_THAT(RulesetText(rules), HasSubstr(text));
}

TEST(IdRangesTest, InstancesNeverShareARange) {
  const std::string dir = ::testing::TempDir() + "/ids";
  std::filesystem::remove_all(dir);
  std::set<uint32_t> seen;
  std::vector<IdRanges> instances;
  for (const char* name : {"lya", "lyb", "lya"}) {  // the same name, too: an old spawner may still hold it
    auto ranges = IdRanges::Claim(name, dir);
    ASSERT_TRUE(ranges.ok()) << ranges.status();
    instances.push_back(std::move(*ranges));
  }
  for (auto& ranges : instances) {
    for (int i = 0; i < 100; ++i) {
      auto base = ranges.Take();
      ASSERT_TRUE(base.ok());
      EXPECT_EQ(*base % IdRanges::kSize, 0u);
      EXPECT_TRUE(seen.insert(*base).second);
    }
  }
  // What comes back is used last.
  for (auto& ranges : instances) {
    auto base = ranges.Take();
    ASSERT_TRUE(base.ok());
    ranges.Return(*base);
    auto next = ranges.Take();
    ASSERT_TRUE(next.ok());
    EXPECT_NE(*next, *base);
  }
}

TEST(IdRangesTest, LeavesAloneWhatOthersGiveAway) {
  const std::string dir = ::testing::TempDir() + "/ids-others";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  std::vector<IdRanges> instances;  // of all slots, since the slot follows from a hash of the name
  ASSERT_TRUE(
      WriteFileAtomic(dir + "/subuid", "# none\nanna:100000:65536\nben:1879113728:65537\nnonsense\n").ok());
  std::set<uint32_t> bases;
  for (int i = 0; i < 32; ++i) {
    auto ranges = IdRanges::Claim("ly", dir + "/locks", {dir + "/subuid", dir + "/missing"});
    ASSERT_TRUE(ranges.ok()) << ranges.status();
    for (auto base = ranges->Take(); base.ok(); base = ranges->Take()) bases.insert(*base);
    instances.push_back(std::move(*ranges));
  }
  EXPECT_EQ(bases.size(), 32u * 1024 - 3);
  EXPECT_FALSE(bases.contains(0x7FFE0000));
  EXPECT_TRUE(bases.contains(0x7FFF0000));
  EXPECT_FALSE(bases.contains(1879113728));          // 0x70010000
  EXPECT_FALSE(bases.contains(1879113728 + 65536));  // its first id
  EXPECT_TRUE(bases.contains(1879113728 + 2 * 65536));
  EXPECT_EQ(std::filesystem::status(dir + "/locks").permissions(), std::filesystem::perms::owner_all);
}

TEST(FirewallsTest, FindsDockersDrop) {
  const std::string ruleset =
      "table ip nat {\n\tchain POSTROUTING {\n\t\ttype nat hook postrouting priority srcnat; policy "
      "accept;\n\t}\n}\n"
      "table ip filter {\n\tchain DOCKER-USER {\n\t}\n\tchain FORWARD {\n"
      "\t\ttype filter hook forward priority filter; policy drop;\n\t\tcounter jump DOCKER-USER\n\t}\n}\n"
      "table inet lyabc123 {\n\tchain forward {\n\t\ttype filter hook forward priority filter - 5; policy "
      "drop;\n\t}\n}\n";
  auto blocks = ParseNftBlocks(ruleset, "lyabc123");
  ASSERT_EQ(blocks.size(), 1u);
  EXPECT_EQ(blocks[0].what, "table ip filter, chain FORWARD: policy drop (Docker)");
  EXPECT_THAT(blocks[0].remedy, HasSubstr("iptables -I DOCKER-USER -i lyabc123 -j ACCEPT"));
  std::string allowed = ruleset;
  allowed.insert(allowed.find("\t}\n\tchain FORWARD"), "\t\tiifname \"lyabc123\" accept\n");
  EXPECT_THAT(ParseNftBlocks(allowed, "lyabc123"), IsEmpty());
  EXPECT_THAT(ParseNftBlocks("", "lyabc123"), IsEmpty());
}

TEST(FirewallsTest, FindsUfw) {
  auto blocks = ParseIptablesBlocks("-P INPUT DROP\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N ufw-user-forward\n",
                                    "lyabc123");
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_THAT(blocks[0].remedy, HasSubstr("ufw route allow in on lyabc123"));
  EXPECT_THAT(blocks[1].remedy, HasSubstr("port 53"));
  EXPECT_THAT(ParseIptablesBlocks("-P INPUT ACCEPT\n-P FORWARD ACCEPT\n", "lyabc123"), IsEmpty());
}

TEST(SeccompTest, CompilesToASmallProgram) {
  auto filter = os::BuildSeccompFilter();
  ASSERT_TRUE(filter.ok()) << filter.status();
  EXPECT_GT(filter->size(), 100u);
  EXPECT_LT(filter->size(), 4096u);
}

TEST(CapsTest, NamesThem) {
  EXPECT_THAT(os::CapNames(1), ElementsAre("CAP_CHOWN"));
  EXPECT_EQ(os::CapNames(os::ContainerCaps()).size(), 11u);
}

}  // namespace
}  // namespace lydian::runtime
