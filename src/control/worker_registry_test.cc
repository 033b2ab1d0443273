#include "control/worker_registry.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <mutex>

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class NoEvents : public WorkerEvents {
 public:
  void OnWorkerHello(const std::string&, const WorkerHello&, Welcome*) override {}
  void OnWorkerReady(const std::string&) override {}
  void OnWorkerMessage(const std::string&, FromWorker) override { ++messages; }
  void OnWorkerCapacity(const std::string&) override {}
  void OnWorkerLost(const std::string&) override { lost.set_value(); }
  std::atomic<int> messages{0};
  std::promise<void> lost;
};

class WorkerRegistryTest : public testing::Test {
 protected:
  WorkerRegistryTest() { registry_.SetEvents(&events_); }
  ~WorkerRegistryTest() override { strand_.Stop(); }

  uint64_t Connect(std::vector<std::string> builds = {}, uint32_t protocol = 1) {
    uint64_t session = registry_.Open(
        [this](const ToWorker& message) {
          std::lock_guard lock(mutex_);
          sent_.push_back(message);
          changed_.notify_all();
        },
        [this](Status status) {
          std::lock_guard lock(mutex_);
          closed_.push_back(status);
          changed_.notify_all();
        });
    FromWorker hello;
    hello.mutable_hello()->set_protocol(protocol);
    hello.mutable_hello()->set_worker_id("wk-1");
    hello.mutable_hello()->set_epoch(1);
    for (const std::string& build : builds) hello.mutable_hello()->add_builds(build);
    registry_.Deliver(session, hello);
    return session;
  }
  bool WaitFor(ToWorker::KindCase kind) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 3s, [&] {
      for (const ToWorker& message : sent_) {
        if (message.kind_case() == kind) return true;
      }
      return false;
    });
  }
  void Clear() {
    std::lock_guard lock(mutex_);
    sent_.clear();
  }

  NoEvents events_;
  Strand strand_{"test"};
  WorkerRegistry registry_{strand_, Millis(100)};
  std::mutex mutex_;  // guards the two below
  std::condition_variable changed_;
  std::vector<ToWorker> sent_;
  std::vector<Status> closed_;
};

TEST_F(WorkerRegistryTest, ABuildWaitsForAWorkerAndTellsItsResult) {
  std::promise<BuildResult> done;
  BuildSpec spec;
  spec.set_build_id("bd-1");
  registry_.StartBuild(spec, [&](const BuildUpdate& update) {
    if (update.has_result()) done.set_value(update.result());
  });
  uint64_t session = Connect();
  ASSERT_TRUE(WaitFor(ToWorker::kStartBuild));
  FromWorker result;
  result.mutable_build()->set_build_id("bd-1");
  result.mutable_build()->mutable_result()->set_ok(true);
  registry_.Deliver(session, result);
  EXPECT_TRUE(done.get_future().get().ok());
}

TEST_F(WorkerRegistryTest, ABuildOfARestartedWorkerMayBeTriedAgain) {
  std::promise<BuildResult> done;
  uint64_t session = Connect();
  BuildSpec spec;
  spec.set_build_id("bd-1");
  registry_.StartBuild(spec, [&](const BuildUpdate& update) { done.set_value(update.result()); });
  ASSERT_TRUE(WaitFor(ToWorker::kStartBuild));
  registry_.Closed(session);
  Connect({"bd-1"});  // the connection alone was broken: it goes on
  auto future = done.get_future();
  EXPECT_EQ(future.wait_for(30ms), std::future_status::timeout);
  Connect();
  BuildResult result = future.get();
  EXPECT_FALSE(result.ok());
  EXPECT_TRUE(result.retryable());
}

TEST_F(WorkerRegistryTest, ABuildThatNobodyKnowsIsCancelled) {
  Connect({"bd-old"});
  EXPECT_TRUE(WaitFor(ToWorker::kCancelBuild));
}

TEST_F(WorkerRegistryTest, TwoWhoWantOneAssetAskOnce) {
  std::promise<Status> first, second;
  registry_.Ensure(EnsureAsset::CLIENT, "1.6.4", [&](Status status) { first.set_value(status); });
  registry_.Ensure(EnsureAsset::CLIENT, "1.6.4", [&](Status status) { second.set_value(status); });
  uint64_t session = Connect();
  ASSERT_TRUE(WaitFor(ToWorker::kEnsureAsset));
  FromWorker update;
  {
    std::lock_guard lock(mutex_);
    int asked = 0;
    for (const ToWorker& message : sent_) {
      if (!message.has_ensure_asset()) continue;
      ++asked;
      update.mutable_asset()->set_request_id(message.ensure_asset().request_id());
    }
    EXPECT_EQ(asked, 1);
  }
  update.mutable_asset()->set_error("no such version");
  update.mutable_asset()->set_error_code(5);
  registry_.Deliver(session, update);
  EXPECT_EQ(first.get_future().get().code(), Code::kNotFound);
  EXPECT_EQ(second.get_future().get().message(), "no such version");
}

TEST_F(WorkerRegistryTest, AWorkerIsLostAfterTheGraceAlone) {
  uint64_t session = Connect();
  ASSERT_TRUE(WaitFor(ToWorker::kWelcome));
  registry_.Closed(session);
  auto lost = events_.lost.get_future();
  EXPECT_EQ(lost.wait_for(50ms), std::future_status::timeout);
  EXPECT_EQ(lost.wait_for(3s), std::future_status::ready);
}

TEST_F(WorkerRegistryTest, AnOldStreamIsReplaced) {
  uint64_t old = Connect();
  ASSERT_TRUE(WaitFor(ToWorker::kWelcome));
  Clear();
  Connect();
  ASSERT_TRUE(WaitFor(ToWorker::kWelcome));
  FromWorker message;
  message.mutable_demand()->set_task_id("ta-1");
  registry_.Deliver(old, message);
  registry_.Closed(old);
  std::this_thread::sleep_for(200ms);  // past the grace: the newer one keeps it
  EXPECT_EQ(events_.messages, 0);
  EXPECT_EQ(events_.lost.get_future().wait_for(0ms), std::future_status::timeout);
}

TEST_F(WorkerRegistryTest, AnotherProtocolIsRefused) {
  Connect({}, 2);
  std::unique_lock lock(mutex_);
  ASSERT_TRUE(changed_.wait_for(lock, 3s, [&] { return !closed_.empty(); }));
  EXPECT_EQ(closed_[0].code(), Code::kFailedPrecondition);
}

}  // namespace
}  // namespace lydian::control
