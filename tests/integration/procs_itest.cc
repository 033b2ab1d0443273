// `lydian up` with daemons that are this very program: a second up, a killed daemon, a killed up and its
// successor, a daemon that can't start.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <thread>

#include "base/fd.h"
#include "base/log.h"
#include "bin/daemons.h"
#include "bin/supervisor.h"
#include "bin/up.h"
#include "cli/lock_file.h"
#include "os/cgroup.h"
#include "runtime/plan.h"

namespace lydian::bin {
namespace {

// A daemon that answers each connection to its socket "api" with its pid and uid, until it is stopped.
int FakeDaemon(int argc, char** argv) {
  std::string role = argv[0], state;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string(argv[i]) == "--state") state = argv[i + 1];
  }
  if (role == "worker" && Exists(state + "/fail")) {
    std::fprintf(stderr, "the worker was told to fail\n");
    return 9;
  }
  auto fds = cli::ParseFds(std::getenv("LYDIAN_FDS"));
  if (!fds.ok()) return 1;
  int ready = (*fds)["ready"];
  fds->erase("ready");
  auto lock = cli::LockFile::Take(state + "/" + role + ".lock", {.fds = cli::FormatFds(*fds)});
  if (!lock.ok()) {
    std::fprintf(stderr, "%s\n", lock.status().ToString().c_str());
    return 1;
  }
  if (::write(ready, "x", 1) != 1) return 1;
  ::close(ready);
  while (true) {
    pollfd wait{role == "control" ? (*fds)["api"] : -1, POLLIN, 0};
    ::poll(&wait, 1, -1);
    UniqueFd socket(::accept(wait.fd, nullptr, nullptr));
    if (socket.valid())
      (void)WriteAll(socket.get(), std::to_string(::getpid()) + " " + std::to_string(::getuid()));
  }
}

std::string Answer(int port) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  timeval limit{10, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return std::strerror(errno);
  char text[64];
  ssize_t n = ::read(socket.get(), text, sizeof text);
  return n <= 0 ? "nothing" : std::string(text, static_cast<size_t>(n));
}

class ProcsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: up drops rights and makes a mount namespace";
    char folder[] = "/tmp/lydian-procs-itest-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    paths_.root = folder_ + "/state";
  }

  void TearDown() override {
    if (folder_.empty()) return;
    // Held before they are killed: a process leaves its lock before it leaves its control group.
    std::vector<UniqueFd> ending;
    for (const char* role : {"up", "control", "worker", "spawner"}) {
      int pid = Pid(role);
      if (pid == 0) continue;
      ending.push_back(Hold(pid));
      ::kill(pid, SIGKILL);
    }
    for (const UniqueFd& process : ending) WaitGone(process);
    for (pid_t child : children_) ::waitpid(child, nullptr, 0);
    // Of an `up` that was killed.
    auto memory = os::MemoryGroup::Open(runtime::DaemonGroup(cli::InstanceName(paths_.root)), 0);
    ASSERT_TRUE(memory.ok()) << memory.status();
    Status removed = memory->Remove();
    EXPECT_TRUE(removed.ok()) << removed;
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  int Pid(const std::string& role) {
    auto holder = cli::ReadHolder(paths_.lock(role));
    return holder.ok() && *holder ? (*holder)->pid : 0;
  }

  // Starts `up`; returns its output's read end, and its pid.
  std::pair<UniqueFd, pid_t> StartUp(const std::string& listen, const std::string& mode = "") {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = ::fork();
    if (pid == 0) {
      ::dup2(ends[1], 1);
      ::dup2(ends[1], 2);
      ::execl("/proc/self/exe", "lydian", "up", paths_.root.c_str(), listen.c_str(), mode.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(ends[1]);
    children_.push_back(pid);
    return {UniqueFd(ends[0]), pid};
  }

  // Reads until `text` has come or the end.
  static std::string ReadUntil(int fd, const std::string& text) {
    std::string got;
    char buffer[512];
    pollfd wait{fd, POLLIN, 0};
    while (got.find(text) == std::string::npos && ::poll(&wait, 1, 20'000) == 1) {
      ssize_t n = ::read(fd, buffer, sizeof buffer);
      if (n <= 0) break;
      got.append(buffer, static_cast<size_t>(n));
    }
    return got;
  }

  static UniqueFd Hold(int pid) { return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

  static void WaitGone(const UniqueFd& process) {
    pollfd wait{process.get(), POLLIN, 0};
    if (process.valid()) {
      EXPECT_EQ(::poll(&wait, 1, 20'000), 1);
    }
  }
  static void WaitGone(int pid) {
    if (pid != 0) WaitGone(Hold(pid));
  }

  int Port() {
    auto holder = cli::ReadHolder(paths_.lock("up"));
    if (!holder.ok() || !*holder) return 0;
    return std::atoi((*holder)->listen.substr((*holder)->listen.rfind(':') + 1).c_str());
  }

  std::string folder_;
  cli::StatePaths paths_;
  std::vector<pid_t> children_;
};

TEST_F(ProcsTest, StartsThreeAndStopsThemAndASecondUpSaysWhoRuns) {
  auto [out, up] = StartUp("127.0.0.1:0");
  std::string text = ReadUntil(out.get(), "stop ");
  ASSERT_NE(text.find("Lydian is up."), std::string::npos) << text;
  int control = Pid("control");
  std::string answer = Answer(Port());
  EXPECT_EQ(answer.substr(0, answer.find(' ')), std::to_string(control));
  EXPECT_NE(answer.substr(answer.find(' ') + 1), "0") << "control is not root";
  EXPECT_EQ(ReadFile(paths_.instance()).value_or(""), cli::InstanceName(paths_.root) + "\n");
  // A session of its own, and nothing of ours beside its sockets.
  EXPECT_EQ(::getsid(control), control);
  // Nothing of another user's takes its lock.
  struct stat lock {};
  ASSERT_EQ(::stat(paths_.lock("up").c_str(), &lock), 0);
  EXPECT_EQ(lock.st_mode & 0777, 0600u);

  auto [out2, up2] = StartUp("127.0.0.1:0");
  text = ReadUntil(out2.get(), "\n");
  EXPECT_NE(text.find("already up: pid " + std::to_string(up)), std::string::npos) << text;
  EXPECT_NE(text.find("listening on 127.0.0.1:" + std::to_string(Port())), std::string::npos) << text;

  std::vector<int> pids{control, Pid("worker"), Pid("spawner")};
  ::kill(up, SIGINT);
  int status = -1;
  ASSERT_EQ(::waitpid(up, &status, 0), up);
  EXPECT_EQ(status, 0);
  for (int pid : pids) EXPECT_EQ(cli::ProcessStartTime(pid), 0u) << pid << " still runs";
  EXPECT_FALSE(Exists(paths_.spawner_socket()));
}

TEST_F(ProcsTest, HasMemoryOfItsOwn) {
  auto [out, up] = StartUp("127.0.0.1:0");
  ReadUntil(out.get(), "stop ");
  const std::string group = "/" + runtime::DaemonGroup(cli::InstanceName(paths_.root)) + "\n";
  for (int pid : {static_cast<int>(up), Pid("control"), Pid("worker"), Pid("spawner")}) {
    auto groups = ReadFile("/proc/" + std::to_string(pid) + "/cgroup");
    ASSERT_TRUE(groups.ok()) << groups.status();
    EXPECT_NE(groups->find(group), std::string::npos) << *groups;
  }
  const std::string name = group.substr(1, group.size() - 2);
  uint64_t limit = 0;
  for (const std::string& file : {"/sys/fs/cgroup/memory/" + name + "/memory.limit_in_bytes",
                                  "/sys/fs/cgroup/" + name + "/memory.max"}) {
    if (auto text = ReadFile(file, 64); text.ok()) limit = std::strtoull(text->c_str(), nullptr, 10);
  }
  EXPECT_EQ(limit, runtime::DaemonMemory(0, runtime::TotalMemory()));
  ::kill(up, SIGINT);
  ASSERT_EQ(::waitpid(up, nullptr, 0), up);
  EXPECT_FALSE(Exists("/sys/fs/cgroup/memory/" + name));
  EXPECT_FALSE(Exists("/sys/fs/cgroup/" + name));
}

TEST_F(ProcsTest, AKilledDaemonIsRestartedBehindTheSameSockets) {
  auto [out, up] = StartUp("127.0.0.1:0");
  ReadUntil(out.get(), "stop ");
  for (int round = 0; round < 5; ++round) {
    int before = Pid("control");
    ASSERT_NE(before, 0);
    ::kill(before, SIGKILL);
    auto started = std::chrono::steady_clock::now();
    std::string answer = Answer(Port());  // is never refused
    EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(2));
    EXPECT_NE(answer.substr(0, answer.find(' ')), std::to_string(before));
    EXPECT_NE(answer.find(' '), std::string::npos) << answer;
  }
  EXPECT_NE(ReadUntil(out.get(), "restarting").find("killed by signal 9"), std::string::npos);
}

TEST_F(ProcsTest, ANewUpAdoptsWhatAKilledOneLeft) {
  auto [out, up] = StartUp("127.0.0.1:0");
  ReadUntil(out.get(), "stop ");
  int port = Port(), control = Pid("control"), worker = Pid("worker"), spawner = Pid("spawner");
  ::kill(up, SIGKILL);
  ::waitpid(up, nullptr, 0);
  EXPECT_NE(Answer(port).find(std::to_string(control)), std::string::npos) << "they go on without it";
  // One more dies while nobody watches.
  ::kill(worker, SIGKILL);
  WaitGone(worker);

  auto [out2, up2] = StartUp("127.0.0.1:1");  // a port that can't be had: what runs has its own
  std::string text = ReadUntil(out2.get(), "stop ");
  ASSERT_NE(text.find("Lydian is up."), std::string::npos) << text << ReadFile(paths_.log("up")).value_or("");
  EXPECT_EQ(Port(), port);
  EXPECT_EQ(Pid("control"), control);
  EXPECT_EQ(Pid("spawner"), spawner);
  EXPECT_NE(Pid("worker"), worker);
  EXPECT_NE(Pid("worker"), 0);

  // It watches the adopted, and holds their sockets.
  ::kill(control, SIGKILL);
  std::string answer = Answer(port);
  EXPECT_NE(answer.substr(0, answer.find(' ')), std::to_string(control));
  EXPECT_NE(answer.find(' '), std::string::npos) << answer;
  ::kill(up2, SIGTERM);
  int status = -1;
  ASSERT_EQ(::waitpid(up2, &status, 0), up2);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(Pid("spawner"), 0);
}

TEST_F(ProcsTest, ANewUpThatFindsAllOfThemIsReadyAtOnce) {
  auto [out, up] = StartUp("127.0.0.1:0");
  ReadUntil(out.get(), "stop ");
  ::kill(up, SIGKILL);
  ::waitpid(up, nullptr, 0);
  auto [out2, up2] = StartUp("127.0.0.1:0", "background");
  EXPECT_NE(ReadUntil(out2.get(), "lydian down").find("Lydian is up."), std::string::npos);
  EXPECT_EQ(RunDown(paths_.root), 0);
  EXPECT_EQ(Pid("control"), 0);
}

TEST_F(ProcsTest, TheApiSocketLivesOnInTheSpawnerWhenUpAndControlDie) {
  auto [out, up] = StartUp("127.0.0.1:0");
  ReadUntil(out.get(), "stop ");
  int port = Port(), control = Pid("control");
  ::kill(up, SIGKILL);
  ::kill(control, SIGKILL);
  ::waitpid(up, nullptr, 0);
  WaitGone(control);
  std::string answer;
  std::thread client([&] { answer = Answer(port); });  // waits in the socket's backlog
  auto [out2, up2] = StartUp("127.0.0.1:1");
  ReadUntil(out2.get(), "stop ");
  client.join();
  EXPECT_NE(answer.find(' '), std::string::npos) << answer;
  EXPECT_EQ(Port(), port);
}

TEST_F(ProcsTest, DownStopsWhatAKilledUpLeft) {
  auto [out, up] = StartUp("127.0.0.1:0");
  ReadUntil(out.get(), "stop ");
  ::kill(up, SIGKILL);
  ::waitpid(up, nullptr, 0);
  EXPECT_EQ(RunDown(paths_.root), 0);
  for (const char* role : {"control", "worker", "spawner"}) EXPECT_EQ(Pid(role), 0) << role;
}

TEST_F(ProcsTest, ADaemonThatCannotStartIsToldWithItsLog) {
  ASSERT_TRUE(MakeDirs(paths_.worker_dir()).ok());
  ASSERT_TRUE(WriteFileAtomic(paths_.worker_dir() + "/fail", "").ok());
  auto [out, up] = StartUp("127.0.0.1:0");
  std::string text = ReadUntil(out.get(), "told to fail\n");
  EXPECT_NE(text.find("worker does not start"), std::string::npos) << text;
  int status = 0;
  ASSERT_EQ(::waitpid(up, &status, 0), up);
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_EQ(Pid("control"), 0);
}

TEST_F(ProcsTest, InTheBackgroundItReturnsWhenAllServe) {
  auto [out, launcher] = StartUp("127.0.0.1:0", "background");
  std::string text = ReadUntil(out.get(), "lydian down");
  EXPECT_NE(text.find("Lydian is up."), std::string::npos) << text;
  int status = -1;
  ASSERT_EQ(::waitpid(launcher, &status, 0), launcher);
  EXPECT_EQ(status, 0);
  int up = Pid("up");
  ASSERT_NE(up, 0);
  EXPECT_EQ(::getsid(up), up);
  EXPECT_EQ(RunDown(paths_.root), 0);
  EXPECT_EQ(Pid("up"), 0);
}

TEST_F(ProcsTest, ABusyPortNamesWhoHoldsIt) {
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(socket.get(), 1), 0);
  ASSERT_EQ(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  std::string port = std::to_string(ntohs(address.sin_port));
  auto [out, up] = StartUp("127.0.0.1:" + port);
  std::string text = ReadUntil(out.get(), "\n");
  EXPECT_NE(text.find("port " + port + " is in use by process " + std::to_string(::getpid())),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace lydian::bin

int main(int argc, char** argv) {
  if (argc > 2 && std::strcmp(argv[1], "internal") == 0) return lydian::bin::FakeDaemon(argc - 2, argv + 2);
  if (argc > 3 && std::strcmp(argv[1], "up") == 0) {
    lydian::bin::UpOptions options;
    options.state = argv[2];
    options.listen = argv[3];
    options.detach = argc > 4 && std::strcmp(argv[4], "background") == 0;
    options.check_runtime = false;
    return lydian::bin::RunUp(options);
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
