// The server in a process of its own over a fake runtime that starts plain processes; the client against it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <future>
#include <mutex>

#include "spawner/client.h"
#include "spawner/frames.h"
#include "spawner/server.h"

namespace lydian::runtime {
struct Container::Held {};
}  // namespace lydian::runtime

namespace lydian::spawner {
namespace {

class FakeRuntime : public runtime::Runtime {
 public:
  Result<Plan> MakePlan(const Job& job) override {
    Plan plan;
    plan.add_steps()->set_name("fake " + job.container_id());
    return plan;
  }

  Result<std::unique_ptr<runtime::Container>> Start(const Job& job, std::vector<UniqueFd> stdio,
                                                    runtime::StepError* error) override {
    if (job.hostname() == "fails") {
      error->step = "overlay";
      error->status = ErrnoStatus("mounting", ENOSPC);
      return error->status;
    }
    auto container = std::make_unique<runtime::Container>();
    container->job = job;
    container->upper = "/upper";
    Phase phase;
    phase.set_name(pools_ > 0 ? "pooled" : "unpooled");
    container->phases.push_back(phase);
    if (pools_ > 0) --pools_;
    auto started = Run(job.process(), std::move(stdio));
    if (!started.ok()) return started.status();
    container->main = std::move(*started);
    return container;
  }

  Result<runtime::Process> Exec(runtime::Container&, const lydian::Process& process,
                                std::vector<UniqueFd> stdio, runtime::StepError*) override {
    return Run(process, std::move(stdio));
  }

  Status KillAll(runtime::Container& container) override {
    ::kill(container.main.pid, SIGKILL);
    return OkStatus();
  }
  runtime::MemoryUse Memory(runtime::Container&) override { return {true, 11, 22}; }
  Status Remove(std::unique_ptr<runtime::Container>) override { return OkStatus(); }
  bool Refill() override { return ++pools_ < 2; }
  void DrainPools() override { pools_ = 0; }
  Status CleanLeftovers() override { return OkStatus(); }

 private:
  static Result<runtime::Process> Run(const lydian::Process& process, std::vector<UniqueFd> stdio) {
    int in[2], out[2];
    if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) return ErrnoStatus("making pipes");
    std::vector<char*> argv;
    for (const std::string& arg : process.argv()) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      sigset_t none;
      sigemptyset(&none);
      ::sigprocmask(SIG_SETMASK, &none, nullptr);
      ::dup2(stdio.empty() ? in[0] : stdio[0].get(), 0);
      ::dup2(stdio.empty() ? out[1] : stdio[1].get(), 1);
      ::execvp(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    runtime::Process started;
    started.pid = pid;
    started.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    started.fds["stdin"].reset(in[1]);
    started.fds["stdout"].reset(out[0]);
    return started;
  }

  int pools_ = 0;
};

// Collects what comes from callbacks.
template <typename T>
class Box {
 public:
  void Put(T value) {
    std::lock_guard lock(mutex_);
    values_.push_back(std::move(value));
    changed_.notify_all();
  }
  T Take() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(20), [&] { return !values_.empty(); })) {
      ADD_FAILURE() << "nothing came";
      std::abort();
    }
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
};

std::string ReadToEnd(int fd) {
  std::string out;
  char buffer[256];
  ssize_t n;
  while ((n = ::read(fd, buffer, sizeof buffer)) > 0) out.append(buffer, static_cast<size_t>(n));
  return out;
}

Job Shell(const std::string& id, const std::string& script) {
  Job job;
  job.set_version(1);
  job.set_container_id(id);
  for (const std::string& arg : {std::string("/bin/sh"), std::string("-c"), script})
    job.mutable_process()->add_argv(arg);
  return job;
}

class SpawnerTest : public testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/lydian-spawner-test-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    path_ = folder_ + "/s.sock";
    UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener.get(), 8), 0);
    server_ = ::fork();
    if (server_ == 0) {
      ServerOptions options;
      options.listener = std::move(listener);
      options.instance = "lytest";
      options.peer_uid = ::geteuid();
      auto server = Server::Create(std::move(options), std::make_unique<FakeRuntime>());
      ::_exit(server.ok() && (*server)->Run().ok() ? 0 : 1);
    }
  }

  void TearDown() override {
    if (server_ != 0) {
      ::kill(server_, SIGTERM);
      int status = 0;
      ASSERT_EQ(::waitpid(server_, &status, 0), server_);
      EXPECT_EQ(status, 0);
    }
    ASSERT_TRUE(RemoveTree(folder_).ok());
  }

  std::unique_ptr<Client> Connect() {
    ClientEvents events;
    events.on_exit = [this](const ExitEvent& exit) { exits_.Put(exit); };
    events.on_disconnect = [this](Status status) { disconnects_.Put(status); };
    auto client = Client::Connect(path_, std::move(events));
    EXPECT_TRUE(client.ok()) << client.status();
    return std::move(*client);
  }

  Result<Container> Create(Client& client, Job job) {
    Box<Result<Container>> box;
    client.Create(std::move(job), [&](Result<Container> result) { box.Put(std::move(result)); });
    return box.Take();
  }
  Result<Container> Attach(Client& client, const std::string& id) {
    Box<Result<Container>> box;
    client.Attach(id, [&](Result<Container> result) { box.Put(std::move(result)); });
    return box.Take();
  }
  ContainerList List(Client& client) {
    Box<Result<ContainerList>> box;
    client.List([&](Result<ContainerList> result) { box.Put(std::move(result)); });
    auto list = box.Take();
    EXPECT_TRUE(list.ok()) << list.status();
    return *list;
  }
  template <typename Call>
  Status Wait(Call call) {
    Box<Status> box;
    call([&](Status status) { box.Put(std::move(status)); });
    return box.Take();
  }

  std::string folder_, path_;
  pid_t server_ = 0;
  Box<ExitEvent> exits_;
  Box<Status> disconnects_;
};

TEST_F(SpawnerTest, RunsAContainerAndTellsItsExit) {
  auto client = Connect();
  EXPECT_EQ(client->pid(), server_);
  auto made = Create(*client, Shell("ct-1", "echo out; exit 3"));
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->info.upper(), "/upper");
  ASSERT_TRUE(made->fds.contains("stdout"));
  ASSERT_TRUE(made->fds.contains("pidfd"));
  EXPECT_EQ(ReadToEnd(made->fds["stdout"].get()), "out\n");
  ExitEvent exit = exits_.Take();
  EXPECT_EQ(exit.container_id(), "ct-1");
  EXPECT_EQ(WEXITSTATUS(exit.status()), 3);
  EXPECT_TRUE(exit.oom_killed());
  EXPECT_EQ(exit.memory_limit_bytes(), 22u);
  EXPECT_TRUE(Wait([&](auto done) { client->Remove("ct-1", done); }).ok());
  EXPECT_EQ(Wait([&](auto done) { client->Remove("ct-1", done); }).code(), Code::kNotFound);
  EXPECT_EQ(List(*client).containers_size(), 0);
}

TEST_F(SpawnerTest, AFailedStepIsNamed) {
  auto client = Connect();
  Job job = Shell("ct-1", "true");
  job.set_hostname("fails");
  auto made = Create(*client, job);
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().error(), ENOSPC);
  EXPECT_EQ(made.status().code(), Code::kResourceExhausted);
  EXPECT_NE(made.status().message().find("overlay"), std::string::npos);
  EXPECT_EQ(Create(*client, Shell("../x", "true")).status().code(), Code::kInvalidArgument);
}

TEST_F(SpawnerTest, AnotherClientAdoptsAndLearnsOfAnExitThatNobodySaw) {
  auto first = Connect();
  ASSERT_TRUE(Create(*first, Shell("ct-a", "read line; echo got $line; exit 7")).ok());
  ASSERT_TRUE(Create(*first, Shell("ct-b", "echo early; kill -9 $$")).ok());
  EXPECT_EQ(exits_.Take().container_id(), "ct-b");
  EXPECT_EQ(Create(*first, Shell("ct-a", "true")).status().code(), Code::kAlreadyExists);
  first.reset();

  auto second = Connect();
  ContainerList list = List(*second);
  ASSERT_EQ(list.containers_size(), 2);
  EXPECT_FALSE(list.containers(0).exited());
  EXPECT_EQ(list.containers(0).job().process().argv_size(), 3);
  EXPECT_TRUE(list.containers(1).exited());
  EXPECT_EQ(WTERMSIG(list.containers(1).exit().status()), SIGKILL);
  auto attached = Attach(*second, "ct-b");
  ASSERT_TRUE(attached.ok());
  EXPECT_EQ(ReadToEnd(attached->fds["stdout"].get()), "early\n");
  attached = Attach(*second, "ct-a");
  ASSERT_TRUE(attached.ok());
  ASSERT_TRUE(WriteAll(attached->fds["stdin"].get(), "hello\n").ok());
  EXPECT_EQ(ReadToEnd(attached->fds["stdout"].get()), "got hello\n");
  EXPECT_EQ(WEXITSTATUS(exits_.Take().status()), 7);
}

TEST_F(SpawnerTest, ExecSignalAndStdin) {
  auto client = Connect();
  ASSERT_TRUE(Create(*client, Shell("ct-1", "exec sleep 100")).ok());
  ExecRequest request;
  request.set_container_id("ct-1");
  request.set_exec_id("e1");
  request.mutable_process()->add_argv("cat");
  Box<Result<Exec>> box;
  client->Exec(request, [&](Result<Exec> result) { box.Put(std::move(result)); });
  auto exec = box.Take();
  ASSERT_TRUE(exec.ok()) << exec.status();
  ASSERT_TRUE(WriteAll(exec->fds["stdin"].get(), "through").ok());
  exec->fds.erase("stdin");
  ASSERT_TRUE(Wait([&](auto done) { client->CloseStdin("ct-1", "e1", done); }).ok());
  EXPECT_EQ(ReadToEnd(exec->fds["stdout"].get()), "through");
  ExitEvent exit = exits_.Take();
  EXPECT_EQ(exit.exec_id(), "e1");
  EXPECT_EQ(exit.status(), 0);
  EXPECT_EQ(Wait([&](auto done) { client->Signal("ct-1", "e1", SIGTERM, done); }).code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(Wait([&](auto done) { client->Remove("ct-1", done); }).code(), Code::kFailedPrecondition);
  auto attached = Attach(*client, "ct-1");
  ASSERT_TRUE(attached.ok());
  ASSERT_EQ(attached->info.execs_size(), 1);
  EXPECT_TRUE(attached->info.execs(0).exited());
  EXPECT_TRUE(attached->exec_fds["e1"].contains("stdout"));
  EXPECT_TRUE(Wait([&](auto done) { client->Signal("ct-1", "", SIGTERM, done); }).ok());
  EXPECT_EQ(WTERMSIG(exits_.Take().status()), SIGTERM);
}

TEST_F(SpawnerTest, InheritedStdio) {
  auto client = Connect();
  int out[2];
  ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
  std::vector<UniqueFd> stdio;
  stdio.emplace_back(::open("/dev/null", O_RDWR | O_CLOEXEC));
  stdio.emplace_back(out[1]);
  stdio.push_back(std::move(*Duplicate(stdio[0].get())));
  Job job = Shell("ct-1", "echo inherited");
  job.mutable_process()->set_stdio(Process::INHERIT);
  Box<Result<Container>> box;
  client->CreateInheriting(job, std::move(stdio),
                           [&](Result<Container> result) { box.Put(std::move(result)); });
  auto made = box.Take();
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(exits_.Take().status(), 0);
  char buffer[32];
  EXPECT_EQ(::read(out[0], buffer, sizeof buffer), 10);
  ::close(out[0]);
}

TEST_F(SpawnerTest, PoolsStayEmptyFromDrainToTheNextCreate) {
  auto client = Connect();
  ASSERT_TRUE(Wait([&](auto done) { client->DrainPools(done); }).ok());
  ::usleep(20'000);
  auto made = Create(*client, Shell("ct-1", "true"));
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made->info.phases(0).name(), "unpooled");
}

TEST_F(SpawnerTest, GarbageEndsItsConnectionOnly) {
  auto client = Connect();
  for (const std::string& bytes :
       {std::string("\xff\xff\xff\xff garbage"), std::string("\x04\0\0\0\xff\xff\xff\xff", 8)}) {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    ASSERT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_TRUE(WriteAll(socket.get(), bytes).ok());
    pollfd wait{socket.get(), POLLRDHUP, 0};
    EXPECT_EQ(::poll(&wait, 1, 10'000), 1);
  }
  Box<Result<Plan>> box;
  client->MakePlan(Shell("ct-1", "true"), [&](Result<Plan> plan) { box.Put(std::move(plan)); });
  auto plan = box.Take();
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->steps(0).name(), "fake ct-1");
}

TEST_F(SpawnerTest, AKilledSpawnerFailsRequestsAndIsToldOnce) {
  auto client = Connect();
  ASSERT_TRUE(Create(*client, Shell("ct-1", "exec sleep 100")).ok());
  ::kill(server_, SIGKILL);
  ::waitpid(server_, nullptr, 0);
  EXPECT_EQ(disconnects_.Take().code(), Code::kUnavailable);
  EXPECT_EQ(Wait([&](auto done) { client->Kill("ct-1", done); }).code(), Code::kUnavailable);
  server_ = 0;
}

TEST_F(SpawnerTest, StopEndsContainers) {
  auto client = Connect();
  auto made = Create(*client, Shell("ct-1", "trap '' TERM; while :; do sleep 1; done"));
  ASSERT_TRUE(made.ok());
  int pidfd = made->fds["pidfd"].get();
  ::kill(server_, SIGTERM);
  pollfd wait{pidfd, POLLIN, 0};
  EXPECT_EQ(::poll(&wait, 1, 10'000), 1);
}

TEST(FramesTest, ManyDescriptorsAndSmallReads) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  UniqueFd left(ends[0]), right(ends[1]);
  std::vector<UniqueFd> fds;
  for (int i = 0; i < 600; ++i) fds.push_back(std::move(*Duplicate(left.get())));
  FrameWriter writer;
  writer.Push(std::string(5000, 'x'), std::move(fds));
  writer.Push("second", {});
  auto done = writer.Write(left.get());
  ASSERT_TRUE(done.ok() && *done);
  FrameReader reader;
  std::vector<std::string> frames;
  while (frames.size() < 2) {
    ASSERT_TRUE(reader.Read(right.get()).ok());
    while (true) {
      auto frame = reader.Next();
      ASSERT_TRUE(frame.ok());
      if (!*frame) break;
      frames.push_back(**frame);
    }
  }
  EXPECT_EQ(frames[0].size(), 5000u);
  EXPECT_EQ(frames[1], "second");
  EXPECT_TRUE(reader.TakeFds(600).ok());
  EXPECT_FALSE(reader.TakeFds(1).ok());
}

}  // namespace
}  // namespace lydian::spawner
