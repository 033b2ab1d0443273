#include "worker_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"
#include "build/builder.h"
#include "image/layer_store.h"
#include "image/testing.h"
#include "modal_proto/api.pb.h"
#include "rpc/http.h"
#include "runtime/runtime.h"
#include "spawner/server.h"

namespace lydian::worker {
namespace {

namespace api = modal::client;
constexpr char kBase[] = "/var/tmp/lydian-worker-test";
constexpr char kInstance[] = "lyworkt";
pid_t spawner_pid = 0;

constexpr char kModule[] = R"(
import os, signal, subprocess, sys, threading, time, urllib.error, urllib.request
import modal

app = modal.App("flow")

@app.function()
def work(x):
    print(f"working on {x}")
    print("on stderr", file=sys.stderr)
    return x + 1

@app.function()
def slow(x):
    print("begun", flush=True)
    time.sleep(x)
    print("done", end="")
    return x

@app.function()
def dies(x):
    if x == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(x)

@app.function()
def chatters(x):
    for _ in range(6):
        sys.stdout.write("x" * ((1 << 20) - 1) + "\n")
    sys.stdout.flush()
    os._exit(x)

@app.function()
def last(x):
    import modal.experimental
    modal.experimental.stop_fetching_inputs()
    time.sleep(1)
    return x

@app.function()
def where(x):
    assert os.getcwd() == "/root", os.getcwd()
    assert os.environ["SECRET"] == "s3cret" and os.environ["MODAL_TASK_ID"].startswith("ta-")
    assert open("/proc/self/environ", "rb").read().find(b"s3cret") < 0
    assert os.environ["HOME"] == "/root" and time.tzname[0] == "UTC" and sys.path[0] == "/root", sys.path
    assert os.uname().nodename == "modal" and not os.path.exists("/proc/self/fd/3") or True
    try:
        urllib.request.urlopen("http://169.254.77.1/other", timeout=5)
    except urllib.error.HTTPError as error:
        print("http", error.code, error.read().decode())
    print("blob", urllib.request.urlopen("http://169.254.77.1/blob/x", timeout=5).read().decode())
    return x

@app.function()
def writes(x):
    os.makedirs("/opt/kept", exist_ok=True)
    open("/opt/kept/file", "w").write(str(x))
    if x == 9:
        raise ValueError("no")
    return x

@app.function()
@modal.concurrent(max_inputs=2)
async def together(x):
    import asyncio
    global count
    count = globals().get("count", 0) + 1
    while count < 2:
        await asyncio.sleep(0.01)
    return x

@app.function()
@modal.batched(max_batch_size=3, wait_ms=100)
def batch(xs):
    print("batch", xs)
    return [x + 1 for x in xs]

@app.function()
def calls(x):
    modal.Function.from_name("other", "thing").hydrate()
    return x
)";

class GatedTransaction : public image::PassingTransaction {
 public:
  GatedTransaction(std::unique_ptr<image::LayerTransaction> real, std::shared_ptr<CommitGate> gate)
      : PassingTransaction(std::move(real)), gate_(std::move(gate)) {}
  Status Take(int writable, const std::function<Status()>& check) override {
    RETURN_IF_ERROR(gate_->Wait(check));
    return PassingTransaction::Take(writable, check);
  }

 private:
  std::shared_ptr<CommitGate> gate_;
};

// Where other layers come from: folders by name.
class FolderLayers : public image::LayerStore {
 public:
  FolderLayers(std::unique_ptr<image::LayerStore> real, std::shared_ptr<CommitGate> gate)
      : real_(std::move(real)), gate_(std::move(gate)) {}
  Result<image::LayerInfo> Find(const std::string& id) override {
    if (id == "ly-rootfs") return image::LayerInfo{id, std::string(kBase) + "/rootfs"};
    if (id == "ly-client") return image::LayerInfo{id, std::string(kBase) + "/client"};
    if (id == "ly-mount") return image::LayerInfo{id, std::string(kBase) + "/mount"};
    return real_->Find(id);
  }
  Result<image::Tree> Open(const std::string& id) override {
    ASSIGN_OR_RETURN(image::LayerInfo info, Find(id));
    return image::Tree::Open(info.path);
  }
  Result<struct stat> Stat(const std::vector<std::string>& ids, const std::string& path) override {
    return real_->Stat(ids, path);
  }
  Result<std::unique_ptr<image::LayerTransaction>> Begin() override {
    ASSIGN_OR_RETURN(auto real, real_->Begin());
    return std::unique_ptr<image::LayerTransaction>(new GatedTransaction(std::move(real), gate_));
  }
  Status Remove(const std::string& id, double min_idle_secs) override {
    return real_->Remove(id, min_idle_secs);
  }
  std::vector<image::StoredLayer> List() override { return real_->List(); }
  Result<std::shared_ptr<void>> Pin(const std::vector<std::string>&) override {
    return std::shared_ptr<void>();
  }
  Status PutRecord(const std::string& key, const std::string& value) override {
    return real_->PutRecord(key, value);
  }
  Result<std::string> GetRecord(const std::string& key) override { return real_->GetRecord(key); }
  Status SweepRecords(
      const std::function<bool(const std::string& key, const std::string& value)>& keep) override {
    return real_->SweepRecords(keep);
  }

 private:
  std::unique_ptr<image::LayerStore> real_;
  std::shared_ptr<CommitGate> gate_;
};

class FakeBuilder : public build::Builder {
 public:
  void Start(const BuildSpec&, std::function<void(BuildUpdate)>) override {}
  void Cancel(const std::string&) override {}
  void OnExit(const std::string&, int, bool) override {}
  void RuntimeLayers(const ImageSpec&, const std::string&, bool,
                     std::function<void(Result<std::vector<std::string>>)> reply) override {
    reply(std::vector<std::string>{"ly-client"});
  }
  void EnsureClient(const std::string&, std::function<void(Status)> reply) override { reply({}); }
  void MountLayer(const std::string&, const std::vector<ContextFile>&,
                  std::function<void(Result<std::string>)> reply) override {
    reply(std::string("ly-mount"));
  }
  void MakeBase(const std::string&, std::function<void(const std::string&)>,
                std::function<void(Result<ImageSpec>)> reply) override {
    reply(NotFound("no base"));
  }
  Status ImportArchive(const std::string&, const std::string&) override { return Unimplemented("not here"); }
  std::vector<Base> Bases() override { return {}; }
};

class AnyTask : public rpc::Authenticator {
 public:
  Result<rpc::Caller> Authenticate(const Headers&, std::string_view, const rpc::MethodOptions&) override {
    return rpc::Caller();
  }
};

class BlobHandler : public http::Handler {
 public:
  http::Response Handle(http::Exchange& exchange) override {
    http::Response response;
    response.body = "content of " + exchange.request().path;
    return response;
  }
};

bool Run(const std::string& command) { return std::system(command.c_str()) == 0; }

std::string MakeFolders() {
  const std::string base = kBase;
  (void)MakeDirs(base);
  if (!Exists(base + "/rootfs")) {
    std::cerr << "making a root file system with Python 3 in " << base << ", a minute\n";
    if (!Run("mmdebstrap --variant=minbase --include=python3,ca-certificates bookworm " + base +
             "/rootfs.new >/dev/null 2>&1 && mv " + base + "/rootfs.new " + base + "/rootfs")) {
      return "no root file system: mmdebstrap is not here or failed";
    }
  }
  if (!Exists(base + "/client/pkg/modal")) {
    (void)MakeDirs(base + "/client/pkg");
    if (!Run("cp -a " LYDIAN_SITE_PACKAGES_OF "/lib/python3.11/site-packages/. " + base + "/client/pkg/"))
      return "no .venv with the client";
  }
  (void)MakeDirs(base + "/mount/root");
  if (!WriteFileAtomic(base + "/mount/root/flow.py", kModule).ok())
    return "the test's module can't be written";
  return "";
}

}  // namespace

// ---- Control.

FakeControl::FakeControl(const std::string& socket) {
  auto router = std::make_shared<rpc::Router>();
  router->AddBidi("lydian.WorkerLink", "Attach",
                  [this](rpc::Ctx, std::shared_ptr<rpc::RawStream> out) {
                    {
                      std::lock_guard lock(mutex);
                      stream_ = std::move(out);
                    }
                    rpc::RawReader reader;
                    reader.on_message = [this](std::string_view bytes) -> Status {
                      FromWorker message;
                      if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
                        return InvalidArgument("not a FromWorker");
                      Take(std::move(message));
                      return {};
                    };
                    reader.on_end = [] {};
                    return reader;
                  },
                  {.anonymous = true});
  router->AddUnary("lydian.WorkerLink", "GetMount",
                   [](std::string_view, rpc::Ctx, rpc::RawReply reply) { reply(std::string()); },
                   {.anonymous = true});
  router->SetFallback(
      [this](std::string_view method, rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out) -> rpc::RawReader {
        std::lock_guard lock(mutex);
        relayed.push_back(std::string(method.substr(method.rfind('/') + 1)) + " " +
                          std::string(ctx->header("x-lydian-task")));
        return {[](std::string_view) -> Status { return {}; },
                [out] { out->Finish(NotFound("there is no such thing here")); }};
      });
  rpc::ServerOptions options;
  options.router = std::move(router);
  options.authenticator = std::make_shared<AnyTask>();
  options.http = std::make_shared<BlobHandler>();
  unlink(socket.c_str());
  Result<UniqueFd> listener = rpc::Listen("unix:" + socket);
  CHECK(listener.ok());
  Result<std::unique_ptr<rpc::Server>> server = rpc::Server::Start(std::move(options), listener->get());
  CHECK(server.ok());
  server_ = std::move(*server);
}

FakeControl::~FakeControl() { Stop(); }

void FakeControl::Stop() {
  {
    std::lock_guard lock(mutex);
    stream_ = nullptr;
  }
  if (server_) server_->Stop(100);
  server_.reset();
}

void FakeControl::Send(const ToWorker& message) {
  std::lock_guard lock(mutex);
  if (stream_) stream_->Write(message.SerializeAsString());
}

void FakeControl::Take(FromWorker message) {
  std::lock_guard lock(mutex);
  ToWorker answer;
  switch (message.kind_case()) {
    case FromWorker::kHello:
      hellos.push_back(message.hello());
      held.clear();
      settled = false;
      answer.mutable_welcome()->set_blob_base_url("http://169.254.77.1");
      break;
    case FromWorker::kHoldings:
      for (const RunningTask& task : message.holdings().tasks()) held.push_back(task);
      settled |= message.holdings().last();
      break;
    case FromWorker::kOutputs:
      for (const Output& output : message.outputs().outputs()) {
        outputs.push_back(output);
        if (!acknowledge) continue;
        LeaseRef* ref = answer.mutable_output_acks()->add_acks();
        ref->set_input_id(output.input_id());
        ref->set_attempt(output.attempt());
        ref->set_task_id(output.task_id());
        ref->set_epoch(output.epoch());
      }
      break;
    case FromWorker::kTask:
      updates.push_back(message.task());
      break;
    case FromWorker::kDemand:
      ready.insert(message.demand().task_id());
      break;
    case FromWorker::kGiveBack:
      for (const LeaseRef& ref : message.give_back().leases()) given_back.push_back(ref);
      break;
    case FromWorker::kLog: {
      const LogBatch& log = message.log();
      auto& [out, err] = stored_[log.task_id()];
      if (log.stdout_offset() > out || log.stderr_offset() > err) {
        for (const LogEntry& entry : log.entries()) text[entry.file_descriptor()] += entry.data();
        out = log.stdout_offset();
        err = log.stderr_offset();
      }
      if (acknowledge) {
        answer.mutable_log_ack()->set_task_id(log.task_id());
        answer.mutable_log_ack()->set_stdout_offset(log.stdout_offset());
        answer.mutable_log_ack()->set_stderr_offset(log.stderr_offset());
      }
      break;
    }
    default:
      break;
  }
  if (answer.kind_case() != ToWorker::KIND_NOT_SET && stream_) stream_->Write(answer.SerializeAsString());
  changed_.notify_all();
}

bool FakeControl::Wait(const std::function<bool()>& condition, int seconds) {
  std::unique_lock lock(mutex);
  return changed_.wait_for(lock, std::chrono::seconds(seconds), condition);
}

bool FakeControl::Saw(TaskUpdate::State state) const { return Find(state) != nullptr; }
const TaskUpdate* FakeControl::Find(TaskUpdate::State state) const {
  for (const TaskUpdate& update : updates) {
    if (update.state() == state) return &update;
  }
  return nullptr;
}

// ---- The gate.

Status CommitGate::Wait(const std::function<Status()>& check) {
  std::unique_lock lock(mutex_);
  ++begun_;
  changed_.notify_all();
  while (closed_) {
    RETURN_IF_ERROR(check());
    changed_.wait_for(lock, std::chrono::milliseconds(5));
  }
  return OkStatus();
}

void CommitGate::Close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
}

bool CommitGate::AwaitBegun(int copies) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return begun_ >= copies; });
}

// ---- The fixture.

void WorkerFlow::StartSpawner() {
  const std::string state = std::string(kBase) + "/state";
  (void)MakeDirs(state, 0700);
  const std::string path = state + "/spawner.sock";
  unlink(path.c_str());
  Result<UniqueFd> listener = rpc::Listen("unix:" + path);
  CHECK(listener.ok());
  // A process of its own, made by exec: the spawner has one thread, this program has more by now.
  const std::string fd = std::to_string(listener->get());
  fcntl(listener->get(), F_SETFD, 0);
  spawner_pid = fork();
  if (spawner_pid == 0) {
    execl("/proc/self/exe", "worker_flow_test", "--spawner", fd.c_str(), nullptr);
    _exit(127);
  }
}

int SpawnerMain(int listener) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  runtime::RuntimeOptions options;
  options.state_dir = std::string(kBase) + "/state";
  options.instance = kInstance;
  options.init_path = LYDIAN_INIT;
  options.address_range = "10.99.0.0/24";
  options.disk_reserve_bytes = 64 << 20;
  Result<std::unique_ptr<runtime::Runtime>> runtime = runtime::Runtime::Create(options);
  if (!runtime.ok()) {
    std::cerr << runtime.status() << "\n";
    return 1;
  }
  (void)(*runtime)->CleanLeftovers();
  spawner::ServerOptions server;
  server.listener.reset(listener);
  server.instance = kInstance;
  Result<std::unique_ptr<spawner::Server>> made =
      spawner::Server::Create(std::move(server), std::move(*runtime));
  if (!made.ok()) {
    std::cerr << made.status() << "\n";
    return 1;
  }
  return (*made)->Run().ok() ? 0 : 1;
}

void WorkerFlow::StopSpawner(int signal) {
  kill(spawner_pid, signal);
  waitpid(spawner_pid, nullptr, 0);
  spawner_pid = 0;
}

void WorkerFlow::SetUp() {
  if (geteuid() != 0) GTEST_SKIP() << "SKIPPED: containers need root";
  if (const std::string why = MakeFolders(); !why.empty()) GTEST_SKIP() << "SKIPPED: " << why;
  (void)RemoveTree(state_ + "/tasks");
  if (spawner_pid == 0) StartSpawner();
  StartControl();
  StartWorker();
}

void WorkerFlow::TearDown() {
  if (HasFailure() && control_) {
    for (const auto& [fd, text] : control_->text)
      std::cerr << "container's output " << fd << ":\n" << text << "\n";
  }
  if (worker_) worker_->Stop();
  worker_.reset();
  control_.reset();
  if (spawner_pid != 0) StopSpawner(SIGTERM);
}

void WorkerFlow::StartControl() { control_ = std::make_unique<FakeControl>(state_ + "/link.sock"); }

void WorkerFlow::StartWorker() {
  WorkerOptions options;
  options.state_dir = state_;
  unlink((state_ + "/admin.sock").c_str());
  Result<UniqueFd> admin = rpc::Listen("unix:" + state_ + "/admin.sock");
  ASSERT_TRUE(admin.ok()) << admin.status();
  options.instance = kInstance;
  options.control_socket = state_ + "/link.sock";
  options.disk_reserve_bytes = 64 << 20;
  options.make_layers = [this]() -> std::unique_ptr<image::LayerStore> {
    auto real = image::LayerStore::OpenFolders(state_ + "/layers");
    CHECK(real.ok());
    return std::make_unique<FolderLayers>(std::move(*real), commits_);
  };
  options.make_builder = [] { return std::make_unique<FakeBuilder>(); };
  Result<std::unique_ptr<Worker>> worker = Worker::Start(std::move(options), std::move(*admin));
  ASSERT_TRUE(worker.ok()) << worker.status();
  worker_ = std::move(*worker);
  ASSERT_TRUE(control_->Wait([&] { return !control_->hellos.empty() && control_->settled; }));
}

TaskSpec WorkerFlow::Spec(const std::string& name, uint32_t slots) {
  api::Function function;
  function.set_module_name("flow");
  function.set_function_name(name);
  function.set_implementation_name(name);
  function.set_app_name("flow");
  function.set_definition_type(api::Function::DEFINITION_TYPE_FILE);
  function.set_function_type(api::Function::FUNCTION_TYPE_FUNCTION);
  function.set_max_concurrent_inputs(slots > 1 ? slots : 0);
  function.add_supported_output_formats(api::DATA_FORMAT_PICKLE);
  function.add_object_dependencies()->set_object_id("im-1");
  api::AppLayout layout;
  layout.add_objects()->set_object_id("im-1");
  for (const char* each : {"work", "slow", "dies", "where", "calls", "writes", "together", "batch"}) {
    const std::string id = std::string("fu-") + each;
    (*layout.mutable_function_ids())[each] = id;
    api::Object* object = layout.add_objects();
    object->set_object_id(id);
    object->mutable_function_handle_metadata()->set_function_name(each);
  }
  TaskSpec spec;
  spec.set_task_id(NewTaskId());
  spec.set_function_id("fu-" + name);
  spec.set_app_id("ap-0000000000000000000001");
  spec.set_function_name(name);
  spec.set_environment_name("main");
  spec.set_function_def(function.SerializeAsString());
  spec.set_app_layout(layout.SerializeAsString());
  spec.mutable_image()->set_image_id("im-1");
  spec.mutable_image()->add_layer_ids("ly-rootfs");
  spec.mutable_image()->set_builder_version("2025.06");
  spec.add_mount_ids("mo-1");
  (*spec.mutable_env())["SECRET"] = "s3cret";
  spec.set_slots(slots);
  return spec;
}

void WorkerFlow::SetBatched(TaskSpec* spec, uint32_t size, uint64_t linger_ms) {
  api::Function function;
  CHECK(function.ParseFromString(spec->function_def()));
  function.set_batch_max_size(size);
  function.set_batch_linger_ms(linger_ms);
  spec->set_function_def(function.SerializeAsString());
}

std::string WorkerFlow::StartTask(TaskSpec spec) {
  ToWorker message;
  const std::string id = spec.task_id();
  *message.mutable_start_task() = std::move(spec);
  control_->Send(message);
  return id;
}

void WorkerFlow::Lease(const std::string& task_id, const std::string& input_id, int argument,
                       uint32_t attempt) {
  api::FunctionInput input;
  input.set_args(PickledCall(argument));
  input.set_data_format(api::DATA_FORMAT_PICKLE);
  ToWorker message;
  lydian::Lease* lease = message.mutable_leases()->add_leases();
  lease->set_task_id(task_id);
  lease->set_input_id(input_id);
  lease->set_attempt(attempt);
  lease->set_epoch(1);
  lease->set_function_call_id("fc-1");
  lease->set_input(input.SerializeAsString());
  control_->Send(message);
}

void WorkerFlow::Stop(const std::string& task_id, StopTask::Mode mode, uint32_t grace_ms) {
  ToWorker message;
  message.mutable_stop_task()->set_task_id(task_id);
  message.mutable_stop_task()->set_mode(mode);
  message.mutable_stop_task()->set_grace_ms(grace_ms);
  control_->Send(message);
}

std::string WorkerFlow::PickledCall(int argument) {
  return std::string("\x80\x04K") + static_cast<char>(argument) + "\x85}\x86.";
}
std::string WorkerFlow::PickledInt(int value) {
  api::GenericResult result;
  result.set_status(api::GenericResult::GENERIC_STATUS_SUCCESS);
  result.set_data(std::string("\x80\x04K") + static_cast<char>(value) + ".");
  return result.SerializeAsString();
}

}  // namespace lydian::worker

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--spawner")
    return lydian::worker::SpawnerMain(std::atoi(argv[2]));
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
