// Mounts: which contents are missing, their upload, and lists of files. The client's own mount comes from
// workers.
#include <modal_proto/api.pb.h>

#include <map>
#include <set>

#include "api/files.h"
#include "api/handlers.h"
#include "api/turns.h"
#include "base/log.h"

namespace lydian::api {

namespace pb = modal::client;

namespace {

constexpr int kMostHashes = 10'000, kMostFiles = 200'000;
constexpr std::string_view kClientPrefix = "modal-client-mount-";

Result<pb::MountBatchedCheckExistenceResponse> CheckExistence(
    const pb::MountBatchedCheckExistenceRequest& request, Call& call) {
  if (request.sha256_hex_hashes_size() > kMostHashes)
    return InvalidArgument("at most 10000 hashes can be asked for at once");
  ASSIGN_OR_RETURN(auto missing, call.objects().mounts().Missing(call.scope.workspace_id,
                                                                 {request.sha256_hex_hashes().begin(),
                                                                  request.sha256_hex_hashes().end()}));
  pb::MountBatchedCheckExistenceResponse response;
  for (auto& hash : missing) response.add_missing_sha256_hex_hashes(std::move(hash));
  return response;
}

pb::MountPutFileResponse Exists(bool exists) {
  pb::MountPutFileResponse response;
  response.set_exists(exists);
  return response;
}

void PutBlob(const ServicesPtr& services, const pb::MountPutFileRequest& request, Call& call,
             const rpc::Reply<pb::MountPutFileResponse>& reply) {
  auto size = call.objects().blobs().Get(call.scope, request.data_blob_id());
  if (!size.ok()) return reply(size.status());
  services->files->Post([services, reply, workspace = call.scope.workspace_id, blob = request.data_blob_id(),
                         sha256 = request.sha256_hex(), size = *size] {
    Status moved = services->blobs->ObjectFromBlob(blob, sha256);
    if (moved.code() == Code::kDataLoss) moved = InvalidArgument(moved.message());
    if (!moved.ok()) return reply(moved);
    // The blob last: until the file is noted, a request that is repeated after a restart needs it.
    services->objects->strand().Post([services, reply, workspace, blob, sha256, size] {
      Status noted = NoteStored(*services, workspace, sha256, size);
      if (!noted.ok()) return reply(noted);
      if (Status forgotten = services->objects->blobs().Forget(blob); !forgotten.ok())
        LOG_WARN("the row of a blob that has become a file stays", {{"blob_id", blob}, {"error", forgotten}});
      services->files->Post([services, blob] {
        if (Status dropped = services->blobs->DeleteBlob(blob); !dropped.ok())
          LOG_WARN("could not drop a blob that has become a file", {{"blob_id", blob}, {"error", dropped}});
      });
      reply(Exists(true));
    });
  });
}

void PutFile(const ServicesPtr& services, const pb::MountPutFileRequest& request, Call& call,
             const rpc::Reply<pb::MountPutFileResponse>& reply) {
  auto missing = call.objects().mounts().Missing(call.scope.workspace_id, {request.sha256_hex()});
  if (!missing.ok()) return reply(missing.status());
  if (missing->empty() || request.data_oneof_case() == pb::MountPutFileRequest::DATA_ONEOF_NOT_SET)
    return reply(Exists(missing->empty()));
  if (request.has_data_blob_id()) return PutBlob(services, request, call, reply);
  StoreFiles(services, call.scope.workspace_id, {{request.sha256_hex(), request.data()}},
             [reply](Status stored) {
               if (!stored.ok()) return reply(stored);
               reply(Exists(true));
             });
}

pb::MountGetOrCreateResponse Answer(const control::Mount& mount) {
  pb::MountGetOrCreateResponse response;
  response.set_mount_id(mount.id);
  response.mutable_handle_metadata()->set_content_checksum_sha256_hex(mount.checksum);
  return response;
}

Result<pb::MountGetOrCreateResponse> Create(const pb::MountGetOrCreateRequest& request, Call& call) {
  std::string environment_id;
  if (!request.app_id().empty()) {
    ASSIGN_OR_RETURN(auto app, call.objects().apps().GetAlive(call.scope, request.app_id()));
    environment_id = app.environment_id;
  } else {
    ASSIGN_OR_RETURN(auto environment,
                     call.objects().environments().Resolve(call.scope, request.environment_name()));
    environment_id = environment.id;
  }
  if (request.files_size() > kMostFiles) return InvalidArgument("a mount may have 200000 files");
  std::vector<ContextFile> files;
  files.reserve(static_cast<size_t>(request.files_size()));
  for (const auto& file : request.files()) {
    ContextFile& entry = files.emplace_back();
    entry.set_path(file.filename());
    entry.set_sha256(file.sha256_hex());
    entry.set_mode((file.has_mode() ? file.mode() : 0644) & 0777);
  }
  ASSIGN_OR_RETURN(auto mount, call.objects().mounts().Create(call.scope, environment_id, std::move(files)));
  return Answer(mount);
}

bool IsVersion(std::string_view text) {
  if (text.empty() || text.size() > 40) return false;
  for (char c : text) {
    if (!isalnum(static_cast<unsigned char>(c)) && c != '.') return false;
  }
  return true;
}

// Mounts of client versions: asked of a worker once, then known. Each is a container that looks for packages,
// so workspaces take turns at those that aren't known. On the strand.
class ClientMounts : public std::enable_shared_from_this<ClientMounts> {
 public:
  using Answered = rpc::Reply<pb::MountGetOrCreateResponse>;

  explicit ClientMounts(std::shared_ptr<Turns> turns) : turns_(std::move(turns)) {}

  void Get(const ServicesPtr& services, const std::string& workspace, const std::string& version,
           const Answered& reply) {
    if (known_.count(version) > 0) return Finish(services, version, OkStatus(), reply);
    auto& waiting = waiting_[version];
    waiting.push_back(reply);
    if (waiting.size() > 1) return;
    turns_->Take(workspace, [self = shared_from_this(), services, version](std::shared_ptr<void> turn) {
      services->workers->Ensure(
          EnsureAsset::CLIENT, version, [self, services, version, turn = std::move(turn)](Status status) {
            services->objects->strand().Post(
                [self, services, version, status, turn] { self->Ended(services, version, status); });
          });
    });
  }

 private:
  void Ended(const ServicesPtr& services, const std::string& version, const Status& status) {
    if (status.ok()) known_.insert(version);
    auto waiting = waiting_.extract(version);
    for (const auto& reply : waiting.mapped()) Finish(services, version, status, reply);
  }
  void Finish(const ServicesPtr& services, const std::string& version, const Status& status,
              const Answered& reply) {
    if (!status.ok()) return reply(status);
    auto mount = services->objects->mounts().ClientMount(version);
    if (!mount.ok()) return reply(mount.status());
    reply(Answer(*mount));
  }

  const std::shared_ptr<Turns> turns_;
  std::set<std::string> known_;
  std::map<std::string, std::vector<Answered>> waiting_;
};

Status UnknownGlobal(const std::string& name) {
  if (name.rfind("python-build-standalone", 0) == 0) {
    return NotFound("add_python isn't built yet in this version of Lydian ('" + name.substr(0, 80) +
                    "'); use an image with a Python of its own, such as debian_slim");
  }
  return NotFound("no global mount '" + name.substr(0, 80) +
                  "'; add the files with add_local_dir or add_local_python_source instead "
                  "(MODAL_SYNC_ENTRYPOINT=1 brings the "
                  "client's own)");
}

void GetOrCreate(const ServicesPtr& services, const std::shared_ptr<ClientMounts>& clients,
                 const pb::MountGetOrCreateRequest& request, Call& call,
                 const rpc::Reply<pb::MountGetOrCreateResponse>& reply) {
  const std::string& name = request.deployment_name();
  switch (request.object_creation_type()) {
    case pb::OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP:
    case pb::OBJECT_CREATION_TYPE_EPHEMERAL:
      return reply(Create(request, call));
    case pb::OBJECT_CREATION_TYPE_UNSPECIFIED:
      break;
    default:
      return reply(Unimplemented(
          "named mounts aren't built; add the files with add_local_dir or add_local_python_source"));
  }
  if (request.namespace_() != pb::DEPLOYMENT_NAMESPACE_GLOBAL) {
    return reply(NotFound("no mount '" + name.substr(0, 80) +
                          "'; add the files with add_local_dir or add_local_python_source instead"));
  }
  std::string_view version = name;
  if (version.substr(0, kClientPrefix.size()) != kClientPrefix) return reply(UnknownGlobal(name));
  version.remove_prefix(kClientPrefix.size());
  version = version.substr(0, version.find('+'));
  if (!IsVersion(version)) return reply(UnknownGlobal(name));
  clients->Get(services, call.scope.workspace_id, std::string(version), reply);
}

}  // namespace

void RegisterMounts(rpc::Router& router, ServicesPtr services) {
  auto clients = std::make_shared<ClientMounts>(services->client_mounts);
  OnObjects<pb::MountBatchedCheckExistenceRequest, pb::MountBatchedCheckExistenceResponse>(
      router, services, "MountBatchedCheckExistence", Who::kAnyone, CheckExistence);
  OnObjectsAsync<pb::MountPutFileRequest, pb::MountPutFileResponse>(
      router, services, "MountPutFile", Who::kAnyone,
      [services](const pb::MountPutFileRequest& request, Call& call, const auto& reply) {
        PutFile(services, request, call, reply);
      });
  OnObjectsAsync<pb::MountGetOrCreateRequest, pb::MountGetOrCreateResponse>(
      router, services, "MountGetOrCreate", Who::kAnyone,
      [services, clients](const pb::MountGetOrCreateRequest& request, Call& call, const auto& reply) {
        GetOrCreate(services, clients, request, call, reply);
      });
}

}  // namespace lydian::api
