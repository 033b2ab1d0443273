// The spawner with the real runtime: containers outlive their worker's connection, and end with the spawner.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <future>

#include "base/fd.h"
#include "base/log.h"
#include "os/nftables.h"
#include "runtime/runtime.h"
#include "spawner/client.h"
#include "spawner/server.h"

namespace lydian::spawner {
namespace {

const std::string init_path = LYDIAN_INIT_PATH;  // of the build

class SpawnerRuntimeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: it makes containers";
    char folder[] = "/tmp/lydian-spawner-itest-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    Start();
  }

  void TearDown() override {
    if (folder_.empty()) return;
    client_.reset();
    if (server_ != 0) {
      ::kill(server_, SIGTERM);
      int status = -1;
      ASSERT_EQ(::waitpid(server_, &status, 0), server_);
      EXPECT_EQ(status, 0) << ReadFile(folder_ + "/log").value_or("");
    }
    EXPECT_TRUE(RemoveTree(folder_).ok());
  }

  void Start() {
    std::string path = folder_ + "/s.sock";
    UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    ::unlink(path.c_str());
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener.get(), 8), 0);
    server_ = ::fork();
    if (server_ == 0) ::_exit(Serve(std::move(listener)));
    Connect();
  }

  int Serve(UniqueFd listener) {
    if (!InitLogging({.role = "spawner", .path = folder_ + "/log"}).ok()) return 1;
    runtime::RuntimeOptions options;
    options.state_dir = folder_;
    options.instance = "lyspwnit";
    options.init_path = init_path;
    options.address_range = "10.74.0.0/16";
    auto runtime = runtime::Runtime::Create(options);
    if (!runtime.ok()) {
      LOG_ERROR("no runtime", {{"error", runtime.status()}});
      return 2;
    }
    if (!(*runtime)->CleanLeftovers().ok()) return 3;
    ServerOptions server_options;
    server_options.listener = std::move(listener);
    server_options.instance = options.instance;
    auto server = Server::Create(std::move(server_options), std::move(*runtime));
    if (!server.ok() || !(*server)->Run().ok()) return 4;
    server->reset();
    return 0;
  }

  void Connect() {
    exit_ = std::promise<ExitEvent>();
    ClientEvents events;
    events.on_exit = [this](const ExitEvent& exit) { exit_.set_value(exit); };
    auto client = Client::Connect(folder_ + "/s.sock", std::move(events));
    ASSERT_TRUE(client.ok()) << client.status() << ReadFile(folder_ + "/log").value_or("");
    client_ = std::move(*client);
  }

  Result<Container> Create(const std::string& id, const std::string& script) {
    Job job;
    job.set_version(1);
    job.set_container_id(id);
    job.mutable_rootfs()->set_existing_root("/");
    job.set_api_socket(true);
    job.set_http_listener(true);
    job.set_owner_data("whose");
    for (const std::string& arg : {std::string("/bin/sh"), std::string("-c"), script})
      job.mutable_process()->add_argv(arg);
    job.mutable_process()->add_env("PATH=/usr/bin:/bin");
    job.mutable_process()->set_cwd("/root");
    std::promise<Result<Container>> promise;
    client_->Create(job, [&](Result<Container> result) { promise.set_value(std::move(result)); });
    return promise.get_future().get();
  }

  template <typename Call>
  Status Wait(Call call) {
    std::promise<Status> promise;
    call([&](Status status) { promise.set_value(std::move(status)); });
    return promise.get_future().get();
  }

  static std::string ReadToEnd(int fd) {
    std::string out;
    char buffer[256];
    ssize_t n;
    while ((n = ::read(fd, buffer, sizeof buffer)) > 0) out.append(buffer, static_cast<size_t>(n));
    return out;
  }

  std::string folder_;
  pid_t server_ = 0;
  std::unique_ptr<Client> client_;
  std::promise<ExitEvent> exit_;
};

TEST_F(SpawnerRuntimeTest, RunsRemovesAndRunsAgain) {
  for (int round = 0; round < 3; ++round) {
    exit_ = std::promise<ExitEvent>();
    // What it leaves running ends with it, and so do its pipes.
    auto made = Create("ct-1", "sleep 1000 & echo pid $$; exit 3");
    ASSERT_TRUE(made.ok()) << made.status();
    for (const char* name :
         {"pidfd", "init_pidfd", "stdout", "stderr", "api_listener", "http_listener", "netns"}) {
      EXPECT_TRUE(made->fds.contains(name)) << name;
    }
    EXPECT_EQ(ReadToEnd(made->fds["stdout"].get()), "pid 2\n");
    ExitEvent exit = exit_.get_future().get();
    EXPECT_EQ(WEXITSTATUS(exit.status()), 3);
    EXPECT_FALSE(exit.oom_killed());
    EXPECT_TRUE(Wait([&](auto done) { client_->Remove("ct-1", done); }).ok());
  }
}

TEST_F(SpawnerRuntimeTest, AContainerOutlivesTheConnection) {
  ASSERT_TRUE(Create("ct-1", "read line < /dev/null; sleep 0.3; echo later; exit 5").ok());
  client_.reset();
  Connect();
  std::promise<Result<Container>> promise;
  client_->Attach("ct-1", [&](Result<Container> result) { promise.set_value(std::move(result)); });
  auto attached = promise.get_future().get();
  ASSERT_TRUE(attached.ok()) << attached.status();
  EXPECT_EQ(attached->info.job().owner_data(), "whose");
  EXPECT_FALSE(attached->info.exited());
  EXPECT_EQ(ReadToEnd(attached->fds["stdout"].get()), "later\n");
  EXPECT_EQ(WEXITSTATUS(exit_.get_future().get().status()), 5);
}

TEST_F(SpawnerRuntimeTest, ContainersEndWithAKilledSpawnerAndItsSuccessorCleansUp) {
  auto made = Create("ct-1", "exec sleep 1000");
  ASSERT_TRUE(made.ok()) << made.status();
  ::kill(server_, SIGKILL);
  ::waitpid(server_, nullptr, 0);
  pollfd wait{made->fds["init_pidfd"].get(), POLLIN, 0};
  EXPECT_EQ(::poll(&wait, 1, 10'000), 1);
  Start();
  made = Create("ct-1", "exit 0");
  EXPECT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(exit_.get_future().get().status(), 0);
}

TEST_F(SpawnerRuntimeTest, AFlushedTableIsBackWithinASecond) {
  ASSERT_TRUE(Create("ct-1", "exec sleep 1000").ok());
  auto nft = os::Nftables::Open();
  ASSERT_TRUE(nft.ok()) << nft.status();
  auto watch = os::TableWatch::Open();
  ASSERT_TRUE(watch.ok()) << watch.status();
  // Ours alone: the machine's other tables are not the test's.
  ASSERT_TRUE(nft->Run("delete table inet lyspwnit").ok());
  auto until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  bool back = false;
  while (!back && std::chrono::steady_clock::now() < until) {
    pollfd event{watch->fd(), POLLIN, 0};
    ::poll(&event, 1, 1000);
    (void)watch->Changed("lyspwnit");
    back = nft->Run("list chain inet lyspwnit forward").ok();
  }
  EXPECT_TRUE(back) << ReadFile(folder_ + "/log").value_or("");
}

}  // namespace
}  // namespace lydian::spawner
