// The worker's end of the link, with a control that the test plays.
#include "worker/link.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <mutex>

#include "base/fd.h"
#include "base/ids.h"
#include "rpc/router.h"
#include "rpc/server.h"
#include "worker/link_limits.h"

namespace lydian::worker {
namespace {

using namespace std::chrono_literals;

class LinkTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_).ok());
    auto router = std::make_shared<rpc::Router>();
    router->AddBidi(
        "lydian.WorkerLink", "Attach", [this](const rpc::Ctx&, std::shared_ptr<rpc::RawStream> out) {
          return rpc::RawReader{.on_message = [this, out](std::string_view bytes) -> Status {
                                  FromWorker message;
                                  message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
                                  Take(std::move(message), out);
                                  return {};
                                },
                                .on_end = nullptr};
        });
    auto listener = rpc::Listen("unix:" + dir_ + "/link");
    ASSERT_TRUE(listener.ok());
    rpc::ServerOptions options;
    options.router = router;
    server_ = rpc::Server::Start(std::move(options), listener->get()).value();
    Link::Hooks hooks;
    hooks.make_hello = [] {
      WorkerHello hello;
      hello.set_worker_id("wk-1");
      return hello;
    };
    hooks.on_welcome = [this](const Welcome&) {
      FromWorker message;
      for (Holdings& page : PagesOf(held_, {})) {
        *message.mutable_holdings() = std::move(page);
        link_->Send(message);
      }
    };
    hooks.on_down = [] {};
    hooks.on_message = [](const ToWorker&) {};
    link_ =
        std::make_unique<Link>(rpc::Channel::Create("unix:" + dir_ + "/link"), &strand_, std::move(hooks));
  }
  void TearDown() override {
    link_->Stop();
    {
      std::lock_guard lock(mutex_);
      greeted_.reset();
    }
    server_->Stop(100);
    strand_.Stop();
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  void Take(FromWorker message, const std::shared_ptr<rpc::RawStream>& out) {
    std::lock_guard lock(mutex_);
    largest_ = std::max(largest_, message.ByteSizeLong());
    if (message.has_hello()) greeted_ = out;
    came_.push_back(std::move(message));
    changed_.notify_all();
  }
  void Greet() {
    std::lock_guard lock(mutex_);
    ToWorker message;
    message.mutable_welcome();
    greeted_->Write(message.SerializeAsString());
  }
  bool Wait(const std::function<bool()>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, 10s, condition);
  }
  void OnStrand(const std::function<void()>& fn) {
    std::promise<void> done;
    strand_.Post([&] {
      fn();
      done.set_value();
    });
    done.get_future().wait();
  }

  const std::string dir_ = testing::TempDir() + "/link-" + RandomHex(6);
  std::mutex mutex_;  // guards what control has
  std::condition_variable changed_;
  std::vector<FromWorker> came_;
  size_t largest_ = 0;
  std::shared_ptr<rpc::RawStream> greeted_;
  std::unique_ptr<rpc::Server> server_;
  Strand strand_{"worker"};
  std::vector<RunningTask> held_;  // on the strand
  std::unique_ptr<Link> link_;
};

// What happens while control thinks about the hello is in what it hears after its welcome.
TEST_F(LinkTest, WhatIsHeldIsSaidWhenTheWelcomeComes) {
  held_.emplace_back().set_task_id("ta-1");
  held_[0].add_held()->set_input_id("in-1");
  link_->Start();
  ASSERT_TRUE(Wait([&] { return came_.size() == 1; }));
  OnStrand([&] {
    held_[0].clear_held();  // given back, and the link is down for saying so
    FromWorker back;
    back.mutable_give_back()->add_leases()->set_input_id("in-1");
    link_->Send(back);
  });
  Greet();
  ASSERT_TRUE(Wait([&] { return came_.size() == 2; }));
  ASSERT_TRUE(came_[1].has_holdings());
  ASSERT_EQ(came_[1].holdings().tasks_size(), 1);
  EXPECT_EQ(came_[1].holdings().tasks(0).held_size(), 0);
  EXPECT_TRUE(came_[1].holdings().last());
}

TEST_F(LinkTest, GatheredOutputsAreCutByTheirBytes) {
  link_->Start();
  ASSERT_TRUE(Wait([&] { return came_.size() == 1; }));
  Greet();
  ASSERT_TRUE(Wait([&] { return came_.size() == 2; }));
  OnStrand([&] {
    Output output;
    output.set_result(std::string(size_t{6} << 20, 'r'));
    for (int i = 0; i < 45; ++i)
      link_->SendOutput(output, /*soon=*/true);  // 270 MiB: twice what control takes
  });
  ASSERT_TRUE(Wait([&] {
    int outputs = 0;
    for (const FromWorker& message : came_) outputs += message.outputs().outputs_size();
    return outputs == 45;
  }));
  EXPECT_LE(largest_, size_t{7} << 20);
}

}  // namespace
}  // namespace lydian::worker
