// The builder's bookkeeping, with containers that are faked.
#include "build/builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <mutex>

#include "base/ids.h"
#include "build/testing.h"

namespace lydian::build {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class BuilderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = ::testing::TempDir() + "builder-" + RandomHex(6);
    auto layers = image::LayerStore::OpenFolders(dir_ + "/layers");
    ASSERT_TRUE(layers.ok()) << layers.status();
    layers_ = std::move(layers).value();
    Create(8);
  }
  void Create(size_t builds_at_once) {
    auto builder = Builder::Create(
        {.state_dir = dir_, .recipes_dir = LYDIAN_RECIPES_DIR, .builds_at_once = builds_at_once},
        layers_.get(), nullptr, [this] { return spawner_; });
    ASSERT_TRUE(builder.ok()) << builder.status();
    builder_ = std::move(builder).value();
    spawner_->on_exit = [this](const std::string& id, int status) { builder_->OnExit(id, status, false); };
  }
  void TearDown() override {
    builder_.reset();
    layers_.reset();
    (void)RemoveTree(dir_);
  }

  std::future<BuildResult> Start(const std::string& build_id, const std::string& image_id = "im-1") {
    BuildSpec spec;
    spec.set_build_id(build_id);
    spec.set_image_id(image_id);
    for (const char* line : {"FROM scratch", "WORKDIR /x"}) spec.add_dockerfile_commands(line);
    auto done = std::make_shared<std::promise<BuildResult>>();
    auto answer = done->get_future();
    builder_->Start(spec, [this, done](const BuildUpdate& update) {
      {
        std::lock_guard guard(mutex_);
        log_ += update.log().data();
      }
      if (update.has_result()) done->set_value(update.result());
    });
    return answer;
  }

  std::string Log() {
    std::lock_guard guard(mutex_);
    return log_;
  }

  std::string dir_;
  std::mutex mutex_;  // guards log_
  std::string log_;
  std::shared_ptr<FakeSpawner> spawner_ = std::make_shared<FakeSpawner>();
  std::unique_ptr<image::LayerStore> layers_;
  std::unique_ptr<Builder> builder_;
};

TEST_F(BuilderTest, WhoAsksWhileACancelledBuildEndsGetsOneOfTheirOwn) {
  std::promise<void> began, end;
  int containers = 0;
  spawner_->on_create = [&] {
    if (++containers == 1) {
      began.set_value();
      end.get_future().wait();
    }
    spawner_->End(0);
  };
  auto first = Start("bu-1");
  began.get_future().wait();
  builder_->Cancel("bu-1");
  EXPECT_TRUE(first.get().cancelled());
  auto second = Start("bu-2");
  end.set_value();
  BuildResult result = second.get();
  EXPECT_FALSE(result.cancelled());
  EXPECT_EQ(containers, 2);  // the step was taken up
}

TEST_F(BuilderTest, ABuildThatSomebodyStillWaitsForGoesOn) {
  std::promise<void> began, end;
  spawner_->on_create = [&] {
    began.set_value();
    end.get_future().wait();
    spawner_->End(0);
  };
  auto first = Start("bu-1"), second = Start("bu-2");
  began.get_future().wait();
  builder_->Cancel("bu-1");
  EXPECT_TRUE(first.get().cancelled());
  auto third = Start("bu-3");
  end.set_value();
  EXPECT_FALSE(second.get().cancelled());
  EXPECT_FALSE(third.get().cancelled());
}

TEST_F(BuilderTest, ABuildSaysThatItWaitsForOthers) {
  Create(1);
  std::promise<void> began, end;
  int containers = 0;
  spawner_->on_create = [&] {
    if (++containers == 1) {
      began.set_value();
      end.get_future().wait();
    }
    spawner_->End(0);
  };
  auto first = Start("bu-1", "im-1");
  began.get_future().wait();
  EXPECT_THAT(Log(), Not(HasSubstr("Waiting")));
  auto second = Start("bu-2", "im-2");
  EXPECT_THAT(Log(), HasSubstr("Waiting: 1 images are being built on this machine"));
  end.set_value();
  first.get();
  second.get();
}

}  // namespace
}  // namespace lydian::build
