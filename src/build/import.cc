// Images that somebody saved: an OCI archive, docker's own form, or a plain root file system as a tar.
#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>

#include "base/ids.h"
#include "base/log.h"
#include "build/archive.h"
#include "build/bases.h"

namespace lydian::build {
namespace {

using nlohmann::json;

constexpr size_t kMaxJson = size_t{8} << 20;

struct Unpacked {
  json config;                      // of the image; may be null
  std::vector<std::string> layers;  // host paths, bottom first
};

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
Result<json> PickManifest(const std::string& archive, json index, int depth) {
  if (depth > 4 || !index.is_object() || !index.contains("manifests") || !index["manifests"].is_array())
    return InvalidArgument("the archive's index names no manifest");
  for (const auto& entry : index["manifests"]) {
    if (!entry.is_object()) continue;
    json platform = entry.value("platform", json::object());
    if (platform.is_object() && platform.contains("architecture") &&
        (platform["architecture"] != "amd64" || platform.value("os", "linux") != "linux"))
      continue;
    json manifest = ParseJson(ReadFromArchive(archive, BlobPath(entry), kMaxJson));
    if (!manifest.is_object()) continue;
    if (manifest.contains("layers")) return manifest;
    if (auto nested = PickManifest(archive, manifest, depth + 1); nested.ok()) return nested;
  }
  return InvalidArgument("the archive holds no image for linux/amd64");
}

// Fills in the names of config and layers within the archive.
Status Layout(const std::string& archive, std::string& config, std::vector<std::string>& layers) {
  json index = ParseJson(ReadFromArchive(archive, "index.json", kMaxJson));
  if (index.is_object()) {
    ASSIGN_OR_RETURN(json manifest, PickManifest(archive, index, 0));
    config = BlobPath(manifest.value("config", json()));
    if (!manifest["layers"].is_array()) return InvalidArgument("a manifest without a list of layers");
    for (const auto& layer : manifest["layers"]) layers.push_back(BlobPath(layer));
    return OkStatus();
  }
  json manifest = ParseJson(ReadFromArchive(archive, "manifest.json", kMaxJson));
  if (!manifest.is_array() || manifest.empty() || !manifest[0].is_object() || !manifest[0].contains("Layers"))
    return NotFound("a plain root file system");
  if (manifest.size() > 1) return InvalidArgument("the archive holds several images; save one alone");
  config = "/" + manifest[0].value("Config", "");
  for (const auto& layer : manifest[0]["Layers"])
    if (layer.is_string()) layers.push_back("/" + layer.get<std::string>());
  return OkStatus();
}

Result<Unpacked> Unpack(const std::string& archive, const std::string& scratch) {
  std::string config;
  std::vector<std::string> layers;
  Unpacked unpacked;
  Status layout = Layout(archive, config, layers);
  if (layout.code() == Code::kNotFound) {
    unpacked.layers = {archive};
    return unpacked;
  }
  RETURN_IF_ERROR(layout);
  std::map<std::string, std::string> places;
  for (const auto& name : layers) {
    if (name.size() < 2) return InvalidArgument("a layer without a sha256 digest");
    places.emplace(name, scratch + "/layer-" + std::to_string(places.size()));
  }
  RETURN_IF_ERROR(UnpackEntries(archive, [&](const std::string& name) {
    auto found = places.find(name);
    return found == places.end() ? std::string() : found->second;
  }));
  for (const auto& name : layers) {
    if (!Exists(places[name])) return DataLoss("the archive lacks its layer " + name);
    unpacked.layers.push_back(places[name]);
  }
  unpacked.config = ParseJson(ReadFromArchive(archive, config, kMaxJson));
  return unpacked;
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

Status BaseImages::Import(const std::string& wanted, const std::string& archive) {
  std::string name = NormalizeImageName(wanted);
  if (name.empty() || name.find('\n') != std::string::npos)
    return InvalidArgument("not a name for an image: " + wanted);
  std::string scratch = options_.scratch_dir + "/" + RandomHex(8);
  RETURN_IF_ERROR(MakeDirs(scratch, 0700));
  std::shared_ptr<void> remove(nullptr, [scratch](void*) { (void)RemoveTree(scratch); });
  ASSIGN_OR_RETURN(Unpacked unpacked, Unpack(archive, scratch));
  ImageSpec spec;
  *spec.mutable_config() = ReadConfig(unpacked.config);
  // Not by digest: a layer is the archive's own, and an import is rare.
  std::string import_id = RandomHex(8);
  for (size_t i = 0; i < unpacked.layers.size(); ++i) {
    ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
    RETURN_IF_ERROR(ExtractArchive(unpacked.layers[i], transaction->dir() + "/upper",
                                   {.layer_whiteouts = !unpacked.config.is_null()}));
    std::string id = DigestId("ly", "import " + import_id + " " + std::to_string(i));
    RETURN_IF_ERROR(transaction->Commit(id, "imported: " + name).status());
    spec.add_layer_ids(id);
  }
  RETURN_IF_ERROR(layers_->PutRecord("base/import/" + name, spec.SerializeAsString()));
  auto names = layers_->GetRecord("base/imports");
  std::string list = names.ok() ? *names : "";
  if (("\n" + list).find("\n" + name + "\n") == std::string::npos)
    RETURN_IF_ERROR(layers_->PutRecord("base/imports", list + name + "\n"));
  LOG_INFO("imported a base image", {{"name", name}, {"layers", unpacked.layers.size()}});
  return OkStatus();
}

}  // namespace lydian::build
