#include "build/builder.h"

#include <limits.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "base/clock.h"
#include "base/executor.h"
#include "base/fd.h"
#include "base/log.h"
#include "build/ask_once.h"
#include "build/bases.h"
#include "build/container.h"
#include "build/image_build.h"
#include "build/mount_layer.h"
#include "build/runtime_layers.h"
#include "build/stage_tool.h"
#include "build/step_runner.h"

namespace lydian::build {
namespace {

constexpr size_t kReplayBytes = size_t{1} << 20;
constexpr Millis kKeepFailures{60'000};  // of work that many containers wait for
constexpr size_t kErrorBytes = 3800;     // a status text stays under 4 KiB

// What comes with the executable: beside it, where packages put it, or in the build tree. "" = nowhere.
std::string FindNear(std::initializer_list<const char*> places) {
  char path[PATH_MAX];
  ssize_t size = ::readlink("/proc/self/exe", path, sizeof path);
  if (size <= 0) return "";
  std::string dir(path, static_cast<size_t>(size));
  dir = dir.substr(0, dir.rfind('/'));
  for (const char* place : places) {
    std::error_code error;
    const auto found = std::filesystem::canonical(dir + place, error);
    if (!error) return found.string();
  }
  return "";
}

// Where base recipes lie: as told, with the executable, in the source tree.
std::string FindRecipes(const std::string& told) {
  if (!told.empty()) return told;
  std::string near = FindNear({"/recipes", "/../share/lydian/recipes"});
  return near.empty() ? LYDIAN_RECIPES_DIR : near;
}

std::string FindStageTool() {
  return FindNear({"/lydian-stage", "/../../guest/stage/lydian-stage", "/../libexec/lydian/lydian-stage"});
}

// A build that runs, and who listens.
struct Running {
  explicit Running(std::string id) : image_id(std::move(id)) {}
  const std::string image_id;
  size_t askers = 0;  // build ids that point here; guarded by the builder's mutex
  std::mutex mutex;  // guards all below; held while listeners are called, so that their updates stay in order
  std::map<std::string, std::function<void(BuildUpdate)>> listeners;
  std::deque<LogEntry> log;  // for those who come late
  size_t log_bytes = 0;
  std::optional<BuildResult> result;  // once it has ended
  CancelToken cancel;

  void Log(int fd, const std::string& text) {
    LogEntry entry;
    entry.set_file_descriptor(fd);
    entry.set_data(text);
    entry.set_unix_nanos(SystemClock().UnixNanos());
    std::lock_guard guard(mutex);
    for (const auto& [id, listener] : listeners) Tell(id, listener, entry);
    log_bytes += text.size();
    log.push_back(std::move(entry));
    for (; log_bytes > kReplayBytes && !log.empty(); log.pop_front()) log_bytes -= log.front().data().size();
  }

  static void Tell(const std::string& id, const std::function<void(BuildUpdate)>& listener,
                   const LogEntry& entry) {
    BuildUpdate update;
    update.set_build_id(id);
    *update.mutable_log() = entry;
    listener(std::move(update));
  }
};

void TellResult(const std::string& id, const std::function<void(BuildUpdate)>& listener,
                const BuildResult& result) {
  BuildUpdate update;
  update.set_build_id(id);
  *update.mutable_result() = result;
  listener(std::move(update));
}

BuildResult CancelledResult() {
  BuildResult result;
  result.set_error("the build was cancelled");
  result.set_cancelled(true);
  return result;
}

// Whatever is thrown (there is no memory, most likely) ends this piece of work alone.
template <typename T>
Result<T> Contained(const char* what, const std::function<Result<T>()>& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    LOG_ERROR("work of the builder ended with an exception", {{"what", what}, {"error", error.what()}});
    return ResourceExhausted(std::string(what) +
                             " ended with an error of ours or for want of memory: " + error.what());
  }
}

class BuilderImpl : public Builder {
 public:
  BuilderImpl(BuilderOptions options, image::LayerStore* layers, ContentSource* content, SpawnerRef spawner,
              std::vector<Recipe> recipes)
      : options_(std::move(options)),
        layers_(layers),
        containers_(std::move(spawner)),
        stage_(FindStageTool(), options_.state_dir + "/build/stage", layers, &containers_),
        steps_({Scratch(options_), options_.lend_host_settings, options_.step_memory_bytes}, layers,
               &containers_, &stage_),
        bases_({options_.cache_dir, "", Scratch(options_), options_.debian_mirror}, layers, &steps_, &stage_,
               std::move(recipes)),
        runtime_(options_.cache_dir, layers, &steps_, &bases_, &clock_, &stop_) {
    tools_ = {
        layers_, &steps_, &stage_, &bases_, &runtime_, {}, &step_flights_, &clock_, options_.step_seconds};
    tools_.fetch = [content](const std::string& sha256) -> Result<std::string> {
      if (content == nullptr) return Unavailable("no source of files here");
      return content->Fetch(sha256);
    };
  }

  static std::string Scratch(const BuilderOptions& options) { return options.state_dir + "/build"; }
  Status Prepare() { return stage_.Prepare(); }

  ~BuilderImpl() override {
    stop_.Cancel();
    std::vector<std::shared_ptr<Running>> all;
    {
      std::lock_guard guard(mutex_);
      for (auto& [id, running] : running_) all.push_back(running);
    }
    for (auto& running : all) running->cancel.Cancel();
    builds_.Stop();
    assets_.Stop();
    answers_.Stop();
    runtimes_.Stop();
    clients_.Stop();
    mounts_.Stop();
    clock_.Stop();
  }

  void Start(const BuildSpec& spec, std::function<void(BuildUpdate)> on_update) override {
    std::shared_ptr<Running> running;
    bool first = false;
    size_t before = 0;
    {
      std::lock_guard guard(mutex_);
      auto& slot = running_[spec.image_id()];
      first = slot == nullptr;
      if (first) {
        slot = std::make_shared<Running>(spec.image_id());
        before = unfinished_++;
      }
      running = slot;
      if (by_build_.try_emplace(spec.build_id(), running).second) ++running->askers;
    }
    {
      std::lock_guard guard(running->mutex);
      for (const auto& entry : running->log) Running::Tell(spec.build_id(), on_update, entry);
      if (running->result) return TellResult(spec.build_id(), on_update, *running->result);
      running->listeners[spec.build_id()] = std::move(on_update);
    }
    if (!first) return;
    if (before >= options_.builds_at_once)
      running->Log(3, "Waiting: " + std::to_string(before) +
                          " images are being built on this machine; this one begins when it is its turn.\n");
    builds_.Post([this, running, spec] { RunBuild(*running, spec); });
  }

  void Cancel(const std::string& build_id) override {
    std::shared_ptr<Running> running;
    bool last = false;
    {
      std::lock_guard guard(mutex_);
      auto found = by_build_.find(build_id);
      if (found == by_build_.end()) return;
      running = found->second;
      by_build_.erase(found);
      last = --running->askers == 0;
      // Its step may take a while to end. Who asks for the image meanwhile gets a build that is not
      // cancelled.
      if (last) Forget(*running);
    }
    {
      std::lock_guard guard(running->mutex);
      auto listener = running->listeners.extract(build_id);
      if (!listener.empty()) TellResult(build_id, listener.mapped(), CancelledResult());
    }
    if (last) running->cancel.Cancel();
  }

  void OnExit(const std::string& container_id, int status, bool oom) override {
    containers_.OnExit(container_id, status, oom);
  }

  void RuntimeLayers(const ImageSpec& image, const std::string& client_version, bool dependencies,
                     std::function<void(Result<std::vector<std::string>>)> reply) override {
    answers_.Post([=, this, reply = std::move(reply)] {
      auto wanted = runtime_.Want(image, client_version, dependencies);
      if (!wanted.ok()) return reply(wanted.status());
      if (auto made = runtime_.Made(*wanted)) return reply(*made);
      auto make = [this, wanted = *wanted] {
        return Contained<std::vector<std::string>>("the client's runtime",
                                                   [&] { return runtime_.For(wanted); });
      };
      runtimes_.Ask(wanted->Key(), std::move(make), reply);
    });
  }

  void EnsureClient(const std::string& client_version, std::function<void(Status)> reply) override {
    clients_.Ask(
        client_version,
        [this, client_version] {
          return Contained<bool>("looking for a client", [&]() -> Result<bool> {
            RETURN_IF_ERROR(runtime_.Ensure(client_version));
            return true;
          });
        },
        [reply = std::move(reply)](const Result<bool>& done) { reply(done.status()); });
  }

  void MountLayer(const std::string& mount_id, const std::vector<ContextFile>& files,
                  std::function<void(Result<std::string>)> reply) override {
    mounts_.Post([=, this, reply = std::move(reply)] {
      reply(mount_flights_.Do(mount_id, nullptr, [&] {
        return Contained<std::string>(
            "the mount", [&] { return MakeMountLayer(*layers_, mount_id, files, tools_.fetch); });
      }));
    });
  }

  void MakeBase(const std::string& name, std::function<void(const std::string&)> progress,
                std::function<void(Result<ImageSpec>)> reply) override {
    assets_.Post([=, this, reply = std::move(reply)] {
      LogSink log = [&](int, const std::string& text) {
        if (progress) progress(text);
      };
      auto spec = Contained<ImageSpec>("the base image", [&] { return bases_.Get(name, log, &stop_); });
      if (spec.ok() && !spec->python_version().empty() && !options_.client_version.empty())
        MakeRuntimeAhead(*spec, log);
      reply(std::move(spec));
    });
  }

  Status ImportArchive(const std::string& name, const std::string& path) override {
    return bases_.Import(name, path);
  }
  std::vector<Base> Bases() override { return bases_.List(); }

  std::vector<Held> HeldLayers() override {
    std::vector<Held> held;
    for (auto& id : bases_.Layers()) held.push_back({.layer_id = std::move(id), .base = true});
    Status swept = layers_->SweepRecords([&](const std::string& key, const std::string& value) {
      constexpr std::string_view kRuntime = "runtime/";
      if (!key.starts_with(kRuntime)) return true;
      const std::string version =
          key.substr(kRuntime.size(), key.find('/', kRuntime.size()) - kRuntime.size());
      for (size_t start = 0; start < value.size();) {
        const size_t end = std::min(value.find('\n', start), value.size());
        held.push_back({.layer_id = value.substr(start, end - start), .client_version = version});
        start = end + 1;
      }
      return true;
    });
    if (!swept.ok()) LOG_WARN("the notes on layers can't be read", {{"error", swept}});
    return held;
  }

  Status ForgetLost() override {
    std::set<std::string> there;
    for (auto& layer : layers_->List()) there.insert(std::move(layer.info.id));
    return layers_->SweepRecords([&](const std::string& key, const std::string& value) {
      if (key.starts_with("step/")) return value.empty() || there.contains(value);
      BuildResult result;
      if (!key.starts_with("image/") || !result.ParseFromString(value)) return true;
      const auto& ids = result.image().layer_ids();
      return std::all_of(ids.begin(), ids.end(), [&](const auto& id) { return there.contains(id); });
    });
  }

 private:
  // So that the first container does not wait for it.
  void MakeRuntimeAhead(ImageSpec image, const LogSink& log) {
    image.set_builder_version("2025.06");
    auto wanted = runtime_.Want(image, options_.client_version, true);
    auto layers = wanted.ok() ? runtime_.For(*wanted) : wanted.status();
    if (!layers.ok())
      log(3, "the client's runtime for Python " + image.python_version() +
                 " could not be made yet: " + layers.status().message() + "\n");
  }

  // What an earlier build of the same id left.
  Result<BuildResult> Known(const BuildSpec& spec) {
    ASSIGN_OR_RETURN(std::string record, layers_->GetRecord("image/" + spec.image_id()));
    BuildResult result;
    if (!result.ParseFromString(record))
      return DataLoss("the record of image " + spec.image_id() + " is damaged");
    for (const auto& id : result.image().layer_ids()) RETURN_IF_ERROR(layers_->Find(id).status());
    return result;
  }

  BuildResult Build(Running& running, const BuildSpec& spec) {
    if (auto known = Known(spec); known.ok()) return *known;
    LOG_INFO("image build started", {{"build_id", spec.build_id()}, {"image_id", spec.image_id()}});
    ImageBuild build(
        tools_, spec, [&](int fd, const std::string& text) { running.Log(fd, text); }, &running.cancel);
    BuildResult result;
    std::string libc;
    TimeLimit limit(&clock_, options_.build_seconds, &running.cancel, "the build", kLimitsSetBy);
    auto image = Contained<ImageSpec>("the build", [&] { return build.Run(&libc); });
    if (image.ok()) {
      result.set_ok(true);
      *result.mutable_image() = *image;
      result.set_libc_version(libc);
      Status kept = layers_->PutRecord("image/" + spec.image_id(), result.SerializeAsString());
      if (kept.ok()) return result;
      image = kept;
      result = {};
    }
    Status why = running.cancel.Check();
    if (why.code() == Code::kCancelled) return CancelledResult();
    if (!why.ok()) image = why;
    std::string text = image.status().message();
    if (text.size() > kErrorBytes) text = ToUtf8(text.substr(0, kErrorBytes)) + "...";
    result.set_error(text);
    result.set_retryable(image.status().code() == Code::kUnavailable ||
                         image.status().code() == Code::kResourceExhausted);
    LOG_INFO("image build failed",
             {{"image_id", spec.image_id()}, {"code", CodeName(image.status().code())}});
    return result;
  }

  void RunBuild(Running& running, const BuildSpec& spec) {
    BuildResult result = Build(running, spec);
    {
      // From here on a new request for this id starts afresh.
      std::lock_guard guard(mutex_);
      Forget(running);
      --unfinished_;
      std::erase_if(by_build_, [&](const auto& entry) { return entry.second.get() == &running; });
    }
    std::lock_guard guard(running.mutex);
    for (const auto& [id, listener] : running.listeners) TellResult(id, listener, result);
    running.listeners.clear();
    running.result = std::move(result);
  }

  // mutex_ is held. The place may be another's by now.
  void Forget(const Running& running) {
    auto found = running_.find(running.image_id);
    if (found != running_.end() && found->second.get() == &running) running_.erase(found);
  }

  BuilderOptions options_;
  image::LayerStore* layers_;
  ContainerRunner containers_;
  StageTool stage_;
  StepRunner steps_;
  BaseImages bases_;
  class RuntimeLayers runtime_;
  SingleFlight<std::string> step_flights_, mount_flights_;
  BuildTools tools_;
  CancelToken stop_;
  Strand clock_{"build-clock"};
  std::mutex mutex_;                                          // guards all until the pools
  std::map<std::string, std::shared_ptr<Running>> running_;   // by image id
  std::map<std::string, std::shared_ptr<Running>> by_build_;  // by build id
  size_t unfinished_ = 0;                                     // also those that were cancelled
  // Mounts and runtimes stand apart: a start waits for them, and must not queue behind a base that takes
  // minutes.
  Pool builds_{"build", options_.builds_at_once}, assets_{"assets", 8}, mounts_{"mounts", 4};
  Pool answers_{"answers", 2};  // what is there already: nothing here takes long
  AskOnce<std::vector<std::string>> runtimes_{"runtimes", 8, kKeepFailures};  // by what is wanted
  AskOnce<bool> clients_{"clients", 2, kKeepFailures};                        // by version
};

}  // namespace

Result<std::unique_ptr<Builder>> Builder::Create(BuilderOptions options, image::LayerStore* layers,
                                                 ContentSource* content, SpawnerRef spawner) {
  std::string scratch = options.state_dir + "/build";
  if (Status removed = RemoveTree(scratch); !removed.ok())  // of a builder that was killed
    LOG_WARN("scratch files of builds stay", {{"path", scratch}, {"error", removed}});
  RETURN_IF_ERROR(MakeDirs(scratch, 0700));
  if (Status dropped = WheelCache::DropOld(options.cache_dir); !dropped.ok())
    LOG_WARN("wheels that an earlier version kept stay, unused", {{"error", dropped}});
  std::string dir = FindRecipes(options.recipes_dir);
  auto recipes = LoadRecipes(dir);
  if (!recipes.ok() && recipes.status().code() != Code::kNotFound) return recipes.status();
  if (!recipes.ok()) LOG_WARN("no base recipes were found", {{"folder", dir}});
  auto builder = std::make_unique<BuilderImpl>(std::move(options), layers, content, std::move(spawner),
                                               recipes.ok() ? *recipes : std::vector<Recipe>{});
  RETURN_IF_ERROR(builder->Prepare());
  return std::unique_ptr<Builder>(std::move(builder));
}

}  // namespace lydian::build
