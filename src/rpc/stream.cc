// What callers do with a stream: from any thread, under its connection's mutex.
#include "rpc/connection.h"

namespace lydian::rpc {
namespace {

constexpr size_t kSmallAnswer = size_t{4} << 10;
constexpr size_t kTimesUnread = 4;  // so much more than makes further calls wait

}  // namespace

H2Stream::H2Stream(std::shared_ptr<Connection> connection, size_t most_bytes)
    : connection_(std::move(connection)), parser_(most_bytes) {}

std::optional<size_t> H2Stream::Write(std::string message) {
  Connection& c = *connection_;
  std::unique_lock lock(c.mutex_);
  if (closed_ || finishing_) return {};
  c.BufferedLocked(*this, buffered_ + message.size());
  const size_t waiting = buffered_;
  queue_.push_back(std::move(message));
  c.server() ? c.AnswerLocked(*this) : c.ResumeLocked(*this);
  c.Send(lock);
  return waiting;
}

size_t H2Stream::buffered() const {
  std::lock_guard lock(connection_->mutex_);
  return connection_->FullLocked() ? connection_->unsent_ : buffered_;
}

void H2Stream::OnDrained(size_t limit, Task fn) {
  {
    std::lock_guard lock(connection_->mutex_);
    if (!connection_->DrainedLocked(*this, limit)) {
      on_drained_.swap(fn);
      drain_limit_ = limit;
      return;
    }
  }
  if (fn) fn();
}

void H2Stream::HoldReading(bool hold) {
  Connection& c = *connection_;
  std::unique_lock lock(c.mutex_);
  held_ = hold;
  if (hold) return;
  if (!closed_ && unconsumed_ > 0) {
    nghttp2_session_consume_stream(c.session_, id_, std::exchange(unconsumed_, 0));
  }
  c.ListLocked(*this);
  c.Send(lock);
}

void H2Stream::DropUnsent() {
  std::lock_guard lock(connection_->mutex_);
  while (queue_.size() > (sent_of_first_ > 0 ? 1 : 0)) {
    connection_->BufferedLocked(*this, buffered_ - queue_.back().size());
    queue_.pop_back();
  }
  if (on_drained_ && buffered_ < drain_limit_) connection_->ListLocked(*this);
}

void H2Stream::Finish(Fields trailers, std::optional<std::string> message) {
  Connection& c = *connection_;
  std::unique_lock lock(c.mutex_);
  if (closed_ || std::exchange(finishing_, true)) return;
  trailers_ = std::move(trailers);
  // Calls that began before their client was seen not to read.
  if (message && message->size() > kSmallAnswer && c.unsent_ / kTimesUnread > c.MostUnreadLocked()) {
    message.reset();
    trailers_ = StatusFields(ResourceExhausted("too many answers on this connection were not read"));
  }
  if (message) {
    c.BufferedLocked(*this, buffered_ + message->size());
    queue_.push_back(std::move(*message));
  }
  c.AnswerLocked(*this);
  c.Send(lock);
}

std::shared_ptr<MemoryBudget> H2Stream::memory() const {
  const auto& own = connection_->options_.memory;
  return own ? own : MemoryBudget::OfProcess();
}

void H2Stream::Authenticated() { connection_->Authenticated(); }

void H2Stream::HalfClose() {
  Connection& c = *connection_;
  std::unique_lock lock(c.mutex_);
  if (closed_ || std::exchange(finishing_, true)) return;
  c.ResumeLocked(*this);
  c.Send(lock);
}

void H2Stream::Reset(Status why) {
  Connection& c = *connection_;
  std::unique_lock lock(c.mutex_);
  if (closed_ || ended_) return;
  nghttp2_submit_rst_stream(c.session_, NGHTTP2_FLAG_NONE, id_, NGHTTP2_CANCEL);
  c.OverLocked(*this, std::move(why));
  c.Send(lock);
}

}  // namespace lydian::rpc
