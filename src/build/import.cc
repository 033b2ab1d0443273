// Images that somebody saved: an OCI archive, docker's own form, or a plain root file system as a tar.
#include <unistd.h>

#include <map>

#include "base/ids.h"
#include "base/log.h"
#include "build/archive.h"
#include "build/bases.h"
#include "build/oci_layout.h"

namespace lydian::build {
namespace {

constexpr size_t kMaxJson = size_t{8} << 20;

struct Unpacked {
  bool image = false;  // not a plain root file system
  ImageConfig config;
  std::vector<std::string> layers;  // host paths, bottom first
};

Result<Unpacked> Unpack(const std::string& archive, const std::string& scratch) {
  Unpacked unpacked;
  const OciReader read = [&](const std::string& name) { return ReadFromArchive(archive, name, kMaxJson); };
  auto layout = ReadOciLayout(read);
  if (layout.status().code() == Code::kNotFound) {
    unpacked.layers = {archive};
    return unpacked;
  }
  RETURN_IF_ERROR(layout.status());
  unpacked.image = true;
  std::map<std::string, std::string> places;
  for (const auto& name : layout->layers)
    places.emplace(name, scratch + "/layer-" + std::to_string(places.size()));
  RETURN_IF_ERROR(UnpackEntries(archive, [&](const std::string& name) {
    auto found = places.find(name);
    return found == places.end() ? std::string() : found->second;
  }));
  for (const auto& name : layout->layers) {
    if (!Exists(places[name])) return DataLoss("the archive lacks its layer " + name);
    unpacked.layers.push_back(places[name]);
  }
  if (auto config = read(layout->config); config.ok()) unpacked.config = ReadOciConfig(*config);
  return unpacked;
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
  *spec.mutable_config() = unpacked.config;
  // Not by digest: a layer is the archive's own, and an import is rare.
  std::string import_id = RandomHex(8);
  for (size_t i = 0; i < unpacked.layers.size(); ++i) {
    ASSIGN_OR_RETURN(auto transaction, layers_->Begin());
    RETURN_IF_ERROR(ExtractArchive(unpacked.layers[i], transaction->dir() + "/upper",
                                   {.layer_whiteouts = unpacked.image}));
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
