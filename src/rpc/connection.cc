#include "rpc/connection.h"

#include <malloc.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/log.h"
#include "rpc/deadlines.h"

namespace lydian::rpc {
namespace {

constexpr size_t kMostOut = size_t{128} << 10;     // taken from the streams before the socket has taken it
constexpr size_t kMostOutKept = size_t{32} << 10;  // of an idle connection
// Headers of a call, as HTTP/2 counts them: what we say that we take, what ends the call, and what ends the
// connection, since a few bytes can stand for any number of them and decoding is work.
constexpr uint32_t kAdvisedHeaders = uint32_t{16} << 10;
constexpr size_t kMostHeaders = size_t{64} << 10;
constexpr size_t kMostHeadersDecoded = size_t{256} << 10;
constexpr int kMostRefused = 64;  // calls of a connection, for their headers
constexpr size_t kFieldOverhead = 32;
constexpr size_t kMuchMemory = size_t{64} << 20;  // to be given back once it is free
constexpr std::string_view kGrpcType = "application/grpc";
constexpr uint32_t kStreamWindow = uint32_t{1} << 20;
constexpr int32_t kConnectionWindow = int32_t{1} << 30;  // streams are held back each for itself
// Calls that their client gives up: the library's own 33 a second would end the connection of a worker whose
// containers stop.
constexpr uint64_t kResetBurst = 20'000, kResetsPerSecond = 2'000;

nghttp2_nv Field(std::string_view name, std::string_view value) {
  const auto bytes = [](std::string_view text) {
    return const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(text.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(),
          NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

const std::array kAnswerFields = {Field(":status", "200"), Field("content-type", "application/grpc"),
                                  Field("grpc-accept-encoding", "identity")};

// So much is free again. The allocator keeps what it is given back.
void ReleaseMemory(size_t bytes) {
  static std::atomic<bool> pending{false};
  static std::atomic<size_t> kept{0};
  if (kept.fetch_add(bytes) + bytes < kMuchMemory || pending.exchange(true)) return;
  kept = 0;
  Deadlines().Post([] {
    pending = false;
    malloc_trim(0);
  });
}

Status StatusOfReset(uint32_t code) {
  switch (code) {
    case NGHTTP2_NO_ERROR:
      return Internal("the other side ended the call without a status");
    case NGHTTP2_CANCEL:
      return Cancelled("the other side gave the call up");
    case NGHTTP2_REFUSED_STREAM:
      return Unavailable("the other side takes no more calls on this connection");
    case NGHTTP2_ENHANCE_YOUR_CALM:
      return ResourceExhausted("the other side refuses so many calls");
    default:
      return Internal("the other side ended the call: " + std::string(nghttp2_http2_strerror(code)));
  }
}

}  // namespace

// What nghttp2 calls, with the connection's mutex held.
struct Connection::Callbacks {
  static Connection& Of(void* user) { return *static_cast<Connection*>(user); }
  static H2Stream* Find(nghttp2_session* session, int32_t id) {
    return static_cast<H2Stream*>(nghttp2_session_get_stream_user_data(session, id));
  }

  static int BeginHeaders(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    Connection& connection = Of(user);
    connection.block_bytes_ = 0;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    auto stream =
        std::make_shared<H2Stream>(connection.shared_from_this(), connection.options_.most_message_bytes);
    stream->id_ = frame->hd.stream_id;
    nghttp2_session_set_stream_user_data(session, stream->id_, stream.get());
    connection.streams_.emplace(stream->id_, std::move(stream));
    return 0;
  }

  static int Header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                    size_t name_size, const uint8_t* value, size_t value_size, uint8_t /*flags*/,
                    void* user) {
    const bool go_on = Of(user).HeaderLocked(Find(session, frame->hd.stream_id),
                                             {reinterpret_cast<const char*>(name), name_size},
                                             {reinterpret_cast<const char*>(value), value_size});
    return go_on ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
  }

  static int Frame(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    Connection& connection = Of(user);
    if (frame->hd.type == NGHTTP2_GOAWAY) connection.leaving_ = true;
    H2Stream* stream = Find(session, frame->hd.stream_id);
    if (stream == nullptr) return 0;
    const bool end = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    if (frame->hd.type == NGHTTP2_HEADERS) connection.HeadersLocked(*stream, end);
    if (frame->hd.type == NGHTTP2_DATA && end) connection.EndedLocked(*stream, {});
    return 0;
  }

  static int Data(nghttp2_session* session, uint8_t /*flags*/, int32_t id, const uint8_t* bytes, size_t size,
                  void* user) {
    nghttp2_session_consume_connection(session, size);
    if (H2Stream* stream = Find(session, id)) {
      Of(user).DataLocked(*stream, {reinterpret_cast<const char*>(bytes), size});
    } else {
      nghttp2_session_consume_stream(session, id, size);
    }
    return 0;
  }

  static int StreamClosed(nghttp2_session* session, int32_t id, uint32_t code, void* user) {
    H2Stream* stream = Find(session, id);
    if (stream == nullptr) return 0;
    Of(user).OverLocked(*stream, StatusOfReset(code));
    Of(user).streams_.erase(id);
    return 0;
  }

  // A client's call that was never sent: it was cancelled, or the server takes no more.
  static int NotSent(nghttp2_session* session, const nghttp2_frame* frame, int /*error*/, void* user) {
    if (frame->hd.type != NGHTTP2_HEADERS || Of(user).server()) return 0;
    auto it = Of(user).streams_.find(frame->hd.stream_id);
    if (it == Of(user).streams_.end()) return 0;
    Of(user).OverLocked(*it->second, StatusOfReset(NGHTTP2_REFUSED_STREAM));
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, nullptr);
    Of(user).streams_.erase(it);
    return 0;
  }

  // A client that hears the end of a call should stop sending (RFC 9113, 8.1).
  static int Sent(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    if (!Of(user).server() || frame->hd.type != NGHTTP2_HEADERS) return 0;
    if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
    if (nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0) {
      nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    }
    return 0;
  }

  static ssize_t Source(nghttp2_session* /*session*/, int32_t /*id*/, uint8_t* buffer, size_t length,
                        uint32_t* flags, nghttp2_data_source* source, void* user) {
    return Of(user).TakeLocked(*static_cast<H2Stream*>(source->ptr), buffer, length, flags);
  }

  static nghttp2_data_provider Provider(H2Stream* stream) {
    nghttp2_data_provider provider{};
    provider.source.ptr = stream;
    provider.read_callback = Source;
    return provider;
  }

  static const nghttp2_session_callbacks* All() {
    static nghttp2_session_callbacks* const all = [] {
      nghttp2_session_callbacks* made = nullptr;
      CHECK(nghttp2_session_callbacks_new(&made) == 0);
      nghttp2_session_callbacks_set_on_begin_headers_callback(made, BeginHeaders);
      nghttp2_session_callbacks_set_on_header_callback(made, Header);
      nghttp2_session_callbacks_set_on_frame_recv_callback(made, Frame);
      nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, Data);
      nghttp2_session_callbacks_set_on_stream_close_callback(made, StreamClosed);
      nghttp2_session_callbacks_set_on_frame_not_send_callback(made, NotSent);
      nghttp2_session_callbacks_set_on_frame_send_callback(made, Sent);
      return made;
    }();
    return all;
  }

  static const nghttp2_option* Settings() {
    static nghttp2_option* const settings = [] {
      nghttp2_option* made = nullptr;
      CHECK(nghttp2_option_new(&made) == 0);
      nghttp2_option_set_no_auto_window_update(made, 1);
      nghttp2_option_set_no_closed_streams(made, 1);
      nghttp2_option_set_peer_max_concurrent_streams(made, kFewStreams);  // until it has said how many
      nghttp2_option_set_stream_reset_rate_limit(made, kResetBurst, kResetsPerSecond);
      return made;
    }();
    return settings;
  }
};

Connection::Connection(UniqueFd fd, Options options, bool connecting)
    : options_(std::move(options)), fd_(std::move(fd)), connecting_(connecting) {}

Connection::~Connection() { nghttp2_session_del(session_); }

std::shared_ptr<Connection> Connection::Create(UniqueFd fd, Options options, bool connecting) {
  std::shared_ptr<Connection> made(new Connection(std::move(fd), std::move(options), connecting));
  made->Start();
  return made;
}

void Connection::Start() {
  std::unique_lock lock(mutex_);
  CHECK((server() ? nghttp2_session_server_new2 : nghttp2_session_client_new2)(
            &session_, Callbacks::All(), this, Callbacks::Settings()) == 0);
  std::vector<nghttp2_settings_entry> settings = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kStreamWindow},
                                                  {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, kAdvisedHeaders}};
  if (server()) {
    settings.push_back({NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, options_.most_streams});
  } else {
    settings.push_back({NGHTTP2_SETTINGS_ENABLE_PUSH, 0});
  }
  CHECK(nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings.data(), settings.size()) == 0);
  CHECK(nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0, kConnectionWindow) == 0);
  watch_id_ = Loop::Get().Add(fd_.get(), shared_from_this(), connecting_);
  want_write_ = connecting_;
  if (server()) Send(lock);  // a client's go with its first call
}

std::shared_ptr<H2Stream> Connection::Open(const Fields& request, std::shared_ptr<StreamListener> listener) {
  auto stream = std::make_shared<H2Stream>(shared_from_this(), options_.most_message_bytes);
  std::unique_lock lock(mutex_);
  if (closed_ || leaving_) return nullptr;
  const std::vector<nghttp2_nv> fields = request.ForSession();
  const nghttp2_data_provider provider = Callbacks::Provider(stream.get());
  const int32_t id =
      nghttp2_submit_request(session_, nullptr, fields.data(), fields.size(), &provider, stream.get());
  if (id < 0) {  // all numbers are used up
    leaving_ = true;
    return nullptr;
  }
  stream->id_ = id;
  stream->listener_ = std::move(listener);
  streams_.emplace(id, stream);
  Send(lock);
  return stream;
}

void Connection::Close(Status why) {
  CHECK(Loop::Get().OnThread());
  {
    std::unique_lock lock(mutex_);
    if (closed_) return;
    if (!connecting_) {
      nghttp2_session_terminate_session(session_, NGHTTP2_NO_ERROR);
      SendLocked();
    }
    closed_ = true;
    auto streams = std::move(streams_);
    streams_.clear();
    for (auto& [id, stream] : streams) OverLocked(*stream, why);
    Loop::Get().Remove(fd_.get(), watch_id_);
    fd_.reset();
  }
  Tell();
  ReleaseMemory(most_unsent_);
  if (options_.on_closed) options_.on_closed(this);
}

void Connection::CloseWhenIdle() {
  std::unique_lock lock(mutex_);
  leaving_ = true;
  Send(lock);
}

void Connection::Ready(uint32_t events) {
  const auto self = shared_from_this();
  if (connecting_) return Connected();
  if ((events & EPOLLOUT) != 0) Flush();
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) Receive();
}

void Connection::Connected() {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) {
    errno = error;
    return Close(Unavailable("connecting: " + ErrnoStatus("connect").message()));
  }
  {
    std::lock_guard lock(mutex_);
    connecting_ = false;
  }
  Flush();
}

void Connection::Receive() {
  static thread_local std::array<uint8_t, size_t{64} << 10> buffer;
  const ssize_t count = ::recv(fd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count < 0) return Close(Unavailable("the connection broke: " + ErrnoStatus("recv").message()));
  if (count == 0) return Close(Unavailable("the other side closed the connection"));
  ssize_t taken = 0;
  {
    std::unique_lock lock(mutex_);
    if (closed_) return;
    taken = nghttp2_session_mem_recv(session_, buffer.data(), static_cast<size_t>(count));
    if (nghttp2_session_want_write(session_) != 0 || nghttp2_session_want_read(session_) == 0) Send(lock);
  }
  Tell();
  if (taken >= 0) return;
  LOG_DEBUG("a connection's bytes are not HTTP/2", {{"says", nghttp2_strerror(static_cast<int>(taken))}});
  Close(Unavailable("the other side does not speak HTTP/2"));
}

void Connection::Flush() {
  {
    std::lock_guard lock(mutex_);
    dirty_ = false;
    if (!closed_) SendLocked();
  }
  Tell();
}

void Connection::Send(std::unique_lock<std::mutex>& lock) {
  if (Loop::Get().OnThread()) {
    if (!std::exchange(dirty_, true)) Loop::Get().FlushLater(shared_from_this());
    return;
  }
  if (!closed_) SendLocked();
  const bool tell = !ready_.empty();
  const auto let_go = std::exchange(let_go_, {});
  lock.unlock();
  for (const auto& listener : let_go) listener->OnClosed();
  if (tell) Loop::Get().Post([self = shared_from_this()] { self->Tell(); });
}

// Moves what is ready to go into out_. False when the session can't go on.
bool Connection::FillOut() {
  while (out_.size() < kMostOut) {
    const uint8_t* bytes = nullptr;
    const ssize_t count = nghttp2_session_mem_send(session_, &bytes);
    if (count < 0) return false;
    if (count == 0) break;
    out_.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
  }
  return true;
}

void Connection::SendLocked() {
  if (connecting_) return;
  bool broken = false, blocked = false;
  while (!broken && !blocked) {
    broken = !FillOut();
    if (out_.empty()) break;
    const ssize_t count =
        ::send(fd_.get(), out_.data() + out_sent_, out_.size() - out_sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0) {
      if (errno == EINTR) continue;
      blocked = errno == EAGAIN;
      broken = broken || !blocked;
      break;
    }
    out_sent_ += static_cast<size_t>(count);
    if (out_sent_ < out_.size()) continue;
    out_sent_ = 0;
    if (out_.capacity() > kMostOutKept) out_ = {};
    out_.clear();
  }
  if (want_write_ != blocked) Loop::Get().WantWrite(fd_.get(), watch_id_, want_write_ = blocked);
  const bool over = nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0;
  // The loop reads the end then, and closes.
  if (broken || (!blocked && (over || (leaving_ && streams_.empty())))) ::shutdown(fd_.get(), SHUT_RDWR);
}

ssize_t Connection::TakeLocked(H2Stream& stream, uint8_t* buffer, size_t length, uint32_t* flags) {
  if (stream.closed_) return NGHTTP2_ERR_DEFERRED;  // what ends it comes behind
  size_t taken = 0;
  while (taken < length && !stream.queue_.empty()) {
    const std::string& first = stream.queue_.front();
    std::string_view rest = first;
    std::string prefix;
    if (stream.sent_of_first_ < kPrefixBytes) {
      prefix = MessagePrefix(first.size());
      rest = std::string_view(prefix).substr(stream.sent_of_first_);
    } else {
      rest.remove_prefix(stream.sent_of_first_ - kPrefixBytes);
    }
    const size_t part = std::min(rest.size(), length - taken);
    memcpy(buffer + taken, rest.data(), part);
    taken += part;
    taken_ += part;
    stream.sent_of_first_ += part;
    if (prefix.empty()) BufferedLocked(stream, stream.buffered_ - part);
    if (stream.sent_of_first_ == first.size() + kPrefixBytes) {
      stream.queue_.pop_front();
      stream.sent_of_first_ = 0;
    }
  }
  if (stream.on_drained_ && stream.buffered_ < stream.drain_limit_) ListLocked(stream);
  if (!stream.queue_.empty()) return static_cast<ssize_t>(taken);
  if (stream.finishing_) {
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    if (server()) {
      *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
      const std::vector<nghttp2_nv> trailers = stream.trailers_.ForSession();
      nghttp2_submit_trailer(session_, stream.id_, trailers.data(), trailers.size());
    }
  } else if (taken == 0) {
    return NGHTTP2_ERR_DEFERRED;
  }
  return static_cast<ssize_t>(taken);
}

void Connection::ResumeLocked(const H2Stream& stream) {
  nghttp2_session_resume_data(session_, stream.id_);  // an error: it is not waiting
}

// A server's: sends what the stream has, its headers first.
void Connection::AnswerLocked(H2Stream& stream) {
  if (std::exchange(stream.answering_, true)) return ResumeLocked(stream);
  if (!stream.queue_.empty()) {
    const nghttp2_data_provider provider = Callbacks::Provider(&stream);
    nghttp2_submit_response(session_, stream.id_, kAnswerFields.data(), kAnswerFields.size(), &provider);
    return;
  }
  std::vector<nghttp2_nv> fields(kAnswerFields.begin(), kAnswerFields.end());
  for (const nghttp2_nv& field : stream.trailers_.ForSession()) fields.push_back(field);
  nghttp2_submit_response(session_, stream.id_, fields.data(), fields.size(), nullptr);
}

// One field. False when the connection has sent so many that it is to end.
bool Connection::HeaderLocked(H2Stream* stream, std::string_view name, std::string_view value) {
  block_bytes_ += name.size() + value.size() + kFieldOverhead;
  if (block_bytes_ > kMostHeadersDecoded || refused_ > kMostRefused) {
    LOG_WARN("a connection is closed: the headers of its calls are too large",
             {{"bytes", block_bytes_}, {"calls_refused", refused_}});
    nghttp2_session_terminate_session(session_, NGHTTP2_ENHANCE_YOUR_CALM);
    return false;
  }
  if (stream == nullptr || stream->refused_ || stream->incoming_.size() > kMostHeaders) return true;
  stream->incoming_.Add(name, value);
  if (server() && !stream->told_request_ && stream->incoming_.size() > kMostHeaders) {
    ++refused_;
    stream->refused_ = true;  // answered when the last of its fields is here
    stream->incoming_ = {};
  }
  return true;
}

// Answers a call that is not to be heard, and that nobody has been told of.
void Connection::RefuseLocked(H2Stream& stream, const Status& why) {
  stream.finishing_ = stream.told_last_ = stream.deaf_ = true;
  stream.header_bytes_ = 0;
  AccountLocked(stream);
  stream.trailers_ = StatusFields(why);
  AnswerLocked(stream);
}

// False when the request is none of gRPC's: it has been answered as HTTP has it.
bool Connection::SpeaksGrpcLocked(H2Stream& stream, const Headers& request) {
  const std::string_view type = request.Get("content-type");
  const std::string_view behind = type.starts_with(kGrpcType) ? type.substr(kGrpcType.size()) : "?";
  const bool post = request.Get(":method") == "POST";
  if (post && (behind.empty() || behind.front() == '+' || behind.front() == ';')) return true;
  stream.finishing_ = stream.told_last_ = stream.deaf_ = true;
  const std::array fields = {Field(":status", post ? "415" : "405"),
                             post ? Field("accept", kGrpcType) : Field("allow", "POST")};
  nghttp2_submit_response(session_, stream.id_, fields.data(), fields.size(), nullptr);
  return false;
}

void Connection::HeadersLocked(H2Stream& stream, bool end) {
  Headers headers = std::exchange(stream.incoming_, {});
  const bool too_large = stream.refused_ || headers.size() > kMostHeaders;
  Status too_much = ResourceExhausted("the headers of a call may have 64 KiB");
  if (server()) {
    if (!stream.told_request_) {
      stream.told_request_ = true;
      if (too_large) return RefuseLocked(stream, too_much);
      if (!SpeaksGrpcLocked(stream, headers)) return;
      const std::string_view encoding = headers.Get("grpc-encoding");
      stream.encoded_ = !encoding.empty() && encoding != "identity";
      stream.header_bytes_ = headers.size();
      AccountLocked(stream);
      if (!TakesMoreLocked(stream))
        return RefuseLocked(stream, ResourceExhausted("more calls than there is memory for"));
      PushLocked(stream, {H2Stream::Item::Kind::kRequest, {}, std::move(headers), {}});
    }
  } else if (end) {
    return EndedLocked(stream, std::move(headers));
  } else if (const std::string_view status = headers.Get(":status");
             !status.starts_with('1') && status != "200") {
    BadMessageLocked(stream, Unavailable("the other side answers with HTTP status " + std::string(status)));
  }
  if (too_large) BadMessageLocked(stream, std::move(too_much));
  if (end) EndedLocked(stream, {});
}

void Connection::DataLocked(H2Stream& stream, std::string_view bytes) {
  if (stream.held_) {
    stream.unconsumed_ += bytes.size();
  } else {
    nghttp2_session_consume_stream(session_, stream.id_, bytes.size());
  }
  if (stream.deaf_ || stream.closed_ || (server() && stream.finishing_)) return;
  std::vector<std::string> messages;
  Status status = stream.parser_.Feed(bytes, &messages);
  for (std::string& message : messages) {
    PushLocked(stream, {H2Stream::Item::Kind::kMessage, std::move(message), {}, {}});
  }
  AccountLocked(stream);
  if (status.ok() && stream.parser_.held_bytes() > 0 && !TakesMoreLocked(stream)) {
    status = ResourceExhausted("more bytes of unfinished calls than there is memory for: try again later");
  }
  if (server() && !stream.encoded_ && status.code() == Code::kUnimplemented)
    status = Internal("a message says that it is compressed, and the call has no grpc-encoding");
  if (!status.ok()) BadMessageLocked(stream, std::move(status));
}

void Connection::EndedLocked(H2Stream& stream, Headers trailers) {
  if (std::exchange(stream.ended_, true)) return;
  if (stream.parser_.in_message() && !stream.deaf_) {
    BadMessageLocked(stream, Internal("the call's bytes end in the middle of a message"));
  }
  PushLocked(stream, {H2Stream::Item::Kind::kEnd, {}, std::move(trailers), {}});
  if (!server() && !stream.finishing_) {  // what was not sent yet is of no use
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream.id_, NGHTTP2_NO_ERROR);
  }
}

void Connection::BadMessageLocked(H2Stream& stream, Status why) {
  if (std::exchange(stream.deaf_, true)) return;
  stream.parser_ = MessageParser(options_.most_message_bytes);
  PushLocked(stream, {H2Stream::Item::Kind::kBad, {}, {}, std::move(why)});
  AccountLocked(stream);
}

// The stream is over, for nghttp2 or by our own wish.
void Connection::OverLocked(H2Stream& stream, Status why) {
  if (std::exchange(stream.closed_, true)) return;
  stream.broken_ = std::move(why);
  if (stream.backed_up_) {  // its call was not begun and need not be
    std::erase_if(backed_up_, [&](const auto& waiting) { return waiting.get() == &stream; });
    stream.inbox_.clear();
    stream.inbox_bytes_ = 0;
  }
  stream.queue_.clear();
  BufferedLocked(stream, 0);
  stream.header_bytes_ = 0;
  stream.parser_ = MessageParser(options_.most_message_bytes);
  if (server() && stream.finishing_) {  // its call has ended: nothing more to tell
    stream.told_last_ = true;
    stream.inbox_.clear();
    stream.inbox_bytes_ = 0;
    if (stream.listener_) let_go_.push_back(std::move(stream.listener_));
  }
  AccountLocked(stream);
  if (!stream.told_last_ || stream.on_drained_) ListLocked(stream);
}

void Connection::PushLocked(H2Stream& stream, H2Stream::Item item) {
  if (stream.told_last_) return;
  stream.inbox_bytes_ += item.message.size();
  stream.inbox_.push_back(std::move(item));
  ListLocked(stream);
}

void Connection::AccountLocked(H2Stream& stream) {
  if (options_.memory == nullptr) return;
  const size_t now = stream.inbox_bytes_ + stream.parser_.held_bytes() + stream.header_bytes_;
  if (now == stream.held_bytes_) return;
  options_.memory->Change(stream.held_bytes_, now);
  held_bytes_ += now - stream.held_bytes_;
  stream.held_bytes_ = now;
}

void Connection::ListLocked(H2Stream& stream) {
  if (!std::exchange(stream.listed_, true)) ready_.push_back(stream.shared_from_this());
}

}  // namespace lydian::rpc
