// Images that somebody saved: an OCI archive, docker's own form, or a plain root file system as a tar.
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "base/log.h"
#include "build/bases.h"

namespace lydian::build {
namespace {

using nlohmann::json;

constexpr size_t kMaxJson = size_t{8} << 20;

json ParseJson(const Result<std::string>& text) {
  return text.ok() ? json::parse(*text, nullptr, false) : json();
}

// "sha256:..." of a JSON descriptor as a path in the archive; "" if it isn't one.
std::string BlobPath(const json& descriptor) {
  if (!descriptor.is_object() || !descriptor.contains("digest") || !descriptor["digest"].is_string())
    return "";
  std::string digest = descriptor["digest"].get<std::string>();
  if (!digest.starts_with("sha256:") || digest.find('/') != std::string::npos) return "";
  return "/blobs/sha256/" + digest.substr(7);
}

// The manifest of an index that fits this machine, through nested indexes.
Result<json> PickManifest(const image::Tree& archive, json index, int depth) {
  if (depth > 4 || !index.is_object() || !index.contains("manifests") || !index["manifests"].is_array())
    return InvalidArgument("the archive's index names no manifest");
  for (const auto& entry : index["manifests"]) {
    if (!entry.is_object()) continue;
    json platform = entry.value("platform", json::object());
    if (platform.is_object() && platform.contains("architecture") &&
        (platform["architecture"] != "amd64" || platform.value("os", "linux") != "linux"))
      continue;
    json manifest = ParseJson(archive.Read(BlobPath(entry), kMaxJson));
    if (!manifest.is_object()) continue;
    if (manifest.contains("layers")) return manifest;
    if (auto nested = PickManifest(archive, manifest, depth + 1); nested.ok()) return nested;
  }
  return InvalidArgument("the archive holds no image for linux/amd64");
}

// Fills in the names of config and layers within the archive.
Status Layout(const image::Tree& archive, std::string& config, std::vector<std::string>& layers) {
  json index = ParseJson(archive.Read("/index.json", kMaxJson));
  if (index.is_object()) {
    ASSIGN_OR_RETURN(json manifest, PickManifest(archive, index, 0));
    config = BlobPath(manifest.value("config", json()));
    if (!manifest["layers"].is_array()) return InvalidArgument("a manifest without a list of layers");
    for (const auto& layer : manifest["layers"]) layers.push_back(BlobPath(layer));
    return OkStatus();
  }
  json manifest = ParseJson(archive.Read("/manifest.json", kMaxJson));
  if (!manifest.is_array() || manifest.empty() || !manifest[0].is_object() || !manifest[0].contains("Layers"))
    return NotFound("a plain root file system");
  if (manifest.size() > 1) return InvalidArgument("the archive holds several images; save one alone");
  config = "/" + manifest[0].value("Config", "");
  for (const auto& layer : manifest[0]["Layers"])
    if (layer.is_string()) layers.push_back("/" + layer.get<std::string>());
  return OkStatus();
}

void CopyList(const json& from, google::protobuf::RepeatedPtrField<std::string>* to) {
  if (!from.is_array()) return;
  for (const auto& item : from)
    if (item.is_string()) to->Add(item.get<std::string>());
}

ImageConfig ReadConfig(const json& image) {
  ImageConfig config;
  if (!image.is_object() || !image.contains("config") || !image["config"].is_object()) return config;
  const json& own = image["config"];
  auto list = [&](const char* key) { return own.contains(key) ? own[key] : json(); };
  CopyList(list("Env"), config.mutable_env());
  CopyList(list("Entrypoint"), config.mutable_entrypoint());
  CopyList(list("Cmd"), config.mutable_cmd());
  CopyList(list("Shell"), config.mutable_shell());
  if (list("WorkingDir").is_string()) config.set_workdir(own["WorkingDir"].get<std::string>());
  if (list("User").is_string()) config.set_user(own["User"].get<std::string>());
  return config;
}

}  // namespace

Result<ImageSpec> BaseImages::ImportLayers(const image::Tree& archive, const std::string& config,
                                           const std::vector<std::string>& layers, const std::string& note) {
  ImageSpec spec;
  *spec.mutable_config() = ReadConfig(ParseJson(archive.Read(config, kMaxJson)));
  // Not by digest: a layer is the archive's own, and an import is rare.
  const std::string import_id = RandomHex(8);
  std::vector<std::string> below;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].size() < 2) return InvalidArgument("a layer without a sha256 digest");
    auto blob = archive.OpenFile(layers[i]);
    if (!blob.ok())
      return DataLoss("the archive lacks its layer " + layers[i] + ": " + blob.status().message());
    ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
    auto work = [&](StageWork& stage) {
      StageUnpack unpack;
      unpack.set_path("/");
      unpack.set_whiteouts(true);
      unpack.set_name("layer " + layers[i]);
      return stage.Unpack(std::move(unpack), std::move(*blob));
    };
    RETURN_IF_ERROR(stage_->Run({below, transaction->dir(), {}}, {}, nullptr, work).status());
    std::string id = DigestId("ly", "import " + import_id + " " + std::to_string(i));
    RETURN_IF_ERROR(transaction->Commit(id, note).status());
    spec.add_layer_ids(id);
    below.push_back(id);
  }
  return spec;
}

// The archive is unpacked as it is, in a container; what it says of itself is then read out of that tree.
Status BaseImages::Import(const std::string& wanted, const std::string& archive) {
  std::string name = NormalizeImageName(wanted);
  if (name.empty() || name.find('\n') != std::string::npos)
    return InvalidArgument("not a name for an image: " + wanted);
  const std::string note = "imported: " + name;
  ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
  RETURN_IF_ERROR(Unpack({{}, transaction->dir(), {}}, archive, false, nullptr));
  ASSIGN_OR_RETURN(image::Tree unpacked, transaction->Upper());
  std::string config;
  std::vector<std::string> layers;
  ImageSpec spec;
  Status layout = Layout(unpacked, config, layers);
  if (layout.ok()) {
    ASSIGN_OR_RETURN(spec, ImportLayers(unpacked, config, layers, note));
  } else if (layout.code() == Code::kNotFound) {  // a root file system as it stands
    std::string id = DigestId("ly", "import " + RandomHex(8));
    RETURN_IF_ERROR(transaction->Commit(id, note).status());
    spec.add_layer_ids(id);
  } else {
    return layout;
  }
  RETURN_IF_ERROR(layers_->PutRecord("base/import/" + name, spec.SerializeAsString()));
  auto names = layers_->GetRecord("base/imports");
  std::string list = names.ok() ? *names : "";
  if (("\n" + list).find("\n" + name + "\n") == std::string::npos)
    RETURN_IF_ERROR(layers_->PutRecord("base/imports", list + name + "\n"));
  LOG_INFO("imported a base image", {{"name", name}, {"layers", spec.layer_ids_size()}});
  return OkStatus();
}

}  // namespace lydian::build
