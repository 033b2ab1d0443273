#include "build/runtime_layers.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "base/ids.h"
#include "base/log.h"
#include "build/host_settings.h"
#include "build/runtime_scripts.h"
#include "build/tree_copy.h"

namespace lydian::build {
namespace {

namespace fs = std::filesystem;

// Bumped when the same wheels would give other layers.
constexpr const char* kRevision = "1";

// Builders before this one install the client's dependencies into the image itself.
bool HasDependencyLayer(const std::string& builder) {
  return builder > "2024.10" && builder.find_first_not_of("0123456789.") == std::string::npos;
}

void LogLines(const std::string& what, const std::string& tail) {
  LOG_WARN("making a runtime layer failed", {{"what", what}, {"output", tail}});
}

}  // namespace

std::string PythonSeries(const std::string& version) {
  size_t first = version.find('.');
  if (first == std::string::npos || first == 0) return "";
  size_t end = first + 1;
  while (end < version.size() && std::isdigit(static_cast<unsigned char>(version[end]))) ++end;
  std::string series = version.substr(0, end);
  return end == first + 1 || series.find_first_not_of("0123456789.") != std::string::npos ? "" : series;
}

bool PlainVersion(const std::string& version) {
  return !version.empty() && version.size() < 64 && std::isdigit(static_cast<unsigned char>(version[0])) &&
         std::all_of(version.begin(), version.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '.' || c == '+' || c == '-' || c == '_';
         });
}

// Where the work is done: an image of ours with that Python, else the image itself.
Result<ImageSpec> RuntimeLayers::Toolbox(const std::string& series, const ImageSpec& image) {
  if (bases_->OffersPython(series)) return bases_->ForPython(series, nullptr, nullptr);
  if (image.layer_ids().empty()) return NotFound("no image with Python " + series);
  return image;
}

Status RuntimeLayers::KeepWheels(const std::string& folder) {
  if (cache_dir_.empty()) return OkStatus();
  RETURN_IF_ERROR(MakeDirs(WheelDir()));
  UniqueFd target(::open(WheelDir().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!target.valid()) return ErrnoStatus(WheelDir());
  std::error_code error;
  for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    std::string name = it->path().filename().string();
    if (!it->is_regular_file() || it->is_symlink() || !name.ends_with(".whl")) continue;
    // Under another name first: a reader sees whole wheels only.
    std::string part = "." + name + "." + RandomHex(4);
    RETURN_IF_ERROR(PlaceFile(target.get(), part, it->path().string(), 0644, 0, 0));
    if (::rename((WheelDir() + "/" + part).c_str(), (WheelDir() + "/" + name).c_str()) != 0)
      return ErrnoStatus("keeping " + name);
  }
  return OkStatus();
}

Result<std::string> RuntimeLayers::MakeLayer(const std::string& id, const std::string& note,
                                             const ImageSpec& toolbox, const std::string& script,
                                             const std::vector<std::string>& arguments,
                                             const std::vector<std::string>& keep, const LogSink& log,
                                             CancelToken* cancel) {
  ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
  StepCommand command{.layer_ids = {toolbox.layer_ids().begin(), toolbox.layer_ids().end()},
                      .writable_dir = transaction->dir()};
  std::string all = std::string(kScriptCommon) + script;
  command.argv = {"/bin/sh", "-c", "exec \"$(command -v python3 || command -v python)\" -I -c \"$0\" \"$@\"",
                  all};
  command.argv.insert(command.argv.end(), arguments.begin(), arguments.end());
  command.env = {toolbox.config().env().begin(), toolbox.config().env().end()};
  if (!cache_dir_.empty()) {
    RETURN_IF_ERROR(MakeDirs(WheelDir()));
    Mount mount;
    mount.set_kind(Mount::BIND);
    mount.set_source(WheelDir());
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
  std::string upper = transaction->dir() + "/upper";
  if (Status kept = KeepWheels(upper + "/made/wheels"); !kept.ok())
    LOG_WARN("wheels were not kept", {{"error", kept}});
  std::error_code error;
  for (auto it = fs::directory_iterator(upper, error); !error && it != fs::directory_iterator();
       it.increment(error))
    if (std::find(keep.begin(), keep.end(), it->path().filename().string()) == keep.end())
      RETURN_IF_ERROR(RemoveTree(it->path().string()));
  ASSIGN_OR_RETURN(image::LayerInfo info, transaction->Commit(id, note));
  LOG_INFO("made a runtime layer", {{"layer", info.id}, {"what", note}, {"bytes", info.bytes}});
  return info.id;
}

Result<std::string> RuntimeLayers::Client(const std::string& version, const std::string& series,
                                          const ImageSpec& image) {
  if (!PlainVersion(version)) return InvalidArgument("\"" + version + "\" is not a version of the client");
  std::string id = DigestId("ly", std::string("client ") + kRevision + " " + version + " " + series);
  return flights_.Do(id, nullptr, [&]() -> Result<std::string> {
    if (layers_->Find(id).ok()) return id;
    ASSIGN_OR_RETURN(ImageSpec toolbox, Toolbox(series, image));
    return MakeLayer(id, "client " + version + " for Python " + series, toolbox, kClientScript, {version},
                     {"pkg"}, nullptr, nullptr);
  });
}

Result<std::string> RuntimeLayers::Dependencies(const std::string& client_version,
                                                const std::string& client_layer, const std::string& builder,
                                                const std::string& series, const ImageSpec& image) {
  ASSIGN_OR_RETURN(image::LayerInfo client, layers_->Find(client_layer));
  auto list = ReadFile(client.path + "/pkg/modal/builder/" + builder + ".txt", size_t{1} << 20);
  if (!list.ok()) return NotFound("client " + client_version + " knows no image builder version " + builder);
  std::string id = DigestId(
      "ly", std::string("dependencies ") + kRevision + " " + builder + " " + series + " " + Sha256Hex(*list));
  return flights_.Do(id, nullptr, [&]() -> Result<std::string> {
    if (layers_->Find(id).ok()) return id;
    ASSIGN_OR_RETURN(ImageSpec toolbox, Toolbox(series, image));
    return MakeLayer(id, "dependencies of builder " + builder + " for Python " + series, toolbox,
                     kDependencyScript, {*list}, {"pkg", "__modal"}, nullptr, nullptr);
  });
}

Result<std::vector<std::string>> RuntimeLayers::For(const ImageSpec& image, const std::string& client_version,
                                                    bool dependencies) {
  std::string series = PythonSeries(image.python_version());
  if (series.empty())
    return FailedPrecondition("image " + image.image_id() +
                              " has no Python that the client's runtime could run in");
  ASSIGN_OR_RETURN(std::string client, Client(client_version, series, image));
  std::vector<std::string> layers;
  if (dependencies && HasDependencyLayer(image.builder_version())) {
    ASSIGN_OR_RETURN(std::string layer,
                     Dependencies(client_version, client, image.builder_version(), series, image));
    layers.push_back(layer);
  }
  layers.push_back(client);
  return layers;
}

Status RuntimeLayers::Ensure(const std::string& client_version) {
  if (!PlainVersion(client_version))
    return InvalidArgument("\"" + client_version + "\" is not a version of the client");
  std::string key = "client/" + client_version;
  if (layers_->GetRecord(key).ok()) return OkStatus();
  auto done = flights_.Do(key, nullptr, [&]() -> Result<std::string> {
    ASSIGN_OR_RETURN(ImageSpec toolbox, bases_->AnyPython(nullptr, nullptr));
    std::string id = DigestId("ly", "probe " + client_version);
    auto made = MakeLayer(id, "the wheel of client " + client_version, toolbox, kEnsureScript,
                          {client_version}, {}, nullptr, nullptr);
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
    ASSIGN_OR_RETURN(ImageSpec toolbox, bases_->AnyPython(log, cancel));
    return MakeLayer(id, "uv " + version, toolbox, kUvScript, {requirement}, {"uv", "uvx"}, log, cancel);
  });
  if (!layer.ok()) return layer.status();
  ImageSpec spec;
  spec.add_layer_ids(*layer);
  return spec;
}

}  // namespace lydian::build
