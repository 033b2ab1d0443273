// Containers that take more than their share of what the machine has once, and images made to slip past the
// masks.
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <set>

#include "os/process.h"
#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Takes inotify instances until there are no more (x86-64's and arm64's number of inotify_init1), says how
// many, and keeps them.
const std::vector<std::string> kTakeAll = {"perl", "-e",
                                           "my $call = `uname -m` =~ /x86/ ? 294 : 26; my $n = 0; $n++ while "
                                           "syscall($call, 0) >= 0; $| = 1; print \"$n\\n\"; "
                                           "sleep 1000 if $n > 1;"};

// How many inotify instances this process, the host's root, may still have.
int InotifyLeft() {
  std::vector<UniqueFd> taken;
  while (true) {
    UniqueFd fd(::inotify_init1(IN_CLOEXEC));
    if (!fd.valid()) return static_cast<int>(taken.size());
    taken.push_back(std::move(fd));
  }
}

TEST_F(RuntimeTest, UsingUpInotifyHurtsNobodyElse) {
  const int before = InotifyLeft();
  auto greedy = Start(NewJob(kTakeAll));
  ASSERT_NE(greedy, nullptr);
  char text[16] = {};
  ASSERT_GT(::read(greedy->main.fds["stdout"].get(), text, sizeof text - 1), 0);
  EXPECT_GT(std::atoi(text), 8);
  EXPECT_GE(InotifyLeft(), before - 4) << "a container took " << text << " of the host's";
  auto other = Start(NewJob(kTakeAll));
  ASSERT_NE(other, nullptr);
  char others[16] = {};
  ASSERT_GT(::read(other->main.fds["stdout"].get(), others, sizeof others - 1), 0);
  EXPECT_EQ(std::atoi(others), std::atoi(text));
  EXPECT_TRUE(runtime_->Remove(std::move(other)).ok());
  EXPECT_TRUE(runtime_->Remove(std::move(greedy)).ok());
}

TEST_F(RuntimeTest, ContainersTogetherLeaveTheMachineProcesses) {
  uint64_t most = std::min(std::strtoull(ReadFile("/proc/sys/kernel/pid_max")->c_str(), nullptr, 10),
                           std::strtoull(ReadFile("/proc/sys/kernel/threads-max")->c_str(), nullptr, 10));
  std::string limit = "none";
  for (const char* root : {"/sys/fs/cgroup/pids/", "/sys/fs/cgroup/"}) {
    auto text = ReadFile(root + ("lydian-" + Options().instance + "/pids.max"), 64);
    if (text.ok()) limit = *text;
  }
  EXPECT_GT(std::atoll(limit.c_str()), 0) << limit;
  EXPECT_LE(std::strtoull(limit.c_str(), nullptr, 10), most * 3 / 4);
}

TEST_F(RuntimeTest, NobodyButTheGatewayIsANeighbour) {
  Job job = NewJob({"python3", "-c",
                    "import socket\n"
                    "own = socket.gethostbyname(socket.gethostname()).split('.')\n"
                    "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
                    "for i in range(500):\n"
                    "  try: s.sendto(b'x', ('.'.join(own[:2] + [str(i % 250), str(2 + i // 2 % 250)]), 9))\n"
                    "  except OSError: pass\n"
                    "print(len(open('/proc/net/arp').readlines()) - 1)\n"});
  job.mutable_network()->set_mode(Network::NAT);
  Outcome outcome = Run(job);
  EXPECT_EQ(outcome.out, "1\n") << outcome.err;
}

TEST_F(RuntimeTest, MachineWideAccountsStayTheMachines) {
  // io_setup of x86-64 and arm64.
  Outcome outcome = Run(NewJob({"perl", "-e",
                                "my $ctx = pack('Q', 0); my $call = `uname -m` =~ /x86/ ? 206 : 0; "
                                "print syscall($call, 65536, $ctx), ' ', $!"}));
  EXPECT_EQ(outcome.out, "-1 Function not implemented") << outcome.err;
  outcome = Run(NewJob({"python3", "-c",
                        "import os\n"
                        "held = []\n"
                        "try:\n"
                        "  while len(held) < 2000: held.append(os.openpty())\n"
                        "except OSError: pass\n"
                        "print(len(held))\n"}));
  EXPECT_EQ(outcome.out, "256\n") << outcome.err;
}

TEST_F(RuntimeTest, NoCoreEverReachesTheHost) {
  // A limit of 0 stops files, but not a program behind the host's core_pattern; 1 stops both. Nobody inside
  // may change it back.
  Outcome outcome =
      Run(Shell("cd /tmp; ulimit -c 0 && ulimit -n 100 && grep -hE 'core|open files' /proc/self/limits "
                "/proc/1/limits | tr -s ' ';"
                "sh -c 'kill -ABRT $$' 2>&1; ls -A"));
  EXPECT_THAT(outcome.out, HasSubstr("Max core file size 1 1 bytes \nMax open files 100 100 files \n"
                                     "Max core file size 1 1 bytes \n"))
      << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("Aborted"), Not(HasSubstr("core dumped")), Not(HasSubstr("core\n"))));
}

TEST_F(RuntimeTest, SocketsOfFewFamiliesOnly) {
  Outcome outcome =
      Run(NewJob({"python3", "-c",
                  "import socket, errno\n"
                  "def tried(f, *a):\n"
                  "  try: f(*a); return 'ok'\n"
                  "  except OSError as e: return errno.errorcode[e.errno]\n"
                  "pair = lambda family: tried(socket.socketpair, family, socket.SOCK_STREAM)\n"
                  "print([pair(f) for f in (1, 2, 10, 16, 17, 30, 40)])\n"
                  "print(tried(socket.socket, 17, socket.SOCK_RAW))\n"
                  "print([p for p in range(40) if tried(socket.socket, 16, socket.SOCK_RAW, p) == 'ok'])\n"
                  "print(set(tried(socket.socket, 16, socket.SOCK_RAW, p) for p in range(40)) - {'ok'})\n"
                  "print([tried(socket.socket, f, socket.SOCK_STREAM) for f in (1, 2, 10)])\n"}));
  EXPECT_EQ(outcome.out,
            "['ok', 'EAFNOSUPPORT', 'EAFNOSUPPORT', 'EAFNOSUPPORT', 'EAFNOSUPPORT', 'EAFNOSUPPORT', "
            "'EAFNOSUPPORT']\nEAFNOSUPPORT\n[0, 15, 16]\n{'EPROTONOSUPPORT'}\n['ok', 'ok', 'ok']\n")
      << outcome.err;
}

TEST_F(RuntimeTest, AnImageWithALinkForAKernelFolderDoesNotStart) {
  const std::string image = state_dir() + "/hostile-image";
  for (const char* name : {"proc", "sys", "dev"}) {
    ASSERT_TRUE(RemoveTree(image).ok());
    ASSERT_TRUE(MakeDirs(image + "/real").ok());
    // By way of /dev, which is covered when the masks are put on.
    const std::string middle = std::string(name) == "dev" ? "/q" : "/dev/q";
    if (middle == "/dev/q") {
      ASSERT_TRUE(MakeDirs(image + "/dev").ok());
    }
    ASSERT_EQ(::symlink(middle.c_str(), (image + "/" + name).c_str()), 0);
    ASSERT_EQ(::symlink("/real", (image + middle).c_str()), 0);
    Job job = NewJob({"/bin/cat", "/real/kcore"});
    job.mutable_rootfs()->set_lowers(0, image);
    StepError error;
    auto started = runtime_->Start(job, {}, &error);
    EXPECT_FALSE(started.ok()) << name;
    if (started.ok()) {
      (void)runtime_->Remove(std::move(*started));
      continue;
    }
    EXPECT_EQ(error.step, "mount");
    EXPECT_THAT(started.status().message(), HasSubstr(std::string("/") + name + " is a symbolic link"));
  }
  EXPECT_TRUE(RemoveTree(image).ok());
}

TEST_F(RuntimeTest, AStartWaitsForNobodysProcessorTime) {
  // Containers with a hundredth of a processor, all of it in use.
  std::vector<std::unique_ptr<Container>> slow;
  for (int i = 0; i < 6; ++i) {
    Job job = Shell("while :; do :; done");
    job.mutable_limits()->set_milli_cpu(10);
    auto begin = std::chrono::steady_clock::now();
    slow.push_back(Start(job));
    ASSERT_NE(slow.back(), nullptr);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(400));
  }
  lydian::Process process;
  for (const char* word : {"/bin/echo", "in"}) process.add_argv(word);
  for (auto& container : slow) {
    auto begin = std::chrono::steady_clock::now();
    StepError error;
    auto exec = runtime_->Exec(*container, process, {}, &error);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(2000));
    EXPECT_TRUE(exec.ok()) << exec.status();
  }
  for (auto& container : slow) {
    auto begin = std::chrono::steady_clock::now();
    EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(1000));
  }
}

TEST_F(RuntimeTest, KeepsTheCpuCeilingAfterTheStart) {
  Job job = Shell("cat /proc/self/cgroup; sleep 0.1; exec sleep 100");
  job.mutable_limits()->set_milli_cpu(250);
  auto container = Start(job);
  ASSERT_NE(container, nullptr);
  const std::string group = "lydian-" + Options().instance + "/" + job.container_id();
  auto v1 = ReadFile("/sys/fs/cgroup/cpu/" + group + "/cpu.cfs_quota_us", 64);
  auto v2 = ReadFile("/sys/fs/cgroup/" + group + "/cpu.max", 64);
  ASSERT_TRUE(v1.ok() || v2.ok());
  EXPECT_THAT(v1.ok() ? *v1 : *v2, HasSubstr("25000"));
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

TEST_F(RuntimeTest, RefusesADiskThatNoDiskHolds) {
  Job job = Shell("true");
  job.mutable_rootfs()->set_quota_bytes(uint64_t{15} << 40);
  StepError error;
  auto begin = std::chrono::steady_clock::now();
  auto started = runtime_->Start(job, {}, &error);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(500));
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(error.step, "disk");
  EXPECT_THAT(started.status().message(), HasSubstr("a disk of 15360 GiB"));
}

// Two processes that nobody can end, since they are frozen, until Thaw.
class Frozen {
 public:
  explicit Frozen(const Container& container) {
    if (!MakeDirs(kGroup).ok() || !Exists(std::string(kGroup) + "/freezer.state")) return;
    for (int pid : {container.init_pid, container.main.pid})
      (void)WriteExisting(std::string(kGroup) + "/cgroup.procs", std::to_string(pid));
    ok_ = WriteExisting(std::string(kGroup) + "/freezer.state", "FROZEN").ok();
  }
  ~Frozen() {
    Thaw();
    ::rmdir(kGroup);
  }
  void Thaw() { (void)WriteExisting(std::string(kGroup) + "/freezer.state", "THAWED"); }
  bool ok() const { return ok_; }

 private:
  static constexpr char kGroup[] = "/sys/fs/cgroup/freezer/lydian-test-frozen";
  bool ok_ = false;
};

TEST_F(RuntimeTest, IdsAndAddressOfWhatDoesNotEndStayTaken) {
  runtime_.reset();
  RuntimeOptions options = Options();
  options.address_range = "10.197.45.0/28";  // few, so that one that is free comes up again
  options.network_pool = options.quota_pool = 0;
  auto runtime = Runtime::Create(options);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  auto start = [&](const std::string& script) {
    auto started = (*runtime)->Start(Shell(script), {}, nullptr);
    EXPECT_TRUE(started.ok()) << started.status();
    return started.ok() ? std::move(*started) : nullptr;
  };
  auto stuck = start("exec sleep 1000");
  ASSERT_NE(stuck, nullptr);
  const std::string ip = stuck->ip;
  UniqueFd main = *Duplicate(stuck->main.pidfd.get()), init = *Duplicate(stuck->init_pidfd.get());
  Frozen frozen(*stuck);
  if (!frozen.ok()) GTEST_SKIP() << "SKIPPED: no freezer of version 1";
  auto begin = std::chrono::steady_clock::now();
  Status removed = (*runtime)->Remove(std::move(stuck));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_EQ(removed.code(), Code::kDeadlineExceeded) << removed;
  auto comes_up_again = [&] {
    bool again = false;
    for (int i = 0; i < 16; ++i) {
      auto other = start("true");
      if (other == nullptr) return true;
      again |= other->ip == ip;
      EXPECT_TRUE((*runtime)->Remove(std::move(other)).ok());
    }
    return again;
  };
  EXPECT_FALSE(comes_up_again());
  frozen.Thaw();
  // Process 1 goes when its children are reaped, which the runtime does.
  EXPECT_TRUE(os::PidfdEnded(main.get(), 10'000));
  (*runtime)->Refill();
  EXPECT_TRUE(os::PidfdEnded(init.get(), 10'000));
  (*runtime)->Refill();
  EXPECT_TRUE(comes_up_again());
  EXPECT_EQ(Settle(options.instance).cgroups, 0u);
}

}  // namespace
}  // namespace lydian::runtime
