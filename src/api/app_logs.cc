// Logs of an app: followed live, fetched and counted afterwards.
#include <modal_proto/api.pb.h>

#include <algorithm>
#include <map>

#include "api/handlers.h"
#include "api/log_pump.h"
#include "api/log_records.h"
#include "api/turns.h"
#include "base/ids.h"

namespace lydian::api {

namespace pb = modal::client;
using control::LogRecord;

namespace {

constexpr uint32_t kMostFetched = 20'000;
constexpr size_t kMostFetchedBytes = size_t{16} << 20;
constexpr int64_t kMostBuckets = 100'000;

template <typename Request>
control::LogFilter FilterOf(const Request& request, pb::FileDescriptor source) {
  control::LogFilter filter;
  filter.task_id = request.task_id();
  filter.function_id =
      request.parametrized_function_id().empty() ? request.function_id() : request.parametrized_function_id();
  filter.function_call_id = request.function_call_id();
  filter.file_descriptor = source;
  return filter;
}

int64_t Nanos(const google::protobuf::Timestamp& time) {
  return time.seconds() * 1'000'000'000 + time.nanos();
}

void Follow(const ServicesPtr& services, const pb::AppGetLogsRequest& request, rpc::Ctx ctx,
            rpc::Stream<pb::TaskLogsBatch> stream, const control::App& app) {
  auto cursor = ParseCursor(request.last_entry_id());
  if (!cursor.ok()) return stream.Finish(cursor.status());
  // An app that ended just before a crash may have an open log.
  if (app.state == control::AppState::kStopped) services->logs->MarkDone(app.id);
  LogPump::Options options;
  options.stream = app.id;
  options.workspace = ctx->caller().workspace_id;
  options.after = *cursor;
  options.filter = FilterOf(request, request.file_descriptor());
  options.timeout_secs = request.timeout();
  options.write = [stream](const std::vector<LogRecord>& records) {
    for (const auto& batch : Batches(records)) stream.Write(batch);
  };
  options.keep_alive = [stream] { stream.Write(pb::TaskLogsBatch()); };
  options.end = [stream](Result<bool> done) {
    if (!done.ok()) return stream.Finish(done.status());
    if (*done) {
      pb::TaskLogsBatch last;
      last.set_app_done(true);
      stream.Write(last);
    }
    stream.Finish();
  };
  auto pump = LogPump::Start(&services->objects->strand(), services->logs, services->log_pages,
                             std::move(ctx), stream.raw(), std::move(options));
  // Those of the app's own client: the others asked for a part of the log.
  if (request.timeout() > 0 && request.task_id().empty() && request.function_id().empty())
    services->log_streams->Add(app.id, pump);
}

void GetLogs(const ServicesPtr& services, const pb::AppGetLogsRequest& request, rpc::Ctx ctx,
             rpc::Stream<pb::TaskLogsBatch> stream) {
  auto scope = ScopeOf(*services, *ctx, Who::kAnyone);
  if (!scope.ok()) return stream.Finish(scope.status());
  if (!request.sandbox_id().empty())
    return stream.Finish(NotFound("no sandbox " + request.sandbox_id().substr(0, 80)));
  auto with_app = [services, request, ctx, stream, scope = *scope](const std::string& app_id) {
    auto app = services->objects->apps().Get(scope, app_id);
    if (!app.ok()) {
      bool by_task = request.app_id().empty() && !request.task_id().empty();
      return stream.Finish(by_task ? NoSuchTask(app.status(), request.task_id()) : app.status());
    }
    Follow(services, request, ctx, stream, *app);
  };
  if (!request.app_id().empty() || request.task_id().empty()) return with_app(request.app_id());
  services->engine->TaskById(
      request.task_id(), [services, request, stream, with_app](Result<control::TaskView> task) {
        services->objects->strand().Post([request, stream, with_app, task = std::move(task)] {
          if (!task.ok()) return stream.Finish(NoSuchTask(task.status(), request.task_id()));
          with_app(task->app_id);
        });
      });
}

// Reads a whole stretch of log, page by page, and gives each record to `each`.
struct Scan : std::enable_shared_from_this<Scan> {
  ServicesPtr services;
  rpc::Ctx ctx;
  std::string stream, search;
  control::LogFilter filter;
  uint64_t after = 0;
  std::function<void(const LogRecord&)> each;
  std::function<void(Status)> end;
  std::shared_ptr<void> question, turn;

  // When it is its workspace's turn.
  void Begin(const std::string& workspace) {
    services->log_scans->Take(workspace, [self = shared_from_this()](std::shared_ptr<void> turn) {
      self->turn = std::move(turn);
      if (self->ctx->cancelled()) return self->end(Cancelled("the client has gone"));
      self->Next();
    });
  }
  void Next() {
    auto self = shared_from_this();
    question =
        services->logs->Read(stream, after, filter, 5000, 0, [self](Result<control::LogStore::Page> page) {
          self->services->objects->strand().Post([self, page = std::move(page)] { self->OnPage(page); });
        });
  }
  void OnPage(const Result<control::LogStore::Page>& page) {
    question.reset();
    if (!page.ok()) return end(page.status());
    if (ctx->cancelled()) return end(Cancelled("the client has gone"));
    for (const auto& record : page->records) {
      if (record.file_descriptor != 0 && record.data.find(search) != std::string::npos) each(record);
    }
    if (page->records.empty() || page->done) return end(OkStatus());
    after = page->records.back().seq;
    Next();
  }
};

template <typename Request>
Result<std::shared_ptr<Scan>> MakeScan(const ServicesPtr& services, const Request& request, Call& call) {
  ASSIGN_OR_RETURN(auto app, call.objects().apps().Get(call.scope, request.app_id()));
  if (!request.sandbox_id().empty()) return NotFound("no sandbox " + request.sandbox_id().substr(0, 80));
  auto scan = std::make_shared<Scan>();
  scan->services = services, scan->ctx = call.ctx, scan->stream = app.id,
  scan->search = request.search_text();
  scan->filter = FilterOf(request, request.source());
  if (request.has_since()) scan->filter.since_nanos = Nanos(request.since());
  if (request.has_until()) scan->filter.until_nanos = Nanos(request.until());
  return scan;
}

// The newest, read from the log's end: it may be long.
struct Tail : std::enable_shared_from_this<Tail> {
  explicit Tail(const rpc::Reply<pb::AppFetchLogsResponse>& answer) : reply(answer) {}

  ServicesPtr services;
  rpc::Ctx ctx;
  std::string stream, search;
  control::LogFilter filter;
  size_t most = 0;
  rpc::Reply<pb::AppFetchLogsResponse> reply;
  std::shared_ptr<void> question, turn;
  bool over = false;

  void Begin(const std::string& workspace) {
    services->log_scans->Take(workspace, [self = shared_from_this()](std::shared_ptr<void> turn) {
      self->turn = std::move(turn);
      if (self->ctx->cancelled()) return self->End(Cancelled("the client has gone"));
      self->question = self->services->logs->ReadLast(
          self->stream, self->filter, self->search, self->most, kMostFetchedBytes,
          [self](Result<control::LogStore::Page> page) {
            self->services->objects->strand().Post([self, page = std::move(page)] { self->End(page); });
          });
    });
    ctx->OnCancel([weak = weak_from_this()] {
      auto self = weak.lock();
      if (self == nullptr) return;
      self->services->objects->strand().Post([self] {
        if (self->question != nullptr) self->End(Cancelled("the client has gone"));
      });
    });
  }
  void End(const Result<control::LogStore::Page>& page) {
    if (over) return;
    over = true;
    question.reset();
    turn.reset();
    if (!page.ok()) return reply(page.status());
    pb::AppFetchLogsResponse response;
    for (auto& batch : Batches(page->records)) *response.add_batches() = std::move(batch);
    reply(response);
  }
};

void Fetch(const ServicesPtr& services, const pb::AppFetchLogsRequest& request, Call& call,
           const rpc::Reply<pb::AppFetchLogsResponse>& reply) {
  auto scan = MakeScan(services, request, call);
  if (!scan.ok()) return reply(scan.status());
  auto tail = std::make_shared<Tail>(reply);
  tail->services = services, tail->ctx = call.ctx, tail->stream = (*scan)->stream,
  tail->search = (*scan)->search, tail->filter = (*scan)->filter;
  tail->filter.text_only = true;
  tail->most = request.limit() == 0 ? kMostFetched : std::min(request.limit(), kMostFetched);
  tail->Begin(call.scope.workspace_id);
}

void Count(const ServicesPtr& services, const pb::AppCountLogsRequest& request, Call& call,
           const rpc::Reply<pb::AppCountLogsResponse>& reply) {
  auto scan = MakeScan(services, request, call);
  if (!scan.ok()) return reply(scan.status());
  int64_t bucket = int64_t{std::max<uint32_t>(1, request.bucket_secs())} * 1'000'000'000;
  int64_t since = (*scan)->filter.since_nanos;
  auto counts = std::make_shared<std::map<int64_t, pb::AppCountLogsResponse::LogBucket>>();
  (*scan)->each = [counts, bucket, since](const LogRecord& record) {
    int64_t start = since + (record.unix_nanos - since) / bucket * bucket;
    if (counts->size() >= kMostBuckets && counts->count(start) == 0) return;
    auto& entry = (*counts)[start];
    if (record.file_descriptor == pb::FILE_DESCRIPTOR_STDOUT) {
      entry.set_stdout_logs(entry.stdout_logs() + 1);
    } else if (record.file_descriptor == pb::FILE_DESCRIPTOR_STDERR) {
      entry.set_stderr_logs(entry.stderr_logs() + 1);
    } else {
      entry.set_system_logs(entry.system_logs() + 1);
    }
  };
  (*scan)->end = [counts, reply, app_id = request.app_id()](Status status) {
    if (!status.ok()) return reply(status);
    pb::AppCountLogsResponse response;
    response.set_app_id(app_id);
    for (auto& [start, entry] : *counts) {
      entry.mutable_bucket_start_at()->set_seconds(start / 1'000'000'000);
      entry.mutable_bucket_start_at()->set_nanos(static_cast<int32_t>(start % 1'000'000'000));
      *response.add_buckets() = std::move(entry);
    }
    reply(response);
  };
  (*scan)->Begin(call.scope.workspace_id);
}

}  // namespace

pb::TaskLogs LogItem(const LogRecord& record) {
  pb::TaskLogs item;
  item.set_data(record.data);
  item.set_file_descriptor(static_cast<pb::FileDescriptor>(record.file_descriptor));
  if (record.file_descriptor == 0) item.set_task_state(static_cast<pb::TaskState>(record.task_state));
  item.set_timestamp(static_cast<double>(record.unix_nanos) / 1e9);
  item.set_timestamp_ns(static_cast<uint64_t>(record.unix_nanos));
  item.set_function_call_id(record.function_call_id);
  item.set_input_id(record.input_id);
  item.set_container_id(record.container_id);
  return item;
}

std::vector<pb::TaskLogsBatch> Batches(const std::vector<LogRecord>& records) {
  std::vector<pb::TaskLogsBatch> batches;
  for (const auto& record : records) {
    bool joins = !batches.empty() && batches.back().task_id() == record.task_id &&
                 batches.back().function_id() == record.function_id &&
                 batches.back().input_id() == record.input_id;
    if (!joins) {
      auto& batch = batches.emplace_back();
      batch.set_task_id(record.task_id);
      batch.set_function_id(record.function_id);
      batch.set_root_function_id(record.root_function_id);
      batch.set_input_id(record.input_id);
    }
    *batches.back().add_items() = LogItem(record);
    batches.back().set_entry_id(Cursor(record.seq));
  }
  return batches;
}

void RegisterAppLogs(rpc::Router& router, ServicesPtr services) {
  router.ServerStream<pb::AppGetLogsRequest, pb::TaskLogsBatch>(
      kClientService, "AppGetLogs",
      [services](const pb::AppGetLogsRequest& request, rpc::Ctx ctx, rpc::Stream<pb::TaskLogsBatch> stream) {
        services->objects->strand().Post(
            [services, request, ctx, stream] { GetLogs(services, request, ctx, stream); });
      });
  OnObjectsAsync<pb::AppFetchLogsRequest, pb::AppFetchLogsResponse>(
      router, services, "AppFetchLogs", Who::kAnyone,
      [services](const pb::AppFetchLogsRequest& request, Call& call, const auto& reply) {
        Fetch(services, request, call, reply);
      });
  OnObjectsAsync<pb::AppCountLogsRequest, pb::AppCountLogsResponse>(
      router, services, "AppCountLogs", Who::kAnyone,
      [services](const pb::AppCountLogsRequest& request, Call& call, const auto& reply) {
        Count(services, request, call, reply);
      });
}

}  // namespace lydian::api
