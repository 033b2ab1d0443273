// What containers reach, and that they reach nothing while the firewall's tables are flushed. All in network
// namespaces of the test's own: the runtime's "host", and a "world" with a few addresses.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>

#include "os/netlink.h"
#include "os/nftables.h"
#include "os/process.h"
#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

using ::testing::HasSubstr;

constexpr char kPublic[] = "203.0.113.9";  // of the world; the host is 203.0.113.1
constexpr char kCarrier[] = "100.64.7.7", kLan[] = "172.29.0.7", kOther[] = "198.51.100.7";
constexpr char kAzure[] = "168.63.129.16", kAlibaba[] = "100.100.100.200", kOracle[] = "192.0.0.192",
               kMetadata[] = "169.254.169.254";

UniqueFd OpenNetwork() { return UniqueFd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)); }

class NetworkTest : public RuntimeTest {
 protected:
  void SetUp() override {
    RuntimeTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    runtime_.reset();
    home_ = OpenNetwork();
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    world_ = OpenNetwork();
    Ip("link set lo up");
    for (const char* address : {kPublic, kCarrier, kLan, kOther, kAzure, kAlibaba, kOracle, kMetadata}) {
      Ip(std::string("addr add ") + address + "/32 dev lo");
      listeners_.push_back(Listen(address, 80));
    }
    listeners_.push_back(Listen(kLan, 3128));
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    host_ = OpenNetwork();
    Ip("link set lo up");
    auto netlink = os::Netlink::Open();
    ASSERT_TRUE(netlink.ok()) << netlink.status();
    ASSERT_TRUE(netlink->AddVeth("out", "in", {2, 0, 0, 0, 0, 1}, world_.get(), 1500).ok());
    Ip("addr add 203.0.113.1/24 dev out");
    Ip("link set out up");
    Enter(world_);
    Ip("addr add 203.0.113.2/24 dev in");
    Ip("link set in up");
    Enter(host_);
    Ip("route add default via 203.0.113.2");
    listeners_.push_back(Listen("0.0.0.0", 8080));
    udp_.reset(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(5353);
    ASSERT_EQ(::bind(udp_.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  }
  void TearDown() override {
    runtime_.reset();
    if (home_.valid()) Enter(home_);
  }
  void Enter(const UniqueFd& network) { ASSERT_EQ(::setns(network.get(), CLONE_NEWNET), 0); }
  static void Ip(const std::string& words) {
    auto done = os::RunProgram({"sh", "-c", "ip " + words});
    ASSERT_TRUE(done.ok() && done->status == 0) << words << ": " << (done.ok() ? done->output : "");
  }
  static UniqueFd Listen(const char* address, uint16_t port) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(port);
    ::inet_pton(AF_INET, address, &name.sin_addr);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
    EXPECT_EQ(::listen(fd.get(), 64), 0);
    return fd;
  }
  void Make(RuntimeOptions options) {
    options.address_range = "10.99.0.0/16";
    options.network_pool = 1;
    auto runtime = Runtime::Create(options);
    ASSERT_TRUE(runtime.ok()) << runtime.status();
    runtime_ = std::move(*runtime);
  }
  // A job that prints those of "address:port ..." that it reaches.
  Job Reach(const std::string& targets) const {
    return NewJob({"python3", "-c",
                   "import socket, sys\n"
                   "def reached(t):\n"
                   "  h, p = t.split(':')\n"
                   "  try: socket.create_connection((h, int(p)), 0.5); return True\n"
                   "  except OSError: return False\n"
                   "line = sys.argv[1]\n"
                   "while line:\n"
                   "  print(*[t for t in line.split() if reached(t)], flush=True)\n"
                   "  line = sys.stdin.readline()\n",
                   targets});
  }

  UniqueFd home_, world_, host_, udp_;
  std::vector<UniqueFd> listeners_;
};

TEST_F(NetworkTest, MetadataAddressesAreNeverReached) {
  Make(Options());
  Outcome outcome =
      Run(Reach("203.0.113.9:80 169.254.169.254:80 168.63.129.16:80 100.100.100.200:80 192.0.0.192:80 "
                "100.64.7.7:80 172.29.0.7:80 203.0.113.1:8080 10.99.0.1:8080 169.254.77.53:8080"));
  EXPECT_EQ(outcome.out, "203.0.113.9:80 100.64.7.7:80 172.29.0.7:80\n") << outcome.err;
}

TEST_F(NetworkTest, PrivateNetworksAreDeniedOnRequestButToBuilds) {
  RuntimeOptions options = Options();
  options.deny_private = true;
  options.denied_networks = {"198.51.100.0/24", "198.51.100.7"};
  options.build_destinations = {"172.29.0.7:3128", "203.0.113.1:8080"};
  Make(options);
  const std::string targets =
      "203.0.113.9:80 100.64.7.7:80 172.29.0.7:80 172.29.0.7:3128 198.51.100.7:80 203.0.113.1:8080";
  EXPECT_EQ(Run(Reach(targets)).out, "203.0.113.9:80\n");
  Job build = Reach(targets);
  build.mutable_network()->set_build(true);
  // What the host itself offers stays closed.
  EXPECT_EQ(Run(build).out, "203.0.113.9:80 172.29.0.7:3128\n");
  // Its address has lost the right when the next one has it.
  auto container = Start(Shell("exec sleep 100"));
  ASSERT_NE(container, nullptr);
  auto listing = os::Nftables::Open()->Run("list set inet " + options.instance + " builders");
  ASSERT_TRUE(listing.ok());
  EXPECT_THAT(*listing, ::testing::Not(HasSubstr("elements")));
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

TEST_F(NetworkTest, NothingIsReachedWhileTheTablesAreFlushed) {
  Make(Options());
  Job job = Reach("203.0.113.9:80");
  job.mutable_process()->set_stdio(lydian::Process::PIPES_WITH_STDIN);
  auto container = Start(job);
  ASSERT_NE(container, nullptr);
  auto said = [&] {
    char text[256] = {};
    EXPECT_GT(::read(container->main.fds["stdout"].get(), text, sizeof text - 1), 0);
    return std::string(text);
  };
  auto ask = [&](const std::string& targets) {
    EXPECT_TRUE(WriteAll(container->main.fds["stdin"].get(), targets + "\n").ok());
    return said();
  };
  EXPECT_EQ(said(), "203.0.113.9:80\n");
  auto nft = os::Nftables::Open();
  ASSERT_TRUE(nft.ok());
  const std::string all = "203.0.113.9:80 203.0.113.1:8080 10.99.0.1:8080 169.254.169.254:80";
  for (const char* harm : {"flush ruleset", "delete table inet lytest1",
                           "flush chain inet lytest1 prerouting", "flush set inet lytest1 denied"}) {
    SCOPED_TRACE(harm);
    pollfd event{runtime_->event_fd(), POLLIN, 0};
    runtime_->OnEvent();  // of the runtime's own changes
    ASSERT_EQ(::poll(&event, 1, 0), 0);
    ASSERT_TRUE(nft->Run(harm).ok());
    if (std::string(harm).find("set inet") == std::string::npos) {
      EXPECT_EQ(ask(all), "\n");
    }
    ASSERT_EQ(::poll(&event, 1, 1000), 1);
    runtime_->OnEvent();
    EXPECT_EQ(ask(all), "203.0.113.9:80\n");
  }
  // Nor does a datagram come in that needs no answer.
  ASSERT_TRUE(nft->Run("flush ruleset").ok());
  lydian::Process process;
  for (const char* word : {"python3", "-c",
                           "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', "
                           "('203.0.113.1', 5353))"})
    process.add_argv(word);
  process.add_env("PATH=/usr/bin");
  auto exec = runtime_->Exec(*container, process, {}, nullptr);
  ASSERT_TRUE(exec.ok()) << exec.status();
  Finish(&*exec);
  char byte;
  EXPECT_EQ(::recv(udp_.get(), &byte, 1, 0), -1);
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
  runtime_.reset();
  auto rules = os::RunProgram({"ip", "rule"});
  ASSERT_TRUE(rules.ok());
  EXPECT_THAT(rules->output, ::testing::Not(HasSubstr("prohibit")));
}

}  // namespace
}  // namespace lydian::runtime
