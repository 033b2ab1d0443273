// Who refers to what, as rows of state.db: written in the transaction that makes the holder, dropped in the
// one that ends it. What nobody refers to is collected (control/collector.h), some time after it was last
// needed.
//
//   RETURN_IF_ERROR(Refer(session, image_id, {{RefKind::kLayer, layer_id}}));
//
// What calls refer to (blobs) is in calls.db, in the rows of their inputs, outputs and data.
//
// Thread-safety: as the session that is given. Errors: the database's.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "lydian/worker.pb.h"
#include "store/database.h"

namespace lydian::control {

enum class RefKind { kDefinition, kImage, kMount, kSecret, kObject, kLayer, kBlob };
const char* RefKindName(RefKind kind);  // as in the table: "definition", "image", ...

struct Reference {
  RefKind kind = RefKind::kBlob;
  std::string target;  // an id; of an object ObjectTarget's
};

// A workspace's row of a content: "wo-.../<sha256>".
std::string ObjectTarget(const std::string& workspace_id, const std::string& sha256);

// The contents of its files, and the layer that workers make of it.
std::vector<Reference> ReferencesOfMount(const std::string& mount_id, const std::string& workspace_id,
                                         const GetMountResponse& files);

// Adds to what the holder refers to.
Status Refer(store::Session& session, const std::string& holder, const std::vector<Reference>& references);
// The holder refers to nothing more (of one kind).
Status Release(store::Session& session, const std::string& holder);
Status Release(store::Session& session, const std::string& holder, RefKind kind);
// Somebody was just told that it exists, and may refer to it soon: its time without a reference begins anew.
Status Keep(store::Session& session, RefKind kind, const std::string& target);

// Writes the rows of images and mounts that were made before there were references. Once; in slices, each a
// transaction, so that a start that is cut goes on where it was.
Status NoteOldReferences(store::Database& db);

}  // namespace lydian::control
