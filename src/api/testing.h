// A whole api over fakes: a router that only keeps the handlers, an engine, workers and logs that do what a
// test says. No gRPC.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>

#include "api/handlers.h"
#include "api/task_specs.h"
#include "base/fd.h"
#include "base/ids.h"

namespace lydian::api {

// Handlers by name; filled by the Router below.
struct Handlers {
  std::map<std::string, rpc::RawUnary, std::less<>> unary;
  std::map<std::string, rpc::RawServerStream, std::less<>> streams;
};
Handlers& CapturedHandlers();

class FakeContext : public rpc::Context {
 public:
  explicit FakeContext(std::string method, rpc::Caller caller)
      : method_(std::move(method)), caller_(std::move(caller)) {}
  std::string_view method() const override { return method_; }
  std::string_view header(std::string_view name) const override {
    auto it = headers.find(std::string(name));
    return it == headers.end() ? std::string_view() : it->second;
  }
  const rpc::Caller& caller() const override { return caller_; }
  SteadyTime deadline() const override { return SteadyTime::max(); }
  bool cancelled() const override { return cancelled_; }
  void OnCancel(Task fn) override { on_cancel_ = std::move(fn); }
  void AddTrailer(std::string_view, std::string_view) override {}
  void Cancel() {
    cancelled_ = true;
    if (on_cancel_) on_cancel_();
  }
  std::map<std::string, std::string> headers;

 private:
  std::string method_;
  rpc::Caller caller_;
  bool cancelled_ = false;
  Task on_cancel_;
};

class FakeStream : public rpc::RawStream {
 public:
  bool Write(std::string message) override {
    std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
    changed_.notify_all();
    return true;
  }
  size_t buffered() const override { return 0; }
  void OnDrained(size_t, Task fn) override { fn(); }
  void HoldReading(bool) override {}
  void Finish(Status status) override {
    std::lock_guard lock(mutex_);
    if (!finished_) status_ = std::move(status);
    finished_ = true;
    changed_.notify_all();
  }
  // All messages once the stream has ended.
  std::vector<std::string> WaitEnd(Status* status = nullptr) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(10), [&] { return finished_; }))
        << "the stream did not end";
    if (status != nullptr) *status = status_;
    return messages_;
  }
  std::string WaitMessage(size_t index) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(10), [&] { return messages_.size() > index; }))
        << "no message " << index;
    return messages_.size() > index ? messages_[index] : "";
  }
  bool finished() {
    std::lock_guard lock(mutex_);
    return finished_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> messages_;
  bool finished_ = false;
  Status status_;
};

class FakeEngine : public control::Engine {
 public:
  void PutFunction(const control::FunctionInfo& info, bool replace_tasks) override {
    std::lock_guard lock(mutex);
    functions[info.function_id] = info;
    if (replace_tasks) replaced.push_back(info.function_id);
  }
  void ActivateApp(const std::string& app_id) override {
    std::lock_guard lock(mutex);
    activated.push_back(app_id);
  }
  void StopApp(const std::string& app_id, const std::string& reason, uint32_t,
               std::function<void()> done) override {
    {
      std::lock_guard lock(mutex);
      stopped[app_id] = reason;
      if (hold_stops) {
        held.push_back(std::move(done));
        return;
      }
    }
    done();
  }
  void StopTask(const std::string& task_id, const std::string&, bool graceful,
                std::function<void(Status)> done) override {
    {
      std::lock_guard lock(mutex);
      stopped[task_id] = graceful ? "graceful" : "";
    }
    done(OkStatus());
  }
  void RunBuilder(const std::string& function_id, const std::string& input,
                  std::function<void(control::BuilderOutcome)> done) override {
    {
      std::lock_guard lock(mutex);
      built[function_id] = input;
    }
    done(builder_outcome);
  }
  void Tasks(std::function<void(std::vector<control::TaskView>)> reply) override { reply(tasks); }
  void TaskById(const std::string& task_id, std::function<void(Result<control::TaskView>)> reply) override {
    for (const auto& task : tasks) {
      if (task.task_id == task_id) return reply(task);
    }
    reply(NotFound("no task " + task_id));  // as the journal says it
  }
  void Stats(const std::string& function_id, std::function<void(control::FunctionStats)> reply) override {
    std::lock_guard lock(mutex);
    reply(stats[function_id]);
  }
  bool Stopped(const std::string& id) {
    std::lock_guard lock(mutex);
    return stopped.count(id) > 0;
  }

  std::mutex mutex;
  std::map<std::string, control::FunctionInfo> functions;
  std::vector<std::string> replaced, activated;
  std::map<std::string, std::string> stopped, built;
  std::map<std::string, control::FunctionStats> stats;
  std::vector<control::TaskView> tasks;
  control::BuilderOutcome builder_outcome;
  bool hold_stops = false;
  std::vector<std::function<void()>> held;
};

class FakeWorkers : public control::Workers {
 public:
  void StartBuild(const BuildSpec& spec, std::function<void(const BuildUpdate&)> on_update) override {
    std::lock_guard lock(mutex);
    builds.emplace_back(spec, std::move(on_update));
    changed.notify_all();
  }
  void CancelBuild(const std::string& build_id) override {
    std::lock_guard lock(mutex);
    cancelled.push_back(build_id);
    changed.notify_all();
  }
  bool WaitCancel(const std::string& build_id, std::chrono::milliseconds wait = std::chrono::seconds(5)) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, wait, [&] {
      return std::find(cancelled.begin(), cancelled.end(), build_id) != cancelled.end();
    });
  }
  void Ensure(EnsureAsset::Kind, const std::string& name, std::function<void(Status)> done) override {
    {
      std::lock_guard lock(mutex);
      ensured.push_back(name);
      if (hold_ensured) return held.push_back(std::move(done));
    }
    done(ensure_status);
  }
  // The index-th build that was started.
  std::pair<BuildSpec, std::function<void(const BuildUpdate&)>> Build(size_t index) {
    std::unique_lock lock(mutex);
    EXPECT_TRUE(changed.wait_for(lock, std::chrono::seconds(10), [&] { return builds.size() > index; }));
    return builds.at(index);
  }
  size_t count() {
    std::lock_guard lock(mutex);
    return builds.size();
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::pair<BuildSpec, std::function<void(const BuildUpdate&)>>> builds;
  std::vector<std::string> ensured, cancelled;
  bool hold_ensured = false;  // the answers wait in `held`
  std::vector<std::function<void(Status)>> held;
  Status ensure_status;
};

class FakeLogs : public control::LogStore {
 public:
  void Append(const std::string& stream, std::vector<control::LogRecord> records,
              std::function<void()> stored) override {
    {
      std::lock_guard lock(mutex_);
      for (auto& record : records) {
        record.seq = streams_[stream].records.size() + 1;
        streams_[stream].records.push_back(std::move(record));
      }
    }
    Wake(stream);
    if (stored) stored();
  }
  void MarkDone(const std::string& stream) override {
    {
      std::lock_guard lock(mutex_);
      streams_[stream].done = true;
    }
    Wake(stream);
  }
  void Reopen(const std::string& stream) override {
    std::lock_guard lock(mutex_);
    streams_[stream].done = false;
  }
  std::shared_ptr<void> Read(const std::string& stream, uint64_t after, const control::LogFilter& filter,
                             size_t most, int64_t wait, std::function<void(Result<Page>)> reply) override {
    {
      std::unique_lock lock(mutex_);
      Page page = Get(stream, after, filter, most);
      if (page.records.empty() && !page.done && wait > 0) {
        auto question = std::make_shared<Question>(Question{after, filter, most, std::move(reply)});
        streams_[stream].waiting.push_back(question);
        return question;
      }
      lock.unlock();
      reply(page);
    }
    return nullptr;
  }
  std::shared_ptr<void> ReadLast(const std::string& stream, const control::LogFilter& filter,
                                 const std::string& text, size_t most, uint64_t,
                                 std::function<void(Result<Page>)> reply) override {
    Page page;
    {
      std::lock_guard lock(mutex_);
      page = Get(stream, 0, filter, SIZE_MAX);
    }
    std::erase_if(page.records, [&](const control::LogRecord& record) {
      return (filter.text_only && record.file_descriptor == 0) || record.data.find(text) == std::string::npos;
    });
    if (page.records.size() > most)
      page.records.erase(page.records.begin(), page.records.end() - static_cast<ptrdiff_t>(most));
    reply(page);
    return nullptr;
  }

 private:
  struct Question {
    uint64_t after;
    control::LogFilter filter;
    size_t most;
    std::function<void(Result<Page>)> reply;
  };
  struct Stream {
    std::vector<control::LogRecord> records;
    bool done = false;
    std::vector<std::weak_ptr<Question>> waiting;
  };
  Page Get(const std::string& stream, uint64_t after, const control::LogFilter& filter, size_t most) {
    Page page;
    const Stream& from = streams_[stream];
    for (const auto& record : from.records) {
      if (record.seq <= after || page.records.size() >= most) continue;
      if (!filter.task_id.empty() && filter.task_id != record.task_id) continue;
      if (filter.file_descriptor != 0 && filter.file_descriptor != record.file_descriptor) continue;
      page.records.push_back(record);
    }
    page.done = from.done;
    return page;
  }
  void Wake(const std::string& stream) {
    std::vector<std::shared_ptr<Question>> ready;
    std::vector<Page> pages;
    {
      std::lock_guard lock(mutex_);
      for (auto& weak : streams_[stream].waiting) {
        if (auto question = weak.lock()) {
          ready.push_back(question);
          pages.push_back(Get(stream, question->after, question->filter, question->most));
        }
      }
      streams_[stream].waiting.clear();
    }
    for (size_t i = 0; i < ready.size(); ++i) ready[i]->reply(pages[i]);
  }

  std::mutex mutex_;
  std::map<std::string, Stream> streams_;
};

class ApiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/lydian-api-XXXXXX";
    dir_ = mkdtemp(name);
    Boot();
  }
  void TearDown() override {
    services_->files->Stop();
    objects_->Stop();
    objects_.reset();  // or its database would make files meanwhile
    ASSERT_TRUE(RemoveTree(dir_).ok());
  }

  // Also a restart of control: a new process over the same state.
  void Boot() {
    if (objects_) {
      services_->files->Stop();
      objects_->Stop();
    }
    CapturedHandlers() = {};
    control::ObjectsOptions options;
    options.state_dir = dir_;
    options.apps.heartbeat_timeout = heartbeat_timeout_;
    options.images = image_options_;
    options.uploads = upload_limits_;
    auto objects = control::Objects::Open(options, &SystemClock());
    ASSERT_TRUE(objects.ok()) << objects.status();
    objects_ = std::move(objects).value();
    auto blobs = blob::OpenDirectory({.path = dir_ + "/files"});
    ASSERT_TRUE(blobs.ok()) << blobs.status();
    blobs_ = std::move(blobs).value();
    objects_->Attach(&engine_, &workers_, &logs_);
    signer_ = std::make_unique<blob::UrlSigner>(objects_->key().Derive("urls"));
    services_ = std::make_shared<Services>();
    services_->objects = objects_.get();
    services_->engine = &engine_;
    services_->workers = &workers_;
    services_->logs = &logs_;
    services_->blobs = blobs_.get();
    services_->signer = signer_.get();
    RegisterObjects(router_, services_);
    ASSERT_TRUE(Start(services_).ok());
    auto tokens = objects_->tokens().List();
    auto first = std::find_if(tokens.begin(), tokens.end(),
                              [](const control::TokenInfo& token) { return token.workspace == "main"; });
    ASSERT_NE(first, tokens.end());
    user_.kind = rpc::Caller::Kind::kUser;
    user_.workspace_id = first->workspace_id;
    user_.token_id = first->token_id;
    task_ = user_;
    task_.kind = rpc::Caller::Kind::kTask;
    task_.task_id = "ta-00000000000000000000000000";
    task_.environment = "main";
  }

  template <typename Response, typename Request>
  Result<Response> CallAs(const rpc::Caller& caller, const std::string& method, const Request& request,
                          std::map<std::string, std::string> headers = {}) {
    auto it = CapturedHandlers().unary.find(method);
    if (it == CapturedHandlers().unary.end()) return Unimplemented("no handler " + method);
    auto context = std::make_shared<FakeContext>(method, caller);
    context->headers = std::move(headers);
    auto promise = std::make_shared<std::promise<Result<std::string>>>();
    auto answered = std::make_shared<std::atomic<bool>>(false);
    it->second(request.SerializeAsString(), context, [promise, answered](Result<std::string> result) {
      if (!answered->exchange(true)) promise->set_value(std::move(result));
    });
    auto future = promise->get_future();
    promise.reset();
    if (future.wait_for(std::chrono::seconds(10)) != std::future_status::ready)
      return DeadlineExceeded(method + " was not answered");
    auto bytes = future.get();
    if (!bytes.ok()) return bytes.status();
    Response response;
    EXPECT_TRUE(response.ParseFromString(*bytes));
    return response;
  }
  template <typename Response, typename Request>
  Result<Response> Ask(const std::string& method, const Request& request) {
    return CallAs<Response>(user_, method, request);
  }
  template <typename Request>
  std::shared_ptr<FakeStream> Open(const std::string& method, const Request& request,
                                   std::shared_ptr<FakeContext>* context = nullptr) {
    auto stream = std::make_shared<FakeStream>();
    auto ctx = std::make_shared<FakeContext>(method, user_);
    if (context != nullptr) *context = ctx;
    CapturedHandlers().streams.at(method)(request.SerializeAsString(), ctx, stream);
    return stream;
  }
  // Runs on the objects strand and waits.
  template <typename Fn>
  auto OnStrand(Fn fn) {
    std::promise<decltype(fn())> promise;
    objects_->strand().Post([&] { promise.set_value(fn()); });
    return promise.get_future().get();
  }

  std::string dir_;
  Millis heartbeat_timeout_{45'000};
  control::ImageOptions image_options_;
  control::UploadLimits upload_limits_;
  FakeEngine engine_;
  FakeWorkers workers_;
  FakeLogs logs_;
  std::unique_ptr<control::Objects> objects_;
  std::unique_ptr<blob::BlobStore> blobs_;
  std::unique_ptr<blob::UrlSigner> signer_;
  ServicesPtr services_;
  rpc::Router router_;
  rpc::Caller user_, task_;
};

}  // namespace lydian::api
