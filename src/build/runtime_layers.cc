#include "build/runtime_layers.h"

#include <algorithm>
#include <cctype>

#include "base/ids.h"
#include "base/log.h"
#include "build/host_settings.h"
#include "build/runtime_scripts.h"

namespace lydian::build {
namespace {

// Bumped when the same wheels would give other layers.
constexpr const char* kRevision = "2";

// One layer: downloads and bytecode, minutes at most on a slow machine.
constexpr uint32_t kLayerSeconds = 30 * 60;
// All of it, with the base that it is made in when that isn't there yet.
constexpr uint32_t kOwnSeconds = 2 * 3600;

// Builders before this one install the client's dependencies into the image itself.
bool HasDependencyLayer(const std::string& builder) {
  return builder > "2024.10" && builder.find_first_not_of("0123456789.") == std::string::npos;
}

void LogLines(const std::string& what, const std::string& tail) {
  LOG_WARN("making a runtime layer failed", {{"what", what}, {"output", tail}});
}

}  // namespace

std::string PythonSeries(const std::string& version) {
  if (!version.starts_with("3.")) return "";
  size_t end = 2;
  while (end < version.size() && std::isdigit(static_cast<unsigned char>(version[end]))) ++end;
  return end == 2 || end > 4 ? "" : version.substr(0, end);
}

bool PlainVersion(const std::string& version) {
  return !version.empty() && version.size() < 64 && std::isdigit(static_cast<unsigned char>(version[0])) &&
         std::all_of(version.begin(), version.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '.' || c == '+' || c == '-' || c == '_';
         });
}

std::string RuntimeLayers::Toolbox::Key() const {
  std::string key = series + (same_python ? " same" : " other");
  for (const auto& id : image.layer_ids()) key += " " + id;
  return key;
}

Result<RuntimeLayers::Toolbox> RuntimeLayers::FindToolbox(const std::string& series, CancelToken* cancel) {
  Toolbox toolbox{.series = series, .same_python = bases_->OffersPython(series)};
  ASSIGN_OR_RETURN(toolbox.image, toolbox.same_python ? bases_->ForPython(series, nullptr, cancel)
                                                      : bases_->AnyPython(nullptr, cancel));
  return toolbox;
}

Result<std::string> RuntimeLayers::MakeLayer(const std::string& id, const std::string& note,
                                             const Toolbox& toolbox, const std::string& script,
                                             const std::vector<std::string>& arguments,
                                             const std::vector<std::string>& keep, const LogSink& log,
                                             CancelToken* cancel) {
  TimeLimit limit(clock_, kLayerSeconds, cancel, "making the " + note);
  ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
  StepCommand command{.layer_ids = {toolbox.image.layer_ids().begin(), toolbox.image.layer_ids().end()},
                      .own_dir = transaction->dir()};
  std::string all = std::string(kScriptCommon) + script;
  command.argv = {"/bin/sh", "-c", "exec \"$(command -v python3 || command -v python)\" -I -c \"$0\" \"$@\"",
                  all, toolbox.same_python ? "" : toolbox.series};
  command.argv.insert(command.argv.end(), arguments.begin(), arguments.end());
  command.env = {toolbox.image.config().env().begin(), toolbox.image.config().env().end()};
  ASSIGN_OR_RETURN(std::string wheels, wheels_.Checked());
  if (!wheels.empty()) {
    Mount mount;
    mount.set_kind(Mount::BIND);
    mount.set_source(wheels);
    mount.set_target(std::string(kBorrowedDir) + "/wheels");
    mount.set_read_only(true);
    mount.set_idmap(true);
    command.mounts.push_back(mount);
  }
  ASSIGN_OR_RETURN(RunResult result, steps_->Run(command, log, cancel));
  if (!result.ok()) {
    LogLines(note, result.tail);
    return NotFound(note + ": " + result.How() + "\n" + result.tail);
  }
  if (!result.tail.empty()) LOG_WARN("notes on a runtime layer", {{"what", note}, {"text", result.tail}});
  ASSIGN_OR_RETURN(image::Tree upper, transaction->Upper());
  if (Status kept = wheels_.Keep(upper, "/made/wheels"); !kept.ok())
    LOG_WARN("wheels were not kept", {{"error", kept}});
  ASSIGN_OR_RETURN(auto names, upper.Names());
  for (const auto& name : names)
    if (std::find(keep.begin(), keep.end(), name) == keep.end()) RETURN_IF_ERROR(upper.Remove(name));
  ASSIGN_OR_RETURN(image::LayerInfo info, transaction->Commit(id, note));
  LOG_INFO("made a runtime layer", {{"layer", info.id}, {"what", note}, {"bytes", info.bytes}});
  return info.id;
}

Result<std::string> RuntimeLayers::Client(const std::string& version, const Toolbox& toolbox,
                                          CancelToken* cancel) {
  std::string id = DigestId(
      "ly", std::string("client ") + kRevision + " " + version + " " + toolbox.Key() + kClientScript);
  return flights_.Do(id, cancel, [&]() -> Result<std::string> {
    if (layers_->Find(id).ok()) return id;
    return MakeLayer(id, "client " + version + " for Python " + toolbox.series, toolbox, kClientScript,
                     {version}, {"pkg"}, nullptr, cancel);
  });
}

Result<std::string> RuntimeLayers::Dependencies(const Wanted& wanted, const std::string& client_layer,
                                                const Toolbox& toolbox, CancelToken* cancel) {
  const std::string& builder = wanted.builder;
  ASSIGN_OR_RETURN(image::Tree client, layers_->Open(client_layer));
  auto list = client.Read("/pkg/modal/builder/" + builder + ".txt", size_t{1} << 20);
  if (!list.ok())
    return NotFound("client " + wanted.client_version + " knows no image builder version " + builder);
  std::string id = DigestId("ly", std::string("dependencies ") + kRevision + " " + builder + " " +
                                      toolbox.Key() + " " + Sha256Hex(*list) + kDependencyScript);
  return flights_.Do(id, cancel, [&]() -> Result<std::string> {
    if (layers_->Find(id).ok()) return id;
    return MakeLayer(id, "dependencies of builder " + builder + " for Python " + toolbox.series, toolbox,
                     kDependencyScript, {*list}, {"pkg", "__modal"}, nullptr, cancel);
  });
}

Result<std::vector<std::string>> RuntimeLayers::Make(const Wanted& wanted, CancelToken* cancel) {
  ASSIGN_OR_RETURN(Toolbox toolbox, FindToolbox(wanted.series, cancel));
  ASSIGN_OR_RETURN(std::string client, Client(wanted.client_version, toolbox, cancel));
  std::vector<std::string> layers;
  if (!wanted.builder.empty()) {
    ASSIGN_OR_RETURN(std::string layer, Dependencies(wanted, client, toolbox, cancel));
    layers.push_back(layer);
  }
  layers.push_back(client);
  // So that it is known what they are for, also after a restart; what an earlier revision made is in no note.
  std::string ids;
  for (const auto& id : layers) ids += id + "\n";
  RETURN_IF_ERROR(layers_->PutRecord("runtime/" + wanted.client_version + "/" + wanted.Key(), ids));
  return layers;
}

Result<RuntimeLayers::Wanted> RuntimeLayers::Want(const ImageSpec& image, const std::string& client_version,
                                                  bool dependencies) {
  // An image says of itself which Python it has, and may say anything.
  Wanted wanted{.series = PythonSeries(image.python_version()), .client_version = client_version};
  if (wanted.series.empty())
    return FailedPrecondition("image " + image.image_id() +
                              " has no Python that the client's runtime could run in");
  const auto* known = std::find(std::begin(kClientPythons), std::end(kClientPythons), wanted.series);
  if (known == std::end(kClientPythons))
    return FailedPrecondition("image " + image.image_id() + " has Python " + wanted.series +
                              ", for which there is no runtime of the client: " + kClientPythons[0] + " to " +
                              *std::rbegin(kClientPythons) + " have one");
  if (!PlainVersion(client_version))
    return InvalidArgument("\"" + client_version + "\" is not a version of the client");
  if (dependencies && HasDependencyLayer(image.builder_version())) wanted.builder = image.builder_version();
  return wanted;
}

std::optional<std::vector<std::string>> RuntimeLayers::Made(const Wanted& wanted) {
  std::vector<std::string> layers;
  {
    std::lock_guard guard(mutex_);
    auto known = made_.find(wanted.Key());
    if (known == made_.end()) return std::nullopt;
    layers = known->second;
  }
  for (const auto& id : layers)
    if (!layers_->Find(id).ok()) return std::nullopt;
  return layers;
}

Result<std::vector<std::string>> RuntimeLayers::For(const Wanted& wanted) {
  if (auto known = Made(wanted)) return *known;
  OwnWork work(clock_, kOwnSeconds, stop_, "making the client's runtime for Python " + wanted.series);
  ASSIGN_OR_RETURN(auto layers, Make(wanted, work.token()));
  std::lock_guard guard(mutex_);
  made_[wanted.Key()] = layers;
  return layers;
}

Status RuntimeLayers::Ensure(const std::string& client_version) {
  if (!PlainVersion(client_version))
    return InvalidArgument("\"" + client_version + "\" is not a version of the client");
  std::string key = "client/" + client_version;
  if (layers_->GetRecord(key).ok()) return OkStatus();
  OwnWork work(clock_, kOwnSeconds, stop_, "looking for client " + client_version);
  auto done = flights_.Do(key, work.token(), [&]() -> Result<std::string> {
    Toolbox toolbox;
    ASSIGN_OR_RETURN(toolbox.image, bases_->AnyPython(nullptr, work.token()));
    std::string id = DigestId("ly", "probe " + client_version);
    auto made = MakeLayer(id, "the wheel of client " + client_version, toolbox, kEnsureScript,
                          {client_version}, {}, nullptr, work.token());
    if (!made.ok()) return made.status();
    (void)layers_->Remove(id);
    RETURN_IF_ERROR(layers_->PutRecord(key, "yes"));
    return id;
  });
  return done.status();
}

Result<ImageSpec> RuntimeLayers::Uv(const std::string& version, const LogSink& log, CancelToken* cancel) {
  if (version != "latest" && !PlainVersion(version))
    return InvalidArgument("\"" + version + "\" is not a release of uv");
  // "0.7" is the newest 0.7.x; "0.7.3-bookworm" is 0.7.3.
  std::string release = version.substr(0, version.find('-'));
  bool exact = std::count(release.begin(), release.end(), '.') >= 2;
  std::string requirement = version == "latest" ? "uv" : "uv==" + release + (exact ? "" : ".*");
  std::string id = DigestId("ly", std::string("uv ") + kRevision + " " + requirement);
  auto layer = flights_.Do(id, cancel, [&]() -> Result<std::string> {
    if (layers_->Find(id).ok()) return id;
    Toolbox toolbox;
    ASSIGN_OR_RETURN(toolbox.image, bases_->AnyPython(log, cancel));
    return MakeLayer(id, "uv " + version, toolbox, kUvScript, {requirement}, {"uv", "uvx"}, log, cancel);
  });
  if (!layer.ok()) return layer.status();
  ImageSpec spec;
  spec.add_layer_ids(*layer);
  return spec;
}

}  // namespace lydian::build
