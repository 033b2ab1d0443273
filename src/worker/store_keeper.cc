#include "worker/store_keeper.h"

#include <map>
#include <set>

#include "base/log.h"

namespace lydian::worker {
namespace {

constexpr int kPart = 2000;  // entries of a message

}  // namespace

void StoreKeeper::Inventory(const TakeInventory& request, const std::function<void(StoreInventory)>& send) {
  StoreInventory part;
  auto flush = [&](bool last) {
    part.set_request_id(request.request_id());
    part.set_last(last);
    send(std::move(part));
    part.Clear();
  };
  std::set<std::string> bases;
  std::map<std::string, std::set<std::string>> clients;
  for (const auto& held : builder_->HeldLayers()) {
    if (held.base) bases.insert(held.layer_id);
    if (!held.client_version.empty()) clients[held.layer_id].insert(held.client_version);
  }
  for (const image::StoredLayer& layer : layers_->List()) {
    const std::string& id = layer.info.id;
    if (!layer.damage.empty()) {
      part.add_damages("layer " + id + ": " + layer.damage);
      continue;
    }
    StoredLayer& out = *part.add_layers();
    out.set_layer_id(id);
    out.set_bytes(layer.info.bytes);
    out.set_idle_secs(layer.idle_secs);
    out.set_note(layer.info.note.substr(0, 200));
    if (layer.pinned) out.set_held_by("a task or build");
    if (bases.contains(id)) out.set_held_by("a base image");
    if (id == launcher_layer_) out.set_held_by("the launcher");
    for (const auto& version : clients[id]) out.add_client_versions(version);
    if (part.layers_size() >= kPart) flush(false);
  }
  for (StoredObject& object : objects_->List()) {
    if (request.verify()) {
      if (Status sound = objects_->Check(object.sha256()); !sound.ok()) {
        // It is fetched again when it is needed.
        auto removed = objects_->Remove(object.sha256(), 0);
        part.add_damages("file " + object.sha256() + ": " + sound.message() +
                         (removed.ok() ? "; removed: it is fetched again when it is needed" : ""));
        continue;
      }
    }
    *part.add_objects() = std::move(object);
    if (part.objects_size() >= kPart) flush(false);
  }
  flush(true);
}

StoreDropped StoreKeeper::Drop(const DropImages& request) {
  StoreDropped dropped;
  dropped.set_request_id(request.request_id());
  auto stays = [&](const Status& why) {
    if (why.code() == Code::kNotFound) return;
    LOG_INFO("what control has no use for stays", {{"why", why}});
    if (dropped.error().empty()) dropped.set_error(why.message());
  };
  std::set<std::string> held = {launcher_layer_};
  for (const auto& layer : builder_->HeldLayers())
    if (layer.base) held.insert(layer.layer_id);
  std::map<std::string, uint64_t> sizes;
  for (const auto& layer : layers_->List()) sizes[layer.info.id] = layer.info.bytes;
  for (const std::string& id : request.layer_ids()) {
    if (held.contains(id)) continue;
    if (Status removed = layers_->Remove(id, request.min_idle_secs()); !removed.ok()) {
      stays(removed);
      continue;
    }
    LOG_INFO("removed a layer that nothing needs", {{"layer", id}, {"bytes", sizes[id]}});
    dropped.add_layer_ids(id);
    dropped.set_layer_bytes(dropped.layer_bytes() + sizes[id]);
  }
  for (const std::string& sha256 : request.object_sha256()) {
    auto removed = objects_->Remove(sha256, request.min_idle_secs());
    if (!removed.ok()) {
      stays(removed.status());
      continue;
    }
    dropped.add_object_sha256(sha256);
    dropped.set_object_bytes(dropped.object_bytes() + *removed);
  }
  if (dropped.layer_ids_size() > 0) {
    if (Status forgotten = builder_->ForgetLost(); !forgotten.ok())
      LOG_WARN("notes on removed layers stay", {{"error", forgotten}});
  }
  return dropped;
}

}  // namespace lydian::worker
