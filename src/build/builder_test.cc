// The builder's bookkeeping, with containers that are faked.
#include "build/builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <mutex>
#include <set>

#include "base/ids.h"
#include "build/mount_layer.h"
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

  // The first container stands still from `began_` to `end_`.
  void HoldFirst() {
    spawner_->on_create = [this] {
      if (++containers_ == 1) {
        began_.set_value();
        end_.get_future().wait();
      }
      spawner_->End(0);
    };
  }

  std::string Log() {
    std::lock_guard guard(mutex_);
    return log_;
  }

  std::string dir_;
  std::mutex mutex_;  // guards log_
  std::string log_;
  std::promise<void> began_, end_;
  int containers_ = 0;
  std::shared_ptr<FakeSpawner> spawner_ = std::make_shared<FakeSpawner>();
  std::unique_ptr<image::LayerStore> layers_;
  std::unique_ptr<Builder> builder_;
};

TEST_F(BuilderTest, WhoAsksWhileACancelledBuildEndsGetsOneOfTheirOwn) {
  HoldFirst();
  auto first = Start("bu-1");
  began_.get_future().wait();
  builder_->Cancel("bu-1");
  EXPECT_TRUE(first.get().cancelled());
  auto second = Start("bu-2");
  end_.set_value();
  BuildResult result = second.get();
  EXPECT_FALSE(result.cancelled());
  EXPECT_EQ(containers_, 2);  // the step was taken up
}

TEST_F(BuilderTest, ABuildThatSomebodyStillWaitsForGoesOn) {
  HoldFirst();
  auto first = Start("bu-1"), second = Start("bu-2");
  began_.get_future().wait();
  builder_->Cancel("bu-1");
  EXPECT_TRUE(first.get().cancelled());
  auto third = Start("bu-3");
  end_.set_value();
  EXPECT_FALSE(second.get().cancelled());
  EXPECT_FALSE(third.get().cancelled());
}

TEST_F(BuilderTest, ABuildSaysThatItWaitsForOthers) {
  Create(1);
  HoldFirst();
  auto first = Start("bu-1", "im-1");
  began_.get_future().wait();
  EXPECT_THAT(Log(), Not(HasSubstr("Waiting")));
  auto second = Start("bu-2", "im-2");
  EXPECT_THAT(Log(), HasSubstr("Waiting: 1 images are being built on this machine"));
  end_.set_value();
  first.get();
  second.get();
}

TEST_F(BuilderTest, ManyNamesOfOneFileInAMountAreOneFile) {
  const std::string content = dir_ + "/content";
  ASSERT_TRUE(WriteFileAtomic(content, "print()").ok());
  std::vector<ContextFile> files;
  for (int i = 0; i < 200; ++i) {
    ContextFile& file = files.emplace_back();
    file.set_path("/app/" + std::to_string(i) + ".py");
    file.set_sha256(i % 2 == 0 ? "even" : "odd");
    file.set_mode(0644);
  }
  files.push_back(files[0]);  // the last of a name counts
  files.back().set_mode(0755);
  auto id = MakeMountLayer(*layers_, "mo-1", files, [&](const std::string&) { return content; });
  ASSERT_TRUE(id.ok()) << id.status();
  auto tree = layers_->Open(*id);
  ASSERT_TRUE(tree.ok());
  std::set<ino_t> seen;
  for (const auto& file : files) {
    auto info = tree->Stat(file.path());
    ASSERT_TRUE(info.ok()) << info.status();
    seen.insert(info->st_ino);
  }
  EXPECT_EQ(seen.size(), 3u) << "two contents, one of them also with another mode";
  EXPECT_EQ(tree->Stat("/app/0.py")->st_mode & 07777, 0755u);
}

}  // namespace
}  // namespace lydian::build
