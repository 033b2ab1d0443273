#include "build/oci_layout.h"

#include <nlohmann/json.hpp>

namespace lydian::build {
namespace {

using nlohmann::json;

constexpr int kMostDepth = 32;      // of JSON: copying a value recurses
constexpr int kMostIndexes = 4;     // one in the other
constexpr int kMostManifests = 64;  // each is found by reading through the archive

// null for what isn't JSON. What is nested too deeply is left out.
json ParseJson(std::string_view text) {
  json value = json::parse(
      text, [](int depth, json::parse_event_t, json&) { return depth <= kMostDepth; }, false);
  return value.is_discarded() ? json() : value;
}

json ReadJson(const OciReader& read, const std::string& name) {
  auto text = read(name);
  return text.ok() ? ParseJson(*text) : json();
}

// The member, or null.
const json& Member(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string Text(const json& value, const char* otherwise = "") {
  return value.is_string() ? value.get<std::string>() : otherwise;
}

// "sha256:..." of a descriptor as a path in the archive; "" if it isn't one.
std::string BlobPath(const json& descriptor) {
  std::string digest = Text(Member(descriptor, "digest"));
  if (!digest.starts_with("sha256:") || digest.size() == 7 || digest.find('/') != std::string::npos)
    return "";
  return "/blobs/sha256/" + digest.substr(7);
}

// The manifest of an index that fits this machine, through nested indexes.
Result<json> PickManifest(const OciReader& read, const json& index, int depth, int& left) {
  const json& manifests = Member(index, "manifests");
  if (depth > kMostIndexes || !manifests.is_array())
    return InvalidArgument("the archive's index names no manifest");
  for (const auto& entry : manifests) {
    const json& platform = Member(entry, "platform");
    if (platform.contains("architecture") &&
        (platform["architecture"] != "amd64" || Text(Member(platform, "os"), "linux") != "linux"))
      continue;
    const std::string path = BlobPath(entry);
    if (path.empty()) continue;
    if (left-- <= 0)
      return InvalidArgument("the archive's index names more than " + std::to_string(kMostManifests) +
                             " manifests; save one image alone");
    json manifest = ReadJson(read, path);
    if (!manifest.is_object()) continue;
    if (manifest.contains("layers")) return manifest;
    if (auto nested = PickManifest(read, manifest, depth + 1, left); nested.ok()) return nested;
  }
  return InvalidArgument("the archive holds no image for linux/amd64");
}

Status AddLayer(const std::string& name, OciLayout& layout) {
  if (name.size() < 2) return InvalidArgument("a layer without a sha256 digest");
  layout.layers.push_back(name);
  return OkStatus();
}

void CopyList(const json& from, google::protobuf::RepeatedPtrField<std::string>* to) {
  if (!from.is_array()) return;
  for (const auto& item : from)
    if (item.is_string()) to->Add(item.get<std::string>());
}

}  // namespace

Result<OciLayout> ReadOciLayout(const OciReader& read) {
  OciLayout layout;
  if (const json index = ReadJson(read, "index.json"); index.is_object()) {
    int left = kMostManifests;
    ASSIGN_OR_RETURN(const json manifest, PickManifest(read, index, 0, left));
    layout.config = BlobPath(Member(manifest, "config"));
    const json& layers = Member(manifest, "layers");
    if (!layers.is_array()) return InvalidArgument("a manifest without a list of layers");
    for (const auto& layer : layers) RETURN_IF_ERROR(AddLayer(BlobPath(layer), layout));
    return layout;
  }
  const json images = ReadJson(read, "manifest.json");
  if (!images.is_array() || images.empty() || !Member(images[0], "Layers").is_array())
    return NotFound("a plain root file system");
  if (images.size() > 1) return InvalidArgument("the archive holds several images; save one alone");
  layout.config = "/" + Text(Member(images[0], "Config"));
  for (const auto& layer : Member(images[0], "Layers"))
    if (layer.is_string()) RETURN_IF_ERROR(AddLayer("/" + layer.get<std::string>(), layout));
  return layout;
}

ImageConfig ReadOciConfig(std::string_view json_text) {
  ImageConfig config;
  const json image = ParseJson(json_text);
  const json& own = Member(image, "config");
  CopyList(Member(own, "Env"), config.mutable_env());
  CopyList(Member(own, "Entrypoint"), config.mutable_entrypoint());
  CopyList(Member(own, "Cmd"), config.mutable_cmd());
  CopyList(Member(own, "Shell"), config.mutable_shell());
  config.set_workdir(Text(Member(own, "WorkingDir")));
  config.set_user(Text(Member(own, "User")));
  return config;
}

}  // namespace lydian::build
