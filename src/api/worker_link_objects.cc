#include <unistd.h>

#include "api/worker_link.h"

namespace lydian::api {

void RegisterWorkerObjects(rpc::Router& router, const WorkerLinkDeps& deps);

namespace {

constexpr size_t kChunk = size_t{1} << 20;
constexpr size_t kMostUnsent = size_t{4} << 20;

Status WorkersOnly(const rpc::Context& ctx) {
  if (ctx.caller().kind == rpc::Caller::Kind::kWorker) return {};
  return PermissionDenied(std::string(ctx.method()) + " is for workers");
}

// Reads on the pool, as fast as the worker takes it.
class ObjectPump : public std::enable_shared_from_this<ObjectPump> {
 public:
  ObjectPump(std::shared_ptr<Pool> pool, rpc::Stream<ObjectChunk> stream, std::string sha256, uint64_t offset)
      : pool_(std::move(pool)), stream_(std::move(stream)), sha256_(std::move(sha256)), offset_(offset) {}

  void Start(blob::BlobStore* blobs) {
    pool_->Post([self = shared_from_this(), blobs] {
      auto reader = blobs->OpenObject(self->sha256_);
      if (!reader.ok()) return self->stream_.Finish(reader.status());
      self->reader_ = std::move(reader).value();
      self->Next(true);
    });
  }

 private:
  void Next(bool first) {
    while (true) {
      ObjectChunk chunk;
      if (first) chunk.set_total(reader_.size);
      std::string* data = chunk.mutable_data();
      data->resize(kChunk);
      ssize_t got = pread(reader_.fd.get(), data->data(), data->size(), static_cast<off_t>(offset_));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return stream_.Finish(ErrnoStatus("reading object " + sha256_));
      data->resize(static_cast<size_t>(got));
      offset_ += static_cast<uint64_t>(got);
      if (got == 0 && !first) return stream_.Finish();
      if (!stream_.Write(chunk)) return;
      if (got == 0 || offset_ >= reader_.size) return stream_.Finish();
      first = false;
      if (stream_.buffered() > kMostUnsent) {
        return stream_.OnDrained(
            kMostUnsent, [self = shared_from_this()] { self->pool_->Post([self] { self->Next(false); }); });
      }
    }
  }

  std::shared_ptr<Pool> pool_;
  rpc::Stream<ObjectChunk> stream_;
  const std::string sha256_;
  uint64_t offset_;
  blob::Reader reader_;
};

}  // namespace

void RegisterWorkerObjects(rpc::Router& router, const WorkerLinkDeps& deps) {
  router.Unary<GetMountRequest, GetMountResponse>(
      "lydian.WorkerLink", "GetMount",
      [mounts = deps.mounts](const GetMountRequest& request, const rpc::Ctx& ctx,
                             const rpc::Reply<GetMountResponse>& reply) {
        Status allowed = WorkersOnly(*ctx);
        if (!allowed.ok()) return reply(allowed);
        mounts->Files(request.mount_id(), [reply](Result<GetMountResponse> files) { reply(files); });
      });
  auto pool = std::make_shared<Pool>("link-objects", 2);
  router.ServerStream<GetObjectRequest, ObjectChunk>(
      "lydian.WorkerLink", "GetObject",
      [blobs = deps.blobs, pool](const GetObjectRequest& request, const rpc::Ctx& ctx,
                                 rpc::Stream<ObjectChunk> stream) {
        Status allowed = WorkersOnly(*ctx);
        if (!allowed.ok()) return stream.Finish(allowed);
        std::make_shared<ObjectPump>(pool, std::move(stream), request.sha256(), request.offset())
            ->Start(blobs);
      });
}

}  // namespace lydian::api
