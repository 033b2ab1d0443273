// What the router adds to bare gRPC: the same messages over a unix socket, server CPU of a call, in one run.
// The client is a process of its own (this program again), so that the CPU measured is the server's alone.
#include <benchmark/benchmark.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "rpc/acceptor.h"
#include "rpc/channel.h"
#include "rpc/server.h"
#include "rpc/test_util.h"

namespace lydian::rpc {
namespace {

class BareEcho final : public grpc::ServerGenericBidiReactor {
 public:
  BareEcho() { StartRead(&message_); }
  void OnReadDone(bool ok) override {
    if (!ok) return Finish({grpc::StatusCode::INVALID_ARGUMENT, "no message"});
    StartWriteAndFinish(&message_, {}, grpc::Status::OK);
  }
  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer message_;
};

class BareService final : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new BareEcho();
  }
};

const Metadata kHeaders = {{"x-modal-client-version", "1.6.4"},
                           {"x-modal-client-type", "1"},
                           {"x-modal-python-version", "3.11"},
                           {"x-modal-node", "node"},
                           {"x-modal-platform", "Linux-6.18-x86_64-with-glibc2.36"},
                           {"x-modal-token-id", "ak-0123456789"},
                           {"x-modal-token-secret", "as-0123456789"},
                           {"x-idempotency-key", "7c0ce6d8-3a36-4d4a-a9a2-0d7a1f2f3c11"},
                           {"x-retry-attempt", "0"},
                           {"x-modal-timestamp", "1700000000.0"}};

// Calls until `calls` are answered, `parallel` at a time.
void RunClient(const std::string& target, int calls, int parallel) {
  auto channel = Channel::Create(target);
  std::mutex mutex;
  std::condition_variable changed;
  int left = calls, done = 0;
  std::function<void()> next = [&] {
    {
      std::lock_guard lock(mutex);
      if (left == 0) return;
      --left;
    }
    auto call = channel->Start("/t.S/Echo", kHeaders,
                               {.on_message = nullptr, .on_done = [&](Status status, Metadata) {
                                  if (!status.ok())
                                    fprintf(stderr, "%s\n", status.ToString().c_str()), _exit(1);
                                  next();
                                  std::lock_guard lock(mutex);
                                  ++done;
                                  changed.notify_all();
                                }});
    call->Write(std::string(200, 'x'));
    call->WritesDone();
  };
  for (int i = 0; i < parallel; ++i) next();
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return done == calls; });
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

void Drive(benchmark::State& state, const std::string& target) {
  const int parallel = static_cast<int>(state.range(0)), calls = 4000;
  int64_t total = 0;
  double cpu = 0;
  for (auto _ : state) {
    const double before = CpuSeconds();
    const pid_t pid = fork();
    if (pid == 0) {
      const std::string number = std::to_string(calls), at_once = std::to_string(parallel);
      execl("/proc/self/exe", "rpc_bench", "--client", target.c_str(), number.c_str(), at_once.c_str(),
            nullptr);
      _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    if (status != 0) return state.SkipWithError("the client failed");
    cpu += CpuSeconds() - before;
    total += calls;
  }
  state.counters["server_us_per_call"] = cpu / static_cast<double>(total) * 1e6;
  state.SetItemsProcessed(total);
}

void BM_Bare(benchmark::State& state) {
  TempDir dir;
  BareService service;
  grpc::ServerBuilder builder;
  builder.RegisterCallbackGenericService(&service);
  builder.AddListeningPort("unix:" + dir.path() + "/s", grpc::InsecureServerCredentials());
  auto server = builder.BuildAndStart();
  Drive(state, "unix:" + dir.path() + "/s");
  server->Shutdown(std::chrono::system_clock::now());
}

class AnyToken : public Authenticator {
  Result<Caller> Authenticate(const Headers& headers, std::string_view, const MethodOptions&) override {
    Caller caller;
    caller.kind = Caller::Kind::kUser;
    caller.token_id = std::string(headers("x-modal-token-id"));
    return caller;
  }
};

void BM_Router(benchmark::State& state) {
  TempDir dir;
  auto router = std::make_shared<Router>();
  router->AddUnary("t.S", "Echo",
                   [](std::string_view request, Ctx, RawReply reply) { reply(std::string(request)); });
  auto listener = Listen("unix:" + dir.path() + "/s");
  auto server =
      Server::Start({.router = router, .authenticator = std::make_shared<AnyToken>()}, listener->get())
          .value();
  Drive(state, "unix:" + dir.path() + "/s");
}

BENCHMARK(BM_Bare)->Arg(1)->Arg(64)->Iterations(3)->Unit(benchmark::kMillisecond);
BENCHMARK(BM_Router)->Arg(1)->Arg(64)->Iterations(3)->Unit(benchmark::kMillisecond);

// A container's own server, from nothing to listening, and its end.
void BM_ServerStartStop(benchmark::State& state) {
  TempDir dir;
  auto router = std::make_shared<Router>();
  auto listener = Listen("unix:" + dir.path() + "/s");
  for (auto _ : state) {
    auto server = Server::Start({.router = router}, listener->get());
    benchmark::DoNotOptimize(server);
  }
}
BENCHMARK(BM_ServerStartStop)->Unit(benchmark::kMicrosecond);

void BM_ServerStart(benchmark::State& state) {
  TempDir dir;
  auto router = std::make_shared<Router>();
  auto listener = Listen("unix:" + dir.path() + "/s");
  std::vector<std::unique_ptr<Server>> servers;
  for (auto _ : state) servers.push_back(Server::Start({.router = router}, listener->get()).value());
  state.counters["rss_kb_total"] = [] {
    long pages = 0, resident = 0;
    FILE* f = fopen("/proc/self/statm", "r");
    (void)!fscanf(f, "%ld %ld", &pages, &resident);
    fclose(f);
    return static_cast<double>(resident) * 4;
  }();
}
BENCHMARK(BM_ServerStart)->Iterations(500)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lydian::rpc

int main(int argc, char** argv) {
  if (argc == 5 && std::string(argv[1]) == "--client") {
    lydian::rpc::RunClient(argv[2], atoi(argv[3]), atoi(argv[4]));
    _exit(0);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
