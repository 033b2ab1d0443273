#include "build/image_build.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "base/ids.h"
#include "base/log.h"

namespace lydian::build {
namespace {

constexpr int kFindPythonSeconds = 60;
constexpr size_t kMostVersionText = 4096, kMostVersion = 64;
constexpr const char* kUvImage = "ghcr.io/astral-sh/uv";

std::string EnvValue(const ImageConfig& config, const std::string& key) {
  for (const auto& entry : config.env())
    if (entry.compare(0, key.size() + 1, key + "=") == 0) return entry.substr(key.size() + 1);
  return "";
}

std::string PathOf(const ImageConfig& config) {
  std::string path = EnvValue(config, "PATH");
  return path.empty() ? image::kDefaultPath : path;
}

std::string ConfigDigest(const ImageConfig& config) {
  std::string bytes;
  (void)config.SerializeToString(&bytes);  // repeated and scalar fields only: one form
  return Sha256Hex(bytes);
}

// A digest of secrets: a step that used others is another step. Their names and values are in no log and no
// layer.
std::string SecretDigest(const BuildSpec& spec) {
  std::map<std::string, std::string> sorted(spec.env().begin(), spec.env().end());
  std::string all;
  for (const auto& [key, value] : sorted)
    all += std::to_string(key.size()) + ":" + key + std::to_string(value.size()) + ":" + value;
  return sorted.empty() ? "" : Sha256Hex(all);
}

std::string FirstLine(const std::string& text, size_t limit = 200) {
  std::string line = text.substr(0, text.find('\n'));
  return line.size() > limit ? ToUtf8(line.substr(0, limit)) + "..." : line;
}

}  // namespace

ImageBuild::ImageBuild(const BuildTools& tools, const BuildSpec& spec, LogSink log, CancelToken* cancel)
    : tools_(tools), spec_(spec), log_(std::move(log)), cancel_(cancel) {}

Result<ImageSpec> ImageBuild::Run(std::string* libc_version) {
  ASSIGN_OR_RETURN(image::Dockerfile file, image::ParseDockerfile({spec_.dockerfile_commands().begin(),
                                                                   spec_.dockerfile_commands().end()}));
  std::map<std::string, std::string> args(spec_.build_args().begin(), spec_.build_args().end());
  ASSIGN_OR_RETURN(image::Plan plan, image::MakePlan(file, args));
  for (size_t stage : plan.Needed()) RETURN_IF_ERROR(BuildStage(plan, stage));
  Tree& tree = stages_[plan.stages.size() - 1];
  ImageSpec image;
  image.set_image_id(spec_.image_id());
  for (const auto& id : tree.layer_ids) image.add_layer_ids(id);
  *image.mutable_config() = tree.config;
  image.set_builder_version(spec_.builder_version());
  if (tree.python_version.empty() || PythonTouched(tree)) {
    auto found = FindPython(tree);
    if (cancel_->cancelled()) return cancel_->Check();
    if (!found.ok())
      LOG_WARN("looking for an image's Python failed",
               {{"image_id", spec_.image_id()}, {"error", found.status()}});
    tree.python_version = found.ok() ? *found : "";
  }
  image.set_python_version(tree.python_version);
  auto libc = Libc(tree);
  if (cancel_->cancelled()) return cancel_->Check();
  if (!libc.ok())
    LOG_WARN("looking for an image's C library failed",
             {{"image_id", spec_.image_id()}, {"error", libc.status()}});
  *libc_version = libc.ok() ? *libc : "";
  return image;
}

Result<ImageBuild::Tree> ImageBuild::NamedTree(const std::string& name) {
  if (auto given = spec_.bases().find(name); given != spec_.bases().end()) {
    Tree tree{.layer_ids = {given->second.layer_ids().begin(), given->second.layer_ids().end()},
              .config = given->second.config(),
              .python_version = given->second.python_version()};
    for (const auto& id : tree.layer_ids)
      if (Status found = tools_.layers->Find(id).status(); !found.ok())
        return std::move(found).With("base image " + name);
    return tree;
  }
  if (name == "scratch") return Tree{};
  std::string repository = name.substr(0, name.find_first_of(":@"));
  Result<ImageSpec> spec = tools_.bases->Get(name, log_, cancel_);
  if (!spec.ok() && spec.status().code() == Code::kNotFound && repository == kUvImage) {
    size_t colon = name.find(':');
    spec = tools_.runtime->Uv(colon == std::string::npos ? "latest" : name.substr(colon + 1), log_, cancel_);
  }
  if (!spec.ok()) return spec.status();
  return Tree{.layer_ids = {spec->layer_ids().begin(), spec->layer_ids().end()},
              .config = spec->config(),
              .python_version = spec->python_version()};
}

Result<ImageBuild::Tree> ImageBuild::BaseTree(const image::Plan& plan, size_t stage) {
  const std::string& base = plan.stages[stage].base;
  if (int earlier = plan.Find(base, stage);
      earlier >= 0 && !std::isdigit(static_cast<unsigned char>(base[0])))
    return stages_.at(static_cast<size_t>(earlier));
  auto tree = NamedTree(base);
  if (!tree.ok()) return tree.status();
  std::string layers;
  for (const auto& id : tree->layer_ids) layers += id + "\n";
  // A build that must not use the cache has a chain that no other has.
  tree->chain = image::ChainDigest(layers, ConfigDigest(tree->config),
                                   // What one workspace's steps made is nobody else's.
                                   spec_.builder_version() + " " + spec_.workspace_id() +
                                       (spec_.ignore_cache() ? " alone " + spec_.image_id() : ""));
  tree->base_layers = tree->layer_ids.size();
  tree->base_path = PathOf(tree->config);
  return tree;
}

Status ImageBuild::BuildStage(const image::Plan& plan, size_t stage) {
  const auto& from = plan.stages[stage].from;
  Say("=> " + from.text);
  auto base = BaseTree(plan, stage);
  if (!base.ok()) return base.status();
  Tree tree = std::move(*base);
  std::map<std::string, std::string> args(spec_.build_args().begin(), spec_.build_args().end());
  image::StageState state(tree.config, plan, args);
  for (const auto& instruction : plan.stages[stage].instructions) {
    RETURN_IF_ERROR(cancel_->Check());
    ASSIGN_OR_RETURN(image::Step step, state.Apply(instruction));
    if (step.kind != image::Step::kConfig) {
      Status done = DoStep(plan, stage, instruction, std::move(step), tree);
      if (!done.ok()) return done;
    }
    tree.config = state.config();
  }
  stages_[stage] = std::move(tree);
  return OkStatus();
}

Status ImageBuild::DoStep(const image::Plan& plan, size_t stage, const image::Instruction& instruction,
                          image::Step step, Tree& tree) {
  Say("=> " + step.text);
  std::string inputs;
  std::vector<ContextMatch> matches;
  Tree source;
  std::function<Status(image::LayerTransaction&)> make;
  if (step.kind == image::Step::kRun) {
    inputs = SecretDigest(spec_);
    make = [&](image::LayerTransaction& t) { return RunCommand(step, tree, t); };
  } else if (step.kind == image::Step::kMakeDir) {
    make = [&](image::LayerTransaction& t) {
      return MakeWorkdir(*tools_.stage, {tree.layer_ids, t.dir(), {}}, step, cancel_);
    };
  } else if (step.from.empty()) {
    if (!context_) context_.emplace(spec_.context());
    auto found = context_->Match(step.sources, cancel_);
    if (!found.ok()) return image::InstructionError(instruction, found.status().message());
    matches = std::move(*found);
    inputs = ContextDigest(matches);
    make = [&](image::LayerTransaction& t) {
      return CopyFromContext(*tools_.stage, {tree.layer_ids, t.dir(), {}}, step, matches, tools_.fetch,
                             cancel_);
    };
  } else {
    if (int index = plan.Find(step.from, stage); index >= 0) {
      source = stages_.at(static_cast<size_t>(index));
    } else {
      auto named = NamedTree(step.from);
      if (!named.ok())
        return image::InstructionError(instruction, "--from=" + step.from + ": " + named.status().message());
      source = std::move(*named);
    }
    for (const auto& id : source.layer_ids) inputs += id + "\n";
    make = [&](image::LayerTransaction& t) {
      return CopyFromImage(*tools_.stage, {tree.layer_ids, t.dir(), source.layer_ids}, step, cancel_);
    };
  }
  std::string chain = image::ChainDigest(tree.chain, step.canonical, inputs);
  auto layer = CachedStep(chain, step.text, tree, make);
  if (!layer.ok()) {
    if (step.kind == image::Step::kRun) return layer.status();
    return image::InstructionError(instruction, layer.status().message());
  }
  if (!layer->empty()) tree.layer_ids.push_back(*layer);
  tree.chain = chain;
  return OkStatus();
}

Result<std::string> ImageBuild::CachedStep(const std::string& chain, const std::string& text,
                                           const Tree& tree,
                                           const std::function<Status(image::LayerTransaction&)>& make) {
  std::string key = "step/" + chain;
  auto known = [&]() -> Result<std::string> {
    ASSIGN_OR_RETURN(std::string id, tools_.layers->GetRecord(key));
    if (!id.empty()) RETURN_IF_ERROR(tools_.layers->Find(id).status());
    return id;
  };
  if (auto id = known(); id.ok()) {
    Say("   cached");
    return id;
  }
  ASSIGN_OR_RETURN(auto pin, tools_.layers->Pin(tree.layer_ids));
  return tools_.step_flights->Do(chain, cancel_, [&]() -> Result<std::string> {
    if (auto id = known(); id.ok()) return id;
    ASSIGN_OR_RETURN(auto transaction, tools_.layers->Begin());
    RETURN_IF_ERROR(make(*transaction));
    std::string id;
    ASSIGN_OR_RETURN(bool empty, EmptyUpper(*transaction));
    if (!empty) {
      ASSIGN_OR_RETURN(image::LayerInfo info,
                       transaction->Commit(DigestId("ly", "step " + chain), FirstLine(text)));
      id = info.id;
    }
    RETURN_IF_ERROR(tools_.layers->PutRecord(key, id));
    return id;
  });
}

Status ImageBuild::RunCommand(const image::Step& step, const Tree& tree,
                              image::LayerTransaction& transaction) {
  StepCommand command{.layer_ids = tree.layer_ids,
                      .transaction = &transaction,
                      .argv = step.argv,
                      .env = step.env,
                      .secrets = {spec_.env().begin(), spec_.env().end()},
                      .workdir = step.workdir,
                      .user = step.user,
                      .script = step.script,
                      .no_network = step.no_network,
                      .limits = spec_.limits()};
  TimeLimit limit(tools_.clock, tools_.step_seconds, cancel_, "the step \"" + FirstLine(step.text) + "\"",
                  kLimitsSetBy);
  ASSIGN_OR_RETURN(RunResult result, tools_.steps->Run(command, log_, cancel_));
  if (result.ok()) return OkStatus();
  std::string tail = result.tail;
  while (tail.ends_with("\n")) tail.pop_back();
  std::string shown = step.text.size() > 800 ? ToUtf8(step.text.substr(0, 800)) + "..." : step.text;
  return FailedPrecondition("the step \"" + shown + "\" failed: " + result.How() +
                            (tail.empty() ? "" : "\nThe end of its output:\n" + tail));
}

// Whether a layer above the base has another `python` on PATH, or PATH is another.
bool ImageBuild::PythonTouched(const Tree& tree) const {
  if (PathOf(tree.config) != tree.base_path) return true;
  std::set<std::string> names;
  std::istringstream path(PathOf(tree.config));
  for (std::string folder; std::getline(path, folder, ':');)
    for (const char* name : {"/python", "/python3"}) names.insert(folder + name);
  for (size_t i = tree.base_layers; i < tree.layer_ids.size(); ++i) {
    auto layer = tools_.layers->Open(tree.layer_ids[i]);
    if (!layer.ok()) return true;
    for (const auto& name : names) {
      // A link on the way may lead to another one.
      auto found = layer->Stat(name);
      if (found.ok() || found.status().error() != ENOENT) return true;
    }
  }
  return false;
}

Result<std::string> ImageBuild::FindPython(const Tree& tree) {
  if (tree.layer_ids.empty()) return std::string();
  StepCommand command{.layer_ids = tree.layer_ids};
  command.argv = {"/bin/sh", "-c", "python --version 2>&1 || python3 --version 2>&1"};
  command.env = {tree.config.env().begin(), tree.config.env().end()};
  if (EnvValue(tree.config, "PATH").empty())
    command.env.push_back(std::string("PATH=") + image::kDefaultPath);
  command.no_network = true;
  command.limits = spec_.limits();
  std::string output;
  TimeLimit limit(tools_.clock, kFindPythonSeconds, cancel_, "looking for the image's Python");
  // What answers is the tenant's.
  auto result = tools_.steps->Run(
      command,
      [&](int, const std::string& text) {
        output += text;
        if (output.size() > 2 * kMostVersionText) output.erase(0, output.size() - kMostVersionText);
      },
      cancel_);
  if (!result.ok()) return result.status();
  size_t at = output.rfind("Python ");
  if (!result->ok() || at == std::string::npos) return std::string();
  std::string version = output.substr(at + 7, kMostVersion);
  return version.substr(0, version.find_first_of(" \r\n"));
}

// Looked for once in the same layers.
Result<std::string> ImageBuild::Libc(const Tree& tree) {
  std::string key = "libc/";
  for (const auto& id : tree.layer_ids) key += id + " ";
  if (auto known = tools_.layers->GetRecord(key); known.ok()) return known;
  ASSIGN_OR_RETURN(std::string version, FindLibc(*tools_.stage, tree.layer_ids, cancel_));
  RETURN_IF_ERROR(tools_.layers->PutRecord(key, version));
  return version;
}

}  // namespace lydian::build
