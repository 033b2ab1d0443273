// What a connection tells its streams' listeners, and when it makes them wait: until answers were read.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "rpc/connection.h"
#include "rpc/deadlines.h"

namespace lydian::rpc {
namespace {

constexpr size_t kLeastRead = size_t{256} << 10;  // of unread answers, in the time that a client has for it
constexpr size_t kAlwaysHeld = size_t{64} << 10;  // of a connection's, either way, whatever others hold
constexpr size_t kPartOfLeft = 16, kTimesLeft = 4;
constexpr Millis kLookAgain{500};

}  // namespace

// A part of what is left, so that something is, however many connections take all that they may.
size_t Connection::MostUnreadLocked() const {
  if (options_.memory == nullptr || options_.most_unread == SIZE_MAX) return options_.most_unread;
  return std::min(options_.most_unread, std::max(kAlwaysHeld, options_.memory->left() / kPartOfLeft));
}

// ... and of what comes from the other side and is not done with: a few times what is left, so that one by
// itself has four fifths, and many leave something however many they are. A worker's link carries what all
// its containers say: only large messages are held back there, and only when there is no memory at all.
bool Connection::TakesMoreLocked(const H2Stream& stream) const {
  if (options_.memory == nullptr) return true;
  if (options_.most_unread == SIZE_MAX)
    return stream.parser_.held_bytes() <= kAlwaysHeld || !options_.memory->exceeded();
  return held_bytes_ <= std::max(kAlwaysHeld, kTimesLeft * options_.memory->left());
}

bool Connection::FullLocked() const { return server() && unsent_ > MostUnreadLocked(); }

// How much of a stream waits to be sent.
void Connection::BufferedLocked(H2Stream& stream, size_t now) {
  unsent_ += now - stream.buffered_;
  most_unsent_ = std::max(most_unsent_, unsent_);
  if (options_.memory) options_.memory->Change(stream.buffered_, now);
  stream.buffered_ = now;
  if (!watched_ && FullLocked()) WatchReaderLocked();
  if (backed_up_.empty() && !held_up_) return;
  // When all is over, what waits is not begun any more.
  if (!closed_ && unsent_ <= MostUnreadLocked() / 2) WakeLocked();
}

// Who waits until answers were read.
void Connection::WakeLocked() {
  if (std::exchange(held_up_, false)) {
    for (const auto& [id, waiting] : streams_) {
      if (waiting->on_drained_) ListLocked(*waiting);
    }
  }
  for (const auto& waiting : std::exchange(backed_up_, {})) {
    waiting->backed_up_ = false;
    ListLocked(*waiting);
  }
}

// Whether more of the stream may be written.
bool Connection::DrainedLocked(const H2Stream& stream, size_t limit) {
  if (stream.closed_) return true;
  if (stream.buffered_ >= limit) return false;
  const bool full = FullLocked();
  held_up_ |= full;
  return !full;
}

void Connection::WatchReaderLocked() {
  watched_ = true;
  watched_since_ = std::chrono::steady_clock::now();
  watched_taken_ = taken_;
  LookAgain();
}

void Connection::LookAgain() {
  Deadlines().PostAfter(std::min(options_.unread_for, kLookAgain), [weak = weak_from_this()] {
    Loop::Get().Post([weak] {
      if (const auto self = weak.lock()) self->CheckReader();
    });
  });
}

// How much is too much depends on what others hold: it may be enough by now, although nothing was read.
void Connection::CheckReader() {
  size_t unread = 0;
  {
    std::unique_lock lock(mutex_);
    watched_ = false;
    if (closed_) return;
    if (!FullLocked()) {
      WakeLocked();
      lock.unlock();
      return Tell();
    }
    if (taken_ - watched_taken_ >= kLeastRead) return WatchReaderLocked();
    if (std::chrono::steady_clock::now() - watched_since_ < options_.unread_for) {
      watched_ = true;
      return LookAgain();
    }
    unread = unsent_;
  }
  LOG_WARN("a connection is closed: its client does not read its answers", {{"bytes", unread}});
  Close(ResourceExhausted("the client did not read its answers"));
}

void Connection::Tell() {
  for (;;) {
    std::vector<std::shared_ptr<H2Stream>> ready;
    std::vector<std::shared_ptr<StreamListener>> let_go;
    {
      std::lock_guard lock(mutex_);
      ready.swap(ready_);
      let_go.swap(let_go_);
      for (const auto& stream : ready) stream->listed_ = false;
    }
    for (const auto& listener : let_go) listener->OnClosed();
    if (ready.empty()) return;
    for (const auto& stream : ready) TellOf(stream);
  }
}

void Connection::TellOf(const std::shared_ptr<H2Stream>& stream) {
  for (;;) {
    std::unique_lock lock(mutex_);
    if (stream->on_drained_ && DrainedLocked(*stream, stream->drain_limit_)) {
      Task drained;
      drained.swap(stream->on_drained_);
      lock.unlock();
      drained();
      continue;
    }
    if (stream->told_last_) return;
    if (!stream->closed_ && !stream->inbox_.empty() &&
        stream->inbox_.front().kind == H2Stream::Item::Kind::kRequest && FullLocked()) {
      if (!std::exchange(stream->backed_up_, true)) backed_up_.push_back(stream);
      return;
    }
    if (!stream->inbox_.empty() && !stream->held_) {
      H2Stream::Item item = std::move(stream->inbox_.front());
      stream->inbox_.pop_front();
      stream->inbox_bytes_ -= item.message.size();
      AccountLocked(*stream);
      stream->told_last_ = !server() && item.kind == H2Stream::Item::Kind::kEnd;
      auto listener = stream->told_last_ ? std::move(stream->listener_) : stream->listener_;
      lock.unlock();
      TellItem(stream, std::move(listener), std::move(item));
      continue;
    }
    // A client that holds its answer back still gets all of it.
    if (!stream->closed_ || (!server() && stream->ended_)) return;
    stream->told_last_ = true;
    stream->inbox_.clear();
    stream->inbox_bytes_ = 0;
    AccountLocked(*stream);
    auto listener = std::move(stream->listener_);
    const Status why = stream->broken_;
    lock.unlock();
    if (listener) listener->OnBroken(why);
    return;
  }
}

void Connection::TellItem(const std::shared_ptr<H2Stream>& stream, std::shared_ptr<StreamListener> listener,
                          H2Stream::Item item) {
  switch (item.kind) {
    case H2Stream::Item::Kind::kRequest:
      listener = options_.on_request(stream, std::move(item.headers));
      {
        std::lock_guard lock(mutex_);
        if (!stream->told_last_) stream->listener_.swap(listener);
      }
      if (listener) listener->OnClosed();  // all over already
      return;
    case H2Stream::Item::Kind::kMessage:
      if (listener) listener->OnMessage(std::move(item.message));
      return;
    case H2Stream::Item::Kind::kBad:
      if (listener) listener->OnBadMessage(std::move(item.status));
      return;
    case H2Stream::Item::Kind::kEnd:
      if (listener) listener->OnEnd(item.headers);
      return;
  }
}

}  // namespace lydian::rpc
