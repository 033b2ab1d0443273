// What bare gRPC costs on this machine: a generic callback server that echoes, in a process of its own, on a
// unix socket.
//
//   echo_baseline serve SOCKET    serves until it is killed; one byte on stdout when it is ready
//   echo_baseline DIR [CALLS]     prints one JSON object, CPU microseconds, with itself as the client:
//     tight_sequential_us    server CPU of one unary echo, one after the other without a pause (sizes as in a
//                            warm call)
//     tight_concurrent_us    the same with two in flight (two containers)
//     bidi_round_trip_us     CPU of both ends for one message each way on an open stream (a lease and its
//                            outcome)
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

// Bytes of the four requests of a warm call: FunctionMap, FunctionGetOutputs, FunctionGetInputs,
// FunctionPutOutputs.
constexpr size_t kSizes[] = {110, 70, 40, 160};
constexpr size_t kLeaseSize = 220;

class Echo : public grpc::ServerGenericBidiReactor {
 public:
  Echo() { StartRead(&message_); }
  void OnReadDone(bool ok) override {
    if (ok) {
      StartWrite(&message_);
    } else {
      Finish(grpc::Status::OK);
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) StartRead(&message_);
  }
  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer message_;
};

class Service : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* /*context*/) override {
    return new Echo;
  }
};

[[noreturn]] void Serve(const std::string& address, int ready) {
  Service service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterCallbackGenericService(&service);
  auto server = builder.BuildAndStart();
  const char byte = server ? 'y' : 'n';
  if (write(ready, &byte, 1) != 1) _exit(1);
  if (!server) _exit(1);
  server->Wait();
  _exit(0);
}

double Cpu(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
}

grpc::ByteBuffer Message(size_t size) {
  grpc::Slice slice(std::string(size, 'x'));
  return grpc::ByteBuffer(&slice, 1);
}

// Keeps `depth` unary calls in flight until `total` are done.
class Caller {
 public:
  Caller(grpc::GenericStub* stub, int total, int depth)
      : stub_(stub), left_(total), open_(0), depth_(depth) {}
  void Run() {
    for (int i = 0; i < depth_; ++i) Next(i);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return open_ == 0 && left_ == 0; });
  }

 private:
  struct Call {
    grpc::ClientContext context;
    grpc::ByteBuffer request, response;
  };
  void Next(int turn) {
    {
      std::lock_guard lock(mutex_);
      if (left_ == 0) return;
      --left_;
      ++open_;
    }
    auto call = std::make_shared<Call>();
    call->request = Message(kSizes[turn % 4]);
    stub_->UnaryCall(&call->context, "/echo/Unary", {}, &call->request, &call->response,
                     [this, call, turn](const grpc::Status& status) {
                       if (!status.ok()) {
                         fprintf(stderr, "echo: %s\n", status.error_message().c_str());
                         _exit(1);
                       }
                       Next(turn + 1);
                       std::lock_guard lock(mutex_);
                       if (--open_ == 0 && left_ == 0) done_.notify_all();
                     });
  }

  grpc::GenericStub* stub_;
  std::mutex mutex_;  // guards left_ and open_
  std::condition_variable done_;
  int left_, open_, depth_;
};

class RoundTrips : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  RoundTrips(grpc::GenericStub* stub, int total) : left_(total), out_(Message(kLeaseSize)) {
    stub->PrepareBidiStreamingCall(&context_, "/echo/Bidi", {}, this);
    StartWrite(&out_);
    StartRead(&in_);
    StartCall();
  }
  void OnWriteDone(bool ok) override {
    if (ok) Step();
  }
  void OnReadDone(bool ok) override {
    if (ok) Step();
  }
  void OnDone(const grpc::Status& /*status*/) override {
    std::lock_guard lock(mutex_);
    over_ = true;
    done_.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return over_; });
  }

 private:
  // A trip is over when the echo is here and the write is known to be done, in either order.
  void Step() {
    if (++steps_ % 2 != 0) return;
    if (--left_ == 0) {
      StartWritesDone();
      StartRead(&in_);
      return;
    }
    StartWrite(&out_);
    StartRead(&in_);
  }

  grpc::ClientContext context_;
  std::atomic<int> steps_ = 0;
  int left_;
  grpc::ByteBuffer out_, in_;
  std::mutex mutex_;  // guards over_
  std::condition_variable done_;
  bool over_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: echo_baseline DIR [CALLS] | serve SOCKET\n");
    return 2;
  }
  if (argc == 3 && std::string(argv[1]) == "serve") Serve("unix:" + std::string(argv[2]), STDOUT_FILENO);
  const std::string address = "unix:" + std::string(argv[1]) + "/echo.sock";
  const int calls = argc > 2 ? atoi(argv[2]) : 8000;
  int ready[2];
  if (pipe(ready) != 0) return 1;
  const pid_t server = fork();  // before gRPC has a thread
  if (server == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    Serve(address, ready[1]);
  }
  char byte = 0;
  if (read(ready[0], &byte, 1) != 1 || byte != 'y') {
    fprintf(stderr, "the echo server did not start at %s\n", address.c_str());
    return 1;
  }
  clockid_t clock;
  clock_getcpuclockid(server, &clock);
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  auto unary = [&](int depth) {
    Caller(&stub, calls / 10, depth).Run();
    const double before = Cpu(clock);
    Caller(&stub, calls, depth).Run();
    return (Cpu(clock) - before) / calls;
  };
  auto bidi = [&] {
    RoundTrips(&stub, calls / 10).Wait();
    const double before = Cpu(clock) + Cpu(CLOCK_PROCESS_CPUTIME_ID);
    RoundTrips(&stub, calls).Wait();
    return (Cpu(clock) + Cpu(CLOCK_PROCESS_CPUTIME_ID) - before) / calls;
  };
  const double sequential = unary(1), concurrent = unary(2), trip = bidi();
  printf(
      "{\"calls\": %d, \"tight_sequential_us\": %.1f, \"tight_concurrent_us\": %.1f, \"bidi_round_trip_us\": "
      "%.1f}\n",
      calls, sequential, concurrent, trip);
  kill(server, SIGKILL);
  waitpid(server, nullptr, 0);
  unlink(address.c_str() + 5);
  return 0;
}
