// Images that somebody saved: an OCI archive, docker's own form, or a plain root file system as a tar.
#include "base/ids.h"
#include "base/log.h"
#include "build/bases.h"
#include "build/oci_layout.h"

namespace lydian::build {
namespace {

constexpr size_t kMaxJson = size_t{8} << 20;

}  // namespace

Result<ImageSpec> BaseImages::ImportLayers(const image::Tree& archive, const OciLayout& layout,
                                           const std::string& note) {
  ImageSpec spec;
  if (auto config = archive.Read(layout.config, kMaxJson); config.ok())
    *spec.mutable_config() = ReadOciConfig(*config);
  const auto& layers = layout.layers;
  // Not by digest: a layer is the archive's own, and an import is rare.
  const std::string import_id = RandomHex(8);
  std::vector<std::string> below;
  for (size_t i = 0; i < layers.size(); ++i) {
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
  auto layout = ReadOciLayout([&](const std::string& file) { return unpacked.Read(file, kMaxJson); });
  ImageSpec spec;
  if (layout.ok()) {
    ASSIGN_OR_RETURN(spec, ImportLayers(unpacked, *layout, note));
  } else if (layout.status().code() == Code::kNotFound) {  // a root file system as it stands
    std::string id = DigestId("ly", "import " + RandomHex(8));
    RETURN_IF_ERROR(transaction->Commit(id, note).status());
    spec.add_layer_ids(id);
  } else {
    return layout.status();
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
