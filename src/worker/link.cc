#include "worker/link.h"

#include <algorithm>
#include <future>
#include <optional>

#include "base/ids.h"
#include "base/log.h"
#include "worker/link_limits.h"

namespace lydian::worker {
namespace {
constexpr Millis kFirstPause{20};
constexpr Millis kLongestPause{100};
constexpr Millis kGather{8};  // an output whose container has more to do waits so long for others
constexpr int kMostGathered = 64;
}  // namespace

Link::Link(std::unique_ptr<rpc::Channel> channel, Strand* strand, Hooks hooks)
    : channel_(std::move(channel)), strand_(strand), hooks_(std::move(hooks)) {}

Link::~Link() { *alive_ = false; }

void Link::Start() {
  strand_->Post([this, alive = alive_] {
    if (*alive) Connect();
  });
}

void Link::Stop() {
  std::promise<void> done;
  strand_->Post([&] {
    stopped_ = true;
    up_ = false;
    waiting_.clear();
    std::shared_ptr<rpc::ClientCall> call;
    {
      std::lock_guard lock(mutex_);
      call = std::move(call_);
    }
    if (call) call->Cancel();
    done.set_value();
  });
  done.get_future().wait();
}

void Link::Connect() {
  if (stopped_) return;
  const uint64_t generation = ++generation_;
  rpc::ClientCallbacks callbacks;
  callbacks.on_message = [this, generation, alive = alive_](std::string bytes) {
    auto message = std::make_shared<ToWorker>();
    if (!message->ParseFromString(bytes)) {
      LOG_ERROR("control sent bytes that are not a ToWorker");
      return;
    }
    auto receive = [this, generation, alive, message] {
      if (*alive) Received(generation, std::move(*message));
    };
    // What every input brings is short work; the rest may take its time, on the strand's own thread.
    const bool hot = message->has_leases() || message->has_output_acks();
    hot ? strand_->Run(std::move(receive)) : strand_->Post(std::move(receive));
  };
  callbacks.on_done = [this, generation, alive = alive_](Status status, rpc::Metadata) {
    strand_->Post([this, generation, alive, status] {
      if (*alive) Closed(generation, status);
    });
  };
  auto call = channel_->Start("/lydian.WorkerLink/Attach", {}, std::move(callbacks));
  FromWorker hello;
  *hello.mutable_hello() = hooks_.make_hello();
  call->Write(hello.SerializeAsString());
  std::lock_guard lock(mutex_);
  call_ = std::move(call);
}

void Link::Closed(uint64_t generation, const Status& status) {
  if (generation != generation_ || stopped_) return;
  {
    std::lock_guard lock(mutex_);
    call_ = nullptr;
    gathered_.Clear();  // sent again after the next welcome
    gathered_bytes_ = 0;
  }
  const bool was_up = up_.exchange(false);
  if (was_up) {
    LOG_WARN("the link to control broke", {{"error", status}});
    failures_ = 0;
    hooks_.on_down();
  } else if (status.code() == Code::kFailedPrecondition) {
    LOG_ERROR("control refuses this worker; trying on", {{"error", status}});
  } else if (failures_ == 0) {
    LOG_WARN("control can't be reached; trying on", {{"error", status}});
  }
  if (failures_++ == 0) return Connect();
  const auto pause = std::min<Millis>(kLongestPause, kFirstPause * (1 << std::min(failures_, 5)));
  strand_->PostAfter(pause, [this, alive = alive_] {
    if (*alive) Connect();
  });
}

void Link::Received(uint64_t generation, ToWorker message) {
  if (generation != generation_ || stopped_) return;
  if (message.has_welcome()) {
    failures_ = 0;
    up_ = true;
    LOG_INFO("attached to control");
    hooks_.on_welcome(message.welcome());
    std::list<Task> waiting = std::move(waiting_);
    waiting_.clear();
    for (Task& task : waiting) task();
    return;
  }
  if (!up_) {
    LOG_ERROR("control spoke before its welcome; the message is dropped",
              {{"kind", static_cast<int>(message.kind_case())}});
    return;
  }
  hooks_.on_message(std::move(message));
}

void Link::Send(FromWorker message) {
  if (!up_) return;
  std::string bytes = message.SerializeAsString();
  std::lock_guard lock(mutex_);
  SendGathered();
  if (call_) call_->Write(std::move(bytes));
}

void Link::SendOutput(const Output& output, bool soon) {
  if (!up_) return;
  {
    const size_t bytes = output.ByteSizeLong();
    std::lock_guard lock(mutex_);
    if (gathered_bytes_ + bytes > kOutputsBytes) SendGathered();
    gathered_bytes_ += bytes;
    *gathered_.add_outputs() = output;
    if (!soon || gathered_.outputs_size() >= kMostGathered) return SendGathered();
    if (std::exchange(gathering_, true)) return;
  }
  strand_->PostAfter(kGather, [this, alive = alive_] {
    if (!*alive) return;
    std::lock_guard lock(mutex_);
    gathering_ = false;
    SendGathered();
  });
}

void Link::SendGathered() {
  if (gathered_.outputs_size() == 0) return;
  FromWorker message;
  message.mutable_outputs()->Swap(&gathered_);
  gathered_bytes_ = 0;
  if (call_) call_->Write(message.SerializeAsString());
}

void Link::WhenUp(Task task) {
  strand_->Dispatch([this, alive = alive_, task = std::move(task)]() mutable {
    if (!*alive || stopped_) return;
    if (up_) {
      task();
    } else {
      waiting_.push_back(std::move(task));
    }
  });
}

namespace {
// A unary call until it has an answer that isn't control's absence.
struct HeldCall : std::enable_shared_from_this<HeldCall> {
  std::string method, request;
  rpc::Metadata metadata;
  std::function<void(Result<std::string>)> reply;
  std::function<void(Task)> again;  // runs it when control may be there
  rpc::Channel* channel = nullptr;

  void Run() {
    auto response = std::make_shared<std::optional<std::string>>();
    rpc::ClientCallbacks callbacks;
    callbacks.on_message = [response](std::string bytes) { *response = std::move(bytes); };
    callbacks.on_done = [self = shared_from_this(), response](Status status, rpc::Metadata) {
      if (status.code() == Code::kUnavailable) return self->again([self] { self->Run(); });
      if (!status.ok()) return self->reply(std::move(status));
      if (!response->has_value())
        return self->reply(Internal("control ended " + self->method + " without an answer"));
      self->reply(std::move(**response));
    };
    auto call = channel->Start(method, metadata, std::move(callbacks));
    call->Write(request);
    call->WritesDone();
  }
};
}  // namespace

void Link::WhenUpAfterPause(Task task) {
  strand_->PostAfter(kFirstPause, [this, alive = alive_, task = std::move(task)]() mutable {
    if (*alive) WhenUp(std::move(task));
  });
}

void Link::Call(const std::string& full_method, std::string request, rpc::Metadata metadata,
                std::function<void(Result<std::string>)> reply) {
  const bool has_key = std::any_of(metadata.begin(), metadata.end(),
                                   [](const auto& m) { return m.first == "x-idempotency-key"; });
  if (!has_key) metadata.emplace_back("x-idempotency-key", RandomHex(16));
  auto held = std::make_shared<HeldCall>();
  held->method = full_method;
  held->request = std::move(request);
  held->metadata = std::move(metadata);
  held->reply = std::move(reply);
  held->channel = channel_.get();
  held->again = [this](Task task) { WhenUpAfterPause(std::move(task)); };
  held->Run();
}

}  // namespace lydian::worker
