// One HTTP/2 connection, of a server or a client, and its streams, each of which carries one gRPC call as
// messages. The protocol is nghttp2's; here are the socket, flow control by who reads, and the messages.
//
// What comes in is told on the loop's thread, one stream's events one after the other, with no lock held.
// What goes out may come from any thread: on the loop's it is gathered until all that has come in is dealt
// with, elsewhere it is sent at once.
//
// Thread-safety: all methods. Ownership: the connection holds its streams until they are closed, a stream its
// connection and its listener. Private to the module.
#pragma once

#include <nghttp2/nghttp2.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "rpc/budget.h"
#include "rpc/headers.h"
#include "rpc/loop.h"
#include "rpc/wire.h"

namespace lydian::rpc {

class Connection;

// Calls at once that any server takes on a connection.
inline constexpr uint32_t kFewStreams = 1'000;

// On the loop's thread.
class StreamListener {
 public:
  virtual ~StreamListener() = default;
  virtual void OnMessage(std::string message) = 0;
  // What came is not taken: too large, or not a message. Nothing more comes of it but OnBroken.
  virtual void OnBadMessage(Status why) = 0;
  // The peer's end: a request's, or an answer's with its trailers, which is the last of a client's stream.
  virtual void OnEnd(const Headers& trailers) = 0;
  // The last: the stream is over, and this side or the other had more to say.
  virtual void OnBroken(Status why) = 0;
  // The last of a server's stream whose end has been sent. On any thread.
  virtual void OnClosed() {}
};

class H2Stream : public std::enable_shared_from_this<H2Stream> {
 public:
  H2Stream(std::shared_ptr<Connection> connection, size_t most_bytes);

  // Bytes that wait to be sent, these included; nothing when the stream is over or its end was written.
  std::optional<size_t> Write(std::string message);
  size_t buffered() const;
  void OnDrained(size_t limit, Task fn);
  // While held, no further message is told, and the peer's backs up.
  void HoldReading(bool hold);
  // Forgets what was written, but for a message that has been sent in part.
  void DropUnsent();
  // A server's: the end, and with it what may be the only message.
  void Finish(Fields trailers, std::optional<std::string> message = {});
  void HalfClose();        // a client's
  void Reset(Status why);  // OnBroken says why
  // Its call is somebody's whom the server knows. On the loop's thread.
  void Authenticated();
  std::shared_ptr<MemoryBudget> memory() const;

 private:
  friend class Connection;
  struct Item {
    enum class Kind { kRequest, kMessage, kBad, kEnd } kind;
    std::string message;
    Headers headers;
    Status status;
  };

  const std::shared_ptr<Connection> connection_;
  // Guarded by the connection's mutex:
  int32_t id_ = -1;
  std::shared_ptr<StreamListener> listener_;
  Headers incoming_;
  MessageParser parser_;
  std::deque<Item> inbox_;  // not told yet
  size_t inbox_bytes_ = 0;
  size_t header_bytes_ = 0;  // of the request, for as long as the call lasts
  size_t held_bytes_ = 0;    // of all that, as accounted for
  size_t unconsumed_ = 0;    // of the window, while held
  std::deque<std::string> queue_;
  size_t sent_of_first_ = 0;  // its prefix included
  size_t buffered_ = 0, drain_limit_ = 0;
  Task on_drained_;
  Fields trailers_;
  Status broken_;
  bool listed_ = false;        // in the connection's ready_
  bool told_request_ = false;  // a server's: what comes behind are trailers
  bool held_ = false;          // by HoldReading
  bool deaf_ = false;          // after a bad message
  bool refused_ = false;       // a server's: its headers are too large
  bool backed_up_ = false;     // a server's: waits in the connection's backed_up_
  bool encoded_ = false;       // a server's: grpc-encoding says that messages may be compressed
  bool answering_ = false;     // a server's: the answer's headers are on their way
  bool finishing_ = false;     // the end is written: Finish or HalfClose
  bool ended_ = false;         // the peer's end has been received
  bool closed_ = false;        // by nghttp2, or with the connection
  bool told_last_ = false;     // nothing more will be told
};

class Connection : public Loop::Watched, public std::enable_shared_from_this<Connection> {
 public:
  struct Options {
    size_t most_message_bytes = SIZE_MAX;
    // Of a server: the listener of a new stream. On the loop's thread.
    std::function<std::shared_ptr<StreamListener>(std::shared_ptr<H2Stream> stream, Headers request)>
        on_request;
    // Of a server: once, on the loop's thread, when a call has said who it is.
    std::function<void(const Connection* known)> on_authenticated;
    std::function<void(const Connection* closed)> on_closed;  // once, on the loop's thread
    std::shared_ptr<MemoryBudget> memory;  // of a server: what its calls hold is counted there
    uint32_t most_streams = kFewStreams;   // of a server: calls at once
    // Of a server: while its client has left more answers unread (or more than its part of `memory`), its
    // further calls wait, and those that have begun are answered with an error once it is several times as
    // much. Reading goes on, since what opens the windows of its streams comes that way.
    size_t most_unread = SIZE_MAX;
    Millis unread_for = Millis(60'000);  // of a server: then one that doesn't read its answers is closed
  };

  // `connecting`: the socket's connect is under way.
  static std::shared_ptr<Connection> Create(UniqueFd fd, Options options, bool connecting = false);
  ~Connection() override;

  // A client's new stream. Nothing when the connection takes no more.
  std::shared_ptr<H2Stream> Open(const Fields& request, std::shared_ptr<StreamListener> listener);
  // A call of it was authenticated. On the loop's thread.
  void Authenticated() {
    if (!std::exchange(authenticated_, true) && options_.on_authenticated) options_.on_authenticated(this);
  }
  // Ends all streams. On the loop's thread.
  void Close(Status why);
  // Closes when the last stream has ended.
  void CloseWhenIdle();

  void Ready(uint32_t events) override;
  void Flush() override;

 private:
  friend class H2Stream;
  struct Callbacks;  // nghttp2's

  Connection(UniqueFd fd, Options options, bool connecting);
  void Start();
  bool server() const { return options_.on_request != nullptr; }
  void Receive();
  void Connected();
  // After changes from outside the loop's handling: sends or has it sent.
  void Send(std::unique_lock<std::mutex>& lock);
  void SendLocked();
  bool FillOut();
  void ResumeLocked(const H2Stream& stream);
  void AnswerLocked(H2Stream& stream);
  bool HeaderLocked(H2Stream* stream, std::string_view name, std::string_view value);
  void RefuseLocked(H2Stream& stream, const Status& why);
  bool SpeaksGrpcLocked(H2Stream& stream, const Headers& request);
  void HeadersLocked(H2Stream& stream, bool end);
  void DataLocked(H2Stream& stream, std::string_view bytes);
  void EndedLocked(H2Stream& stream, Headers trailers);
  void OverLocked(H2Stream& stream, Status why);
  void BadMessageLocked(H2Stream& stream, Status why);
  void PushLocked(H2Stream& stream, H2Stream::Item item);
  void AccountLocked(H2Stream& stream);
  void ListLocked(H2Stream& stream);
  void BufferedLocked(H2Stream& stream, size_t now);
  size_t MostUnreadLocked() const;
  bool FullLocked() const;
  bool DrainedLocked(const H2Stream& stream, size_t limit);
  bool TakesMoreLocked(const H2Stream& stream) const;
  void WakeLocked();
  void WatchReaderLocked();
  void LookAgain();
  void CheckReader();
  ssize_t TakeLocked(H2Stream& stream, uint8_t* buffer, size_t length, uint32_t* flags);
  void Tell();
  void TellOf(const std::shared_ptr<H2Stream>& stream);
  void TellItem(const std::shared_ptr<H2Stream>& stream, std::shared_ptr<StreamListener> listener,
                H2Stream::Item item);

  const Options options_;
  bool authenticated_ = false;  // of the loop's thread
  std::mutex mutex_;            // guards all below, the session, and the streams
  UniqueFd fd_;
  uint64_t watch_id_ = 0;
  nghttp2_session* session_ = nullptr;
  std::unordered_map<int32_t, std::shared_ptr<H2Stream>> streams_;
  std::vector<std::shared_ptr<H2Stream>> ready_;         // with something to tell
  std::vector<std::shared_ptr<StreamListener>> let_go_;  // to be told OnClosed
  std::string out_;
  size_t out_sent_ = 0;
  std::vector<std::shared_ptr<H2Stream>> backed_up_;  // requests that wait until answers were read
  bool held_up_ = false;                              // streams wait for the others to be read
  size_t unsent_ = 0;                                 // bytes of all streams
  size_t most_unsent_ = 0;                            // ... that there ever were
  uint64_t taken_ = 0;                                // bytes that left the streams for the socket
  bool watched_ = false;                              // whether its reader takes anything
  SteadyTime watched_since_;
  uint64_t watched_taken_ = 0;  // taken_ then
  size_t held_bytes_ = 0;       // of all streams
  size_t block_bytes_ = 0;      // of the headers that are being decoded
  int refused_ = 0;             // calls, for the size of their headers
  bool connecting_, want_write_ = false, dirty_ = false;
  bool leaving_ = false;  // no new streams; closes with the last
  bool closed_ = false;
};

}  // namespace lydian::rpc
