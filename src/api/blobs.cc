// Blobs: ids and signed URLs. The bytes go over HTTP.
#include <modal_proto/api.pb.h>

#include "api/handlers.h"
#include "api/urls.h"
#include "base/ids.h"
#include "blob/blob_urls.h"

namespace lydian::api {

namespace pb = modal::client;

namespace {

constexpr int64_t kLargest = int64_t{64} << 30;

Result<pb::BlobCreateResponse> Create(const pb::BlobCreateRequest& request, Call& call) {
  if (request.content_length() < 0 || request.content_length() > kLargest) {
    return InvalidArgument("a blob may have 0 bytes to 64 GiB, not " +
                           std::to_string(request.content_length()));
  }
  if (!request.content_md5().empty() && blob::Md5HexOfBase64(request.content_md5()).empty()) {
    return InvalidArgument("content_md5 is not an MD5 in base64 (24 characters): \"" +
                           request.content_md5().substr(0, 40) + "\"");
  }
  auto size = static_cast<uint64_t>(request.content_length());
  std::string blob_id = NewId("bl");
  RETURN_IF_ERROR(call.objects().blobs().Announce(
      call.scope, blob_id, size, blob::UploadSeconds(size),
      [&](const std::string& id) { return call.services.blobs->BlobSize(id).ok(); }));
  auto plan = blob::PlanUpload(*call.services.signer, call.objects().clock(),
                               BaseUrl(call.services, *call.ctx), blob_id, size, request.content_md5());
  pb::BlobCreateResponse response;
  response.set_blob_id(blob_id);
  response.add_blob_ids(blob_id);
  if (!plan.url.empty()) {
    response.set_upload_url(plan.url);
    response.mutable_upload_urls()->add_items(plan.url);
    return response;
  }
  pb::MultiPartUpload parts;
  parts.set_part_length(static_cast<int64_t>(plan.part_length));
  for (auto& url : plan.part_urls) parts.add_upload_urls(std::move(url));
  parts.set_completion_url(plan.completion_url);
  *response.mutable_multipart() = parts;
  *response.mutable_multiparts()->add_items() = std::move(parts);
  return response;
}

Result<pb::BlobGetResponse> Get(const pb::BlobGetRequest& request, Call& call) {
  ASSIGN_OR_RETURN(uint64_t size, call.objects().blobs().Get(call.scope, request.blob_id()));
  pb::BlobGetResponse response;
  response.set_download_url(blob::DownloadUrl(*call.services.signer, call.objects().clock(),
                                              BaseUrl(call.services, *call.ctx), request.blob_id(), size));
  return response;
}

}  // namespace

void RegisterBlobs(rpc::Router& router, ServicesPtr services) {
  OnObjects<pb::BlobCreateRequest, pb::BlobCreateResponse>(router, services, "BlobCreate", Who::kAnyone,
                                                           Create, {.idempotent = true});
  OnObjects<pb::BlobGetRequest, pb::BlobGetResponse>(router, services, "BlobGet", Who::kAnyone, Get);
}

}  // namespace lydian::api
