// What a container must not be able to do, and what it must.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sstream>

#include "os/process.h"
#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A TCP socket that listens on `address`; its port.
UniqueFd Listen(const char* address, int* port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  ::inet_pton(AF_INET, address, &name.sin_addr);
  socklen_t size = sizeof name;
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  EXPECT_EQ(::listen(fd.get(), 8), 0);
  ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &size);
  *port = ntohs(name.sin_port);
  return fd;
}

// Python that prints "reached" or the error of connecting to host:port.
std::string Connect(const std::string& host, int port) {
  return "import socket\ntry:\n  socket.create_connection((\"" + host + "\", " + std::to_string(port) +
         "), 1.5); print(\"reached\")\nexcept OSError as e: print(\"not reached:\", e)\n";
}

TEST_F(RuntimeTest, RootInsideIsNobodyOutside) {
  auto container = Start(Shell("cat /proc/self/uid_map; id -u; exec sleep 100"));
  ASSERT_NE(container, nullptr);
  auto status = ReadFile("/proc/" + std::to_string(container->main.pid) + "/status");
  ASSERT_TRUE(status.ok());
  unsigned uid = 0;
  ASSERT_EQ(std::sscanf(status->c_str() + status->find("Uid:"), "Uid: %u", &uid), 1);
  EXPECT_GE(uid, 0x70000000u);
  // Another container has another range.
  auto other = Start(Shell("exec sleep 100"));
  ASSERT_NE(other, nullptr);
  auto other_status = ReadFile("/proc/" + std::to_string(other->main.pid) + "/status");
  unsigned other_uid = 0;
  ASSERT_EQ(std::sscanf(other_status->c_str() + other_status->find("Uid:"), "Uid: %u", &other_uid), 1);
  EXPECT_NE(uid, other_uid);
  EXPECT_EQ(uid % 65536, 0u);
  EXPECT_TRUE(runtime_->KillAll(*container).ok());
  EXPECT_THAT(Finish(&container->main).out, HasSubstr("65536\n0\n"));
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
  EXPECT_TRUE(runtime_->Remove(std::move(other)).ok());
}

TEST_F(RuntimeTest, HasNamespacesOfItsOwn) {
  auto container = Start(Shell("exec sleep 100"));
  ASSERT_NE(container, nullptr);
  for (const char* name : {"user", "pid", "mnt", "ipc", "uts", "net", "cgroup", "time"}) {
    char host[64] = {}, init[64] = {}, main[64] = {};
    ASSERT_GT(::readlink((std::string("/proc/self/ns/") + name).c_str(), host, sizeof host - 1), 0);
    ASSERT_GT(::readlink(("/proc/" + std::to_string(container->init_pid) + "/ns/" + name).c_str(), init,
                         sizeof init - 1),
              0);
    ASSERT_GT(::readlink(("/proc/" + std::to_string(container->main.pid) + "/ns/" + name).c_str(), main,
                         sizeof main - 1),
              0);
    EXPECT_STRNE(host, main) << name;
    EXPECT_STREQ(init, main) << name;
  }
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

TEST_F(RuntimeTest, SeesNothingOfTheHost) {
  Outcome outcome =
      Run(Shell("ls -d /proc/[0-9]* | wc -l; hostname; ls / ; wc -l < /proc/mounts; ls /sys/class/net"));
  std::istringstream lines(outcome.out);
  int processes = 0;
  std::string name;
  lines >> processes >> name;
  EXPECT_LE(processes, 5);
  EXPECT_EQ(name, "box");
  EXPECT_THAT(outcome.out, HasSubstr("eth0"));
  EXPECT_THAT(Run(Shell("cat /proc/self/mountinfo")).out, Not(HasSubstr("anchors")));
}

TEST_F(RuntimeTest, DeniesWhatReachesPastIt) {
  Outcome outcome = Run(Shell(
      "unshare -U true 2>&1; unshare -m true 2>&1; mount -t tmpfs x /mnt 2>&1; mknod /root/sda b 8 0 2>&1; "
      "echo x > /proc/sys/kernel/domainname; echo x > /sys/kernel/x; "
      "head -c1 /proc/kcore 2>&1; ls /sys/firmware | wc -l; hostname evil 2>&1; chroot / id -u"));
  EXPECT_THAT(outcome.out, HasSubstr("unshare failed: Operation not permitted"));
  EXPECT_THAT(outcome.out, HasSubstr("permission denied"));  // mount
  EXPECT_THAT(outcome.out, HasSubstr("/root/sda: Operation not permitted"));
  EXPECT_THAT(outcome.err, HasSubstr("/proc/sys/kernel/domainname: Read-only file system"));
  EXPECT_THAT(outcome.err, HasSubstr("/sys/kernel/x"));
  EXPECT_THAT(outcome.out, HasSubstr("\n0\nhostname: "));
  EXPECT_TRUE(outcome.out.ends_with("\n0\n")) << outcome.out;  // chroot may be used
}

TEST_F(RuntimeTest, NewNamespacesAreDeniedByEveryCall) {
  // Numbers of x86-64; perl is in every Debian image.
  if (std::string(LYDIAN_ARCH) != "x86_64") GTEST_SKIP() << "SKIPPED: written for x86-64";
  Outcome outcome = Run(NewJob({"perl", "-MPOSIX", "-e", R"(
my $buf = "\0" x 88;
sub try_it { my ($name, @args) = @_; my $r = syscall(shift @args, @args);
  my %names = (EPERM, "EPERM", ENOSYS, "ENOSYS", EAFNOSUPPORT, "EAFNOSUPPORT"); print "$name $r ", $names{$!+0} // $!, "\n"; }
try_it("clone", 56, 0x10000000 | 17, 0, 0, 0, 0);
try_it("unshare", 272, 0x10000000);
try_it("unshare-time", 272, 0x80);
try_it("clone3", 435, $buf, 88);
try_it("setns", 308, 3, 0);
try_it("bpf", 321, 0, 0, 0);
try_it("keyctl", 250, 0, 0, 0);
try_it("io_uring", 425, 1, 0);
try_it("open_tree", 428, -100, $buf, 1);
try_it("vsock", 41, 40, 1, 0);
)"}));
  EXPECT_EQ(outcome.out,
            "clone -1 EPERM\nunshare -1 EPERM\nunshare-time -1 EPERM\nclone3 -1 ENOSYS\nsetns -1 EPERM\nbpf "
            "-1 EPERM\n"
            "keyctl -1 EPERM\nio_uring -1 ENOSYS\nopen_tree -1 EPERM\nvsock -1 EAFNOSUPPORT\n")
      << outcome.err;
}

TEST_F(RuntimeTest, HasOnlyAFewRights) {
  Outcome outcome =
      Run(Shell("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; grep CapEff /proc/1/status"));
  EXPECT_EQ(outcome.out,
            "CapInh:\t0000000000000000\nCapPrm:\t00000000800405fb\nCapEff:\t00000000800405fb\nCapBnd:"
            "\t00000000800405fb\n"
            "CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nCapEff:\t0000000000000000\n");
}

TEST_F(RuntimeTest, ReachesNeitherHostNorOtherContainers) {
  int loopback_port = 0, any_port = 0;
  UniqueFd loopback = Listen("127.0.0.1", &loopback_port), any = Listen("0.0.0.0", &any_port);
  Job server = NewJob(
      {"python3", "-c",
       "import socket\ns = socket.socket(); s.bind(('0.0.0.0', 8000)); s.listen(); print('up', flush=True)\n"
       "while True: s.accept()"});
  auto other = Start(server);
  ASSERT_NE(other, nullptr);
  char up[8];
  ASSERT_GT(::read(other->main.fds["stdout"].get(), up, sizeof up), 0);

  auto routes = os::RunProgram({"ip", "-4", "-o", "addr", "show", "scope", "global"});
  ASSERT_TRUE(routes.ok());
  std::string script = Connect("127.0.0.1", loopback_port) + Connect(other->ip, 8000);
  std::istringstream words(routes->output);
  int addresses = 0;
  for (std::string word; words >> word;) {
    if (word != "inet") continue;
    words >> word;
    script += Connect(word.substr(0, word.find('/')), any_port);
    ++addresses;
  }
  script += Connect("169.254.77.53", any_port) + Connect("169.254.169.254", 80);
  EXPECT_GE(addresses, 1);
  Outcome outcome = Run(NewJob({"python3", "-c", script}));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\nreached"))) << outcome.out;
  EXPECT_FALSE(outcome.out.starts_with("reached")) << outcome.out;
  EXPECT_TRUE(runtime_->Remove(std::move(other)).ok());
}

TEST_F(RuntimeTest, AFlushedFirewallIsMadeAgain) {
  auto flushed = os::RunProgram({"nft", "delete", "table", "inet", Options().instance});
  if (!flushed.ok() || flushed->status != 0) GTEST_SKIP() << "SKIPPED: no nft to flush it with";
  runtime_->DrainPools();
  int port = 0;
  UniqueFd listener = Listen("0.0.0.0", &port);
  Job job =
      NewJob({"python3", "-c",
              "import socket\n"
              "gateway = [l.split()[2] for l in open('/proc/net/route') if l.split()[1] == '00000000'][0]\n"
              "host = '.'.join(str(int(gateway[i:i + 2], 16)) for i in (6, 4, 2, 0))\n"
              "try:\n  socket.create_connection((host, " +
                  std::to_string(port) + "), 1.5); print('reached', host)\nexcept OSError: print('apart')"});
  Outcome outcome = Run(job);
  EXPECT_EQ(outcome.out, "apart\n") << outcome.err;
}

TEST_F(RuntimeTest, ReachesTheNetworkThroughNat) {
  // A server on the host's own outer address is a local address and thus refused; so a real one outside is
  // needed.
  auto probe = os::RunProgram({"sh", "-c",
                               "for host in $(grep -rhoE 'https?://[^/ ]+' /etc/apt/sources.list "
                               "/etc/apt/sources.list.d 2>/dev/null | sed 's#.*//##' | sort -u); "
                               "do getent ahostsv4 $host && break; done | head -1 | cut -d' ' -f1"});
  std::string address = probe.ok() ? probe->output.substr(0, probe->output.find('\n')) : "";
  if (address.empty()) GTEST_SKIP() << "SKIPPED: the host has no network: no host of its packages resolves";
  auto direct = os::RunProgram({"python3", "-c", Connect(address, 80)});
  if (!direct.ok() || direct->output.find("not reached") != std::string::npos) {
    GTEST_SKIP() << "SKIPPED: the host has no network: " << address << ":80 can't be reached";
  }
  EXPECT_EQ(Run(NewJob({"python3", "-c", Connect(address, 80)})).out, "reached\n");
  Job alone = NewJob({"python3", "-c", Connect(address, 80)});
  alone.mutable_network()->set_mode(Network::NONE);
  EXPECT_THAT(Run(alone).out, HasSubstr("not reached"));
}

TEST_F(RuntimeTest, SocketsInsideAreServedFromOutside) {
  Job job =
      NewJob({"python3", "-c",
              "import socket\n"
              "a = socket.socket(socket.AF_UNIX); a.connect('/run/modal.sock'); print(a.recv(9).decode())\n"
              "b = socket.create_connection(('169.254.77.1', 80)); print(b.recv(9).decode())\n"});
  job.set_api_socket(true);
  job.set_http_listener(true);
  auto container = Start(job);
  ASSERT_NE(container, nullptr);
  for (auto [listener, text] :
       {std::pair(&container->api_listener, "api"), {&container->http_listener, "http"}}) {
    struct pollfd ready {
      listener->get(), POLLIN, 0
    };
    ASSERT_EQ(::poll(&ready, 1, 10'000), 1);
    UniqueFd peer(::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(peer.valid());
    ASSERT_TRUE(WriteAll(peer.get(), text).ok());
  }
  EXPECT_EQ(Finish(&container->main).out, "api\nhttp\n");
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

TEST_F(RuntimeTest, HasTheUsualFilesAndDevices) {
  Outcome outcome = Run(Shell(
      "cat /etc/hostname /etc/resolv.conf; grep box /etc/hosts; for d in null zero full random urandom tty "
      "ptmx shm mqueue pts fd; do "
      "test -e /dev/$d || echo missing $d; done; echo x > /dev/null; head -c 3 /dev/zero | od -An -tx1; "
      "echo to-stdout > /dev/stdout; echo to-stderr > /dev/stderr; echo s > /dev/shm/x && cat /dev/shm/x; "
      "readlink /proc/self/fd/0; "
      "test -t 0 || echo no-tty; ip=$(hostname -I 2>/dev/null); id -u; stat -c %u:%a /dev/null /etc/hosts; "
      "umask; stat -c %a /"));
  EXPECT_THAT(outcome.out, HasSubstr("box\nnameserver 169.254.77.53\n"));
  EXPECT_THAT(outcome.out, HasSubstr("\tbox\n"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("missing")));
  EXPECT_THAT(outcome.out,
              HasSubstr("00 00 00\nto-stdout\ns\n/dev/null\nno-tty\n0\n0:666\n0:644\n0022\n755\n"))
      << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("to-stderr\n"));
}

TEST_F(RuntimeTest, OrdinaryRootWorkIsPossible) {
  Outcome outcome = Run(
      Shell("set -e; touch /root/f; chown 1000:1000 /root/f; chmod 4755 /root/f; stat -c %u:%g:%a /root/f; "
            "useradd -m someone; su someone -c 'id -un; cd; echo mine > f; stat -c %U f'; "
            "setpriv --reuid=33 --regid=33 --clear-groups id -u; mkfifo /tmp/p; ln /root/f /root/g; mkdir "
            "/opt/new; "
            "mv /usr/share/doc /usr/share/doc2 && ls -d /usr/share/doc2; rm -r /usr/share/doc2; ls -d "
            "/usr/share/doc 2>&1 || true"));
  EXPECT_THAT(outcome.out, HasSubstr("1000:1000:4755\n")) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("33\n/usr/share/doc2\n")) << outcome.out << outcome.err;
}

TEST_F(RuntimeTest, RunsAsAnotherUser) {
  Job job =
      Shell("id -u; id -g; grep CapEff /proc/self/status; echo x > /dev/stdout; touch /root/x 2>&1; pwd");
  job.mutable_process()->set_uid(1000);
  job.mutable_process()->set_gid(1001);
  job.mutable_process()->set_cwd("/srv/made/for/it");
  Outcome outcome = Run(job);
  EXPECT_THAT(outcome.out, HasSubstr("1000\n1001\nCapEff:\t0000000000000000\nx\n"));
  EXPECT_THAT(outcome.out, HasSubstr("Permission denied\n/srv/made/for/it\n"));
}

TEST_F(RuntimeTest, PassesTheControlSocketAndNothingElse) {
  Job job = Shell("ls /proc/self/fd | tr '\\n' ' '; read line <&3; echo got $line");
  job.mutable_process()->set_control_fd(true);
  auto container = Start(job);
  ASSERT_NE(container, nullptr);
  ASSERT_TRUE(WriteAll(container->main.fds["control"].get(), "hello\n").ok());
  EXPECT_EQ(Finish(&container->main).out, "0 1 2 3 4 got hello\n");  // 4 is ls's own, of the folder
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
  EXPECT_EQ(Run(Shell("ls /proc/self/fd | tr '\\n' ' '")).out, "0 1 2 3 ");
}

TEST_F(RuntimeTest, ExecIsAsConfinedAsMain) {
  auto container = Start(Shell("exec sleep 100"));
  ASSERT_NE(container, nullptr);
  lydian::Process process;
  for (const char* word :
       {"sh", "-c",
        "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/self/cgroup | grep -c "
        "ct-; "
        "ls /proc/self/fd | tr '\\n' ' '; cat /proc/2/oom_score_adj /proc/self/oom_score_adj"}) {
    process.add_argv(word);
  }
  process.add_env("PATH=/usr/bin:/bin");
  auto exec = runtime_->Exec(*container, process, {}, nullptr);
  ASSERT_TRUE(exec.ok()) << exec.status();
  Outcome outcome = Finish(&*exec);
  EXPECT_EQ(outcome.out,
            "CapEff:\t00000000800405fb\nCapBnd:\t00000000800405fb\nNoNewPrivs:\t1\nSeccomp:\t2\n0\n0 1 2 3 "
            "1000\n1000\n");
  auto cgroup = ReadFile("/proc/" + std::to_string(container->main.pid) + "/cgroup");
  EXPECT_THAT(*cgroup, HasSubstr("lydian-" + Options().instance + "/" + container->job.container_id()));
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

// Names that a tenant chooses are resolved before a program begins, and whoever makes its process holds
// descriptors of everybody's files.
TEST_F(RuntimeTest, NoDescriptorOfTheHostIsAWayOut) {
  char dir[] = "/tmp/lydian-canary-XXXXXX";
  ASSERT_NE(::mkdtemp(dir), nullptr);
  ASSERT_EQ(::chmod(dir, 0755), 0);
  ASSERT_TRUE(WriteFileAtomic(std::string(dir) + "/secret", "canary", 0644).ok());
  ASSERT_TRUE(WriteFileAtomic(std::string(dir) + "/program", "#!/bin/sh\necho canary\n", 0755).ok());
  UniqueFd canary(::open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(canary.valid());
  const std::string way = "/proc/self/fd/" + std::to_string(canary.get());
  auto container = Start(Shell("ln -s " + way + " /tmp/way; echo; exec sleep 100"));
  ASSERT_NE(container, nullptr);
  char byte = 0;
  ASSERT_EQ(::read(container->main.fds["stdout"].get(), &byte, 1), 1);
  auto tried = [&](const std::string& cwd, std::vector<std::string> argv) {
    lydian::Process process;
    for (std::string& word : argv) process.add_argv(std::move(word));
    process.add_env("PATH=/usr/bin:/bin");
    process.set_cwd(cwd);
    auto exec = runtime_->Exec(*container, process, {}, nullptr);
    return exec.ok() ? Finish(&*exec).out : exec.status().message();
  };
  for (const std::string& cwd :
       {way, way + "/.", std::string("/tmp/way"), "/proc/thread-self" + way.substr(10),
        "/proc/1" + way.substr(10), std::string("/proc/self/root/proc/self/cwd")}) {
    EXPECT_THAT(tried(cwd, {"cat", "secret"}), Not(HasSubstr("canary"))) << cwd;
    EXPECT_THAT(tried(cwd, {"./program"}), Not(HasSubstr("canary"))) << cwd;
  }
  EXPECT_THAT(tried("/", {way + "/program"}), Not(HasSubstr("canary")));
  EXPECT_THAT(tried("/", {"/tmp/way/program"}), Not(HasSubstr("canary")));
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
  Job job = NewJob({"cat", "secret"});
  job.mutable_process()->set_cwd(way);
  StepError error;
  auto started = runtime_->Start(job, {}, &error);
  if (started.ok()) {
    EXPECT_EQ(Finish(&(*started)->main).out, "");
    EXPECT_TRUE(runtime_->Remove(std::move(*started)).ok());
  }
  EXPECT_TRUE(RemoveTree(dir).ok());
}

}  // namespace
}  // namespace lydian::runtime
