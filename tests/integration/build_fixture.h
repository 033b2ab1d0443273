// What the builder's tests stand on: one spawner, one layer store, one builder for a whole suite. Needs root,
// mmdebstrap and a Debian mirror; what costs minutes is cached in LYDIAN_TEST_CACHE (default
// /var/cache/lydian).
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <iostream>
#include <map>

#include "base/ids.h"
#include "build/builder.h"
#include "forked_spawner.h"
#include "spawner/client.h"
#include "worker/dns_relay.h"

namespace lydian::build {

class Files : public ContentSource {
 public:
  explicit Files(std::string dir) : dir_(std::move(dir)) {}
  std::string Add(const std::string& content) {
    std::string sha = Sha256Hex(content);
    EXPECT_TRUE(WriteFileAtomic(dir_ + "/" + sha, content).ok());
    return sha;
  }
  Result<std::string> Fetch(const std::string& sha256) override {
    if (!Exists(dir_ + "/" + sha256)) return NotFound("no object " + sha256);
    return dir_ + "/" + sha256;
  }

 private:
  std::string dir_;
};

extern std::string g_dir, g_instance;
extern std::unique_ptr<testing::ForkedSpawner> g_spawner;

// One state for all tests: a base takes seconds even when its parts are cached.
struct World {
  std::string dir = g_dir;
  std::unique_ptr<image::LayerStore> layers;
  std::unique_ptr<Files> files;
  std::unique_ptr<Builder> builder;
  std::atomic<Builder*> listening = nullptr;
  std::unique_ptr<worker::DnsRelay> dns;
  std::shared_ptr<spawner::Client> spawner;
  std::atomic<int> asked = 0;  // once a container

  void Start() {
    EXPECT_TRUE(MakeDirs(dir + "/files").ok());
    auto store = image::LayerStore::OpenFolders(dir + "/layers");
    ASSERT_TRUE(store.ok()) << store.status();
    layers = std::move(*store);
    files = std::make_unique<Files>(dir + "/files");
    spawner::ClientEvents events;
    // By a pointer that stays while the builder ends: it waits for its containers then.
    events.on_exit = [this](const ExitEvent& event) {
      if (Builder* to = listening.load())
        to->OnExit(event.container_id(), event.status(), event.oom_killed());
    };
    auto client = spawner::Client::Connect(g_spawner->socket(), std::move(events));
    ASSERT_TRUE(client.ok()) << client.status();
    spawner = std::move(*client);
    dns = std::make_unique<worker::DnsRelay>(worker::DnsRelay::Options{.bridge = g_instance});
    dns->Open();
    const char* cache = std::getenv("LYDIAN_TEST_CACHE");
    auto made = Builder::Create({.state_dir = dir,
                                 .cache_dir = cache ? cache : "/var/cache/lydian",
                                 .client_version = "1.6.4",
                                 .lend_host_settings = true},
                                layers.get(), files.get(), [this] {
                                  ++asked;
                                  return spawner;
                                });
    ASSERT_TRUE(made.ok()) << made.status();
    builder = std::move(*made);
    listening = builder.get();
  }

  ~World() {
    spawner = nullptr;
    builder = nullptr;
    layers = nullptr;
  }
};

class BuildTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (::geteuid() != 0) return;
    world_ = new World;
    world_->Start();
  }
  static void TearDownTestSuite() {
    delete world_;
    world_ = nullptr;
  }
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_TRUE(world_ != nullptr && world_->builder != nullptr);
  }

  static ImageSpec Base(const std::string& name) {
    std::promise<Result<ImageSpec>> done;
    world_->builder->MakeBase(
        name, [](const std::string& text) { std::cerr << text; },
        [&](Result<ImageSpec> spec) { done.set_value(std::move(spec)); });
    auto spec = done.get_future().get();
    EXPECT_TRUE(spec.ok()) << spec.status();
    return spec.ok() ? *spec : ImageSpec{};
  }

  struct Built {
    BuildResult result;
    std::string log;
  };
  static Built Build(BuildSpec spec) {
    auto log = std::make_shared<std::string>();
    auto done = std::make_shared<std::promise<BuildResult>>();
    if (spec.build_id().empty()) spec.set_build_id(NewId("bu"));
    if (spec.image_id().empty()) spec.set_image_id(NewId("im"));
    if (spec.builder_version().empty()) spec.set_builder_version("2025.06");
    world_->builder->Start(spec, [=](BuildUpdate update) {
      if (update.has_log()) *log += update.log().data();
      if (update.has_result()) done->set_value(update.result());
    });
    BuildResult result = done->get_future().get();
    return {result, *log};
  }
  static BuildSpec Spec(const std::vector<std::string>& lines) {
    BuildSpec spec;
    for (const auto& line : lines) spec.add_dockerfile_commands(line);
    return spec;
  }
  static void AddContext(BuildSpec& spec, const std::string& path, const std::string& content,
                         uint32_t mode = 0644) {
    ContextFile* file = spec.add_context();
    file->set_path(path);
    file->set_sha256(world_->files->Add(content));
    file->set_mode(mode);
    file->set_size(content.size());
  }
  static std::string Path(const std::string& layer) {
    auto info = world_->layers->Find(layer);
    EXPECT_TRUE(info.ok()) << info.status();
    return info.ok() ? info->path : "/nonexistent";
  }

  // How many containers were made so far.
  static int Containers() { return world_->asked; }

  static World* world_;
};

}  // namespace lydian::build
