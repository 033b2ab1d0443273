// What a client may do to a server that it has no right to talk to, or that it does not mean well with: bytes
// of HTTP/2 written by hand, over a loopback port.
#include <gtest/gtest.h>
#include <nghttp2/nghttp2.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <future>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rpc/budget.h"
#include "rpc/channel.h"
#include "rpc/router.h"
#include "rpc/server.h"
#include "rpc/test_util.h"
#include "rpc/wire.h"

namespace lydian::rpc {
namespace {

using namespace std::chrono_literals;

constexpr char kDataFrame = 0, kHeadersFrame = 1, kResetFrame = 3, kSettingsFrame = 4, kGoAwayFrame = 7,
               kContinuationFrame = 9;
constexpr char kEndStream = 1, kEndHeaders = 4;
constexpr size_t kMostFrame = 16'384;
constexpr size_t kHigh = size_t{2} << 20, kLow = size_t{1} << 20;

std::string Number(uint32_t number, int bytes) {
  std::string text;
  for (int i = bytes - 1; i >= 0; --i) text += static_cast<char>(number >> (8 * i) & 0xFF);
  return text;
}

uint32_t NumberOf(std::string_view text) {
  uint32_t number = 0;
  for (char c : text) number = number << 8 | static_cast<unsigned char>(c);
  return number;
}

std::string Frame(char type, char flags, uint32_t stream, const std::string& payload) {
  return Number(static_cast<uint32_t>(payload.size()), 3) + type + flags + Number(stream, 4) + payload;
}

// HPACK (RFC 7541, 5.1 and 6.2): a number behind a prefix of seven bits, a literal field.
std::string Length(size_t length) {
  if (length < 127) return {static_cast<char>(length)};
  std::string text = "\x7F";
  for (length -= 127; length >= 128; length /= 128) text += static_cast<char>(length % 128 | 128);
  return text + static_cast<char>(length);
}
std::string Literal(std::string_view name, std::string_view value, bool into_table = false) {
  return std::string(1, into_table ? '\x40' : '\0')
      .append(Length(name.size()))
      .append(name)
      .append(Length(value.size()))
      .append(value);
}

std::string Request(std::string_view method = "POST", std::string_view path = "/t.S/Echo",
                    std::string_view content_type = "application/grpc") {
  return Literal(":method", method) + Literal(":scheme", "http") + Literal(":path", path) +
         Literal(":authority", "x") + Literal("te", "trailers") + Literal("content-type", content_type);
}

std::string HeaderBlock(uint32_t stream, const std::string& block, bool end = false) {
  const char ends = end ? kEndStream : 0;
  if (block.size() <= kMostFrame) return Frame(kHeadersFrame, ends | kEndHeaders, stream, block);
  std::string frames = Frame(kHeadersFrame, ends, stream, block.substr(0, kMostFrame));
  for (size_t at = kMostFrame; at < block.size(); at += kMostFrame) {
    const char flags = at + kMostFrame >= block.size() ? kEndHeaders : 0;
    frames += Frame(kContinuationFrame, flags, stream, block.substr(at, kMostFrame));
  }
  return frames;
}

struct Heard {
  char type = 0, flags = 0;
  uint32_t stream = 0;
  std::string payload;
};

// The fields of a block, decoded.
class Decoder {
 public:
  Decoder() { nghttp2_hd_inflate_new(&inflater_); }
  ~Decoder() { nghttp2_hd_inflate_del(inflater_); }
  std::map<std::string, std::string> Fields(const std::string& block) {
    std::map<std::string, std::string> fields;
    const auto* bytes = reinterpret_cast<const uint8_t*>(block.data());
    size_t left = block.size();
    int flags = 0;
    while ((flags & NGHTTP2_HD_INFLATE_FINAL) == 0) {
      nghttp2_nv field{};
      const ssize_t taken = nghttp2_hd_inflate_hd2(inflater_, &field, &flags, bytes, left, 1);
      if (taken < 0) break;
      bytes += taken;
      left -= static_cast<size_t>(taken);
      if ((flags & NGHTTP2_HD_INFLATE_EMIT) == 0) continue;
      fields[std::string(reinterpret_cast<char*>(field.name), field.namelen)] =
          std::string(reinterpret_cast<char*>(field.value), field.valuelen);
    }
    nghttp2_hd_inflate_end_headers(inflater_);
    return fields;
  }

 private:
  nghttp2_hd_inflater* inflater_ = nullptr;
};

// A client that says whatever it is told to.
class Client {
 public:
  explicit Client(int port) : fd_(Connect(port)) {
    Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(kSettingsFrame, 0, 0, ""));
  }
  // False when the server has closed: it need not take all.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    return true;
  }
  // Nothing at the end of the connection.
  std::optional<Heard> Next() {
    if (!Fill(9)) return {};
    const size_t length = NumberOf(std::string_view(in_).substr(0, 3));
    if (!Fill(9 + length)) return {};
    Heard heard{in_[3], in_[4], NumberOf(std::string_view(in_).substr(5, 4)), in_.substr(9, length)};
    in_.erase(0, 9 + length);
    return heard;
  }
  std::optional<Heard> Next(char type) {
    auto heard = Next();
    while (heard && heard->type != type) heard = Next();
    return heard;
  }
  bool ClosedByServer() {
    while (Next()) {
    }
    return closed_;
  }

 private:
  bool Fill(size_t size) {
    char bytes[4096];
    while (in_.size() < size) {
      const ssize_t count = recv(fd_.get(), bytes, sizeof bytes, 0);
      closed_ = count == 0 || (count < 0 && errno == ECONNRESET);
      if (count <= 0) return false;
      in_.append(bytes, static_cast<size_t>(count));
    }
    return true;
  }

  UniqueFd fd_;
  std::string in_;
  bool closed_ = false;
};

// How the client's only call ends.
Status StatusOf(Client& client) {
  Decoder decoder;
  while (const auto headers = client.Next(kHeadersFrame)) {
    const auto fields = decoder.Fields(headers->payload);
    if (!fields.contains("grpc-status")) continue;
    const auto text = fields.find("grpc-message");
    return {static_cast<Code>(std::stoi(fields.at("grpc-status"))),
            text == fields.end() ? "" : DecodeStatusText(text->second)};
  }
  return Unavailable("no status");
}

class NeedsToken : public Authenticator {
 public:
  Result<Caller> Authenticate(const Headers& headers, std::string_view, const MethodOptions&) override {
    if (headers("x-token").empty()) return Unauthenticated("no token");
    Caller caller;
    caller.kind = Caller::Kind::kUser;
    return caller;
  }
};

const Metadata kToken = {{"x-token", "1"}};

class Hostile : public testing::Test {
 protected:
  void SetUp() override {
    router_ = std::make_shared<Router>();
    router_->AddUnary("t.S", "Echo", [this](std::string_view request, Ctx, RawReply reply) {
      ++echoes_;
      reply(std::string(request));
    });
    router_->AddUnary("t.S", "Large", [this](std::string_view, Ctx, RawReply reply) {
      ++echoes_;
      reply(std::string(size_t{1} << 20, 'x'));
    });
    router_->AddServerStream("t.S", "Lots", [this](std::string_view, Ctx, std::shared_ptr<RawStream> stream) {
      Write(std::move(stream), 8);
    });
    listener_ = Listen("127.0.0.1:0").value();
    Serve({});
  }
  // So many MiB, as whoever has much to write does it.
  static void Write(std::shared_ptr<RawStream> stream, int left) {
    for (; left > 0; --left) {
      if (stream->buffered() > kHigh) {
        return stream->OnDrained(kLow, [stream, left] { Write(stream, left); });
      }
      if (!stream->Write(std::string(size_t{1} << 20, 'x')))
        return stream->Finish(Cancelled("the client has gone"));
    }
    stream->Finish(OkStatus());
  }
  void Serve(ServerOptions options) {
    server_.reset();
    options.router = router_;
    options.authenticator = std::make_shared<NeedsToken>();
    server_ = Server::Start(std::move(options), listener_.get()).value();
  }
  int port() const { return PortOf(listener_.get()); }
  Result<std::string> Echo(const std::string& text) {
    auto channel = Channel::Create("127.0.0.1:" + std::to_string(port()));
    return channel->CallBlocking("/t.S/Echo", text, kToken, 10s);
  }

  std::atomic<int> echoes_{0};
  std::shared_ptr<Router> router_;
  UniqueFd listener_;
  std::unique_ptr<Server> server_;
};

TEST_F(Hostile, HeadersThatGrowWhenTheyAreDecodedEndTheConnection) {
  // 16,000 bytes that stand for 62 MiB: each is the newest entry of the table, of nearly 4 KiB.
  Client client(port());
  client.Send(HeaderBlock(1, Request() + Literal("x-a", std::string(3900, 'a'), /*into_table=*/true) +
                                 std::string(16'000, '\xBE')));
  const auto away = client.Next(kGoAwayFrame);
  ASSERT_TRUE(away);
  EXPECT_EQ(NumberOf(std::string_view(away->payload).substr(4, 4)), 11u);  // ENHANCE_YOUR_CALM
  EXPECT_TRUE(client.ClosedByServer());
  EXPECT_EQ(Echo("others go on").value(), "others go on");
}

TEST_F(Hostile, TooManyHeadersEndTheirCallAlone) {
  Client client(port());
  client.Send(HeaderBlock(
      1, Request() + Literal("x-a", std::string(35'000, 'a')) + Literal("x-b", std::string(35'000, 'b')),
      /*end=*/true));
  const Status status = StatusOf(client);
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_EQ(status.message(), "the headers of a call may have 64 KiB");
  client.Send(HeaderBlock(3, Request() + Literal("x-token", "1")) +
              Frame(kDataFrame, kEndStream, 3, std::string(5, '\0')));
  const auto answer = client.Next(kDataFrame);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->stream, 3u);
  EXPECT_EQ(echoes_, 1);
}

// One entry of the table again and again, just too much for one call.
TEST_F(Hostile, CallsThatAreRefusedForTheirHeadersEndTheConnectionInTheEnd) {
  Client client(port());
  std::string bytes = HeaderBlock(1, Literal("x-a", std::string(3900, 'a'), /*into_table=*/true));
  for (uint32_t i = 1; i < 1000; ++i) bytes += HeaderBlock(1 + 2 * i, Request() + std::string(20, '\xBE'));
  client.Send(bytes);
  EXPECT_TRUE(client.Next(kGoAwayFrame));
  EXPECT_TRUE(client.ClosedByServer());
}

TEST_F(Hostile, HeadersOfCallsAreCounted) {
  auto memory = std::make_shared<MemoryBudget>(size_t{1} << 20);
  Serve({.memory = memory});
  Client client(port());
  std::string bytes;
  // Not one of them ends.
  for (uint32_t i = 0; i < 100; ++i) {
    bytes += HeaderBlock(1 + 2 * i,
                         Request() + Literal("x-token", "1") + Literal("x-a", std::string(50'000, 'a')));
  }
  std::thread sender([&] { client.Send(bytes); });
  const auto refusal = client.Next(kHeadersFrame);
  ASSERT_TRUE(refusal);
  EXPECT_EQ(Decoder().Fields(refusal->payload).at("grpc-status"),
            std::to_string(static_cast<int>(Code::kResourceExhausted)));
  EXPECT_GE(refusal->stream, 30u);  // four fifths of the budget by itself
  const auto reset = client.Next(kResetFrame);
  ASSERT_TRUE(reset);  // nothing more of it is wanted
  EXPECT_EQ(NumberOf(reset->payload), 0u);
  EXPECT_EQ(reset->stream, refusal->stream);
  sender.join();
  EXPECT_LT(memory->held(), size_t{2} << 20);
  server_->Stop(0);
  EXPECT_EQ(memory->held(), 0u);
}

TEST_F(Hostile, LimitsAreAnnounced) {
  const auto limit_of = [&](uint16_t setting) {
    Client client(port());
    const auto settings = client.Next(kSettingsFrame);
    for (size_t at = 0; settings && at + 6 <= settings->payload.size(); at += 6) {
      const std::string_view entry = std::string_view(settings->payload).substr(at, 6);
      if (NumberOf(entry.substr(0, 2)) == setting) return NumberOf(entry.substr(2));
    }
    return uint32_t{0};
  };
  constexpr uint16_t kMaxStreams = 3, kMaxHeaderList = 6;
  EXPECT_EQ(limit_of(kMaxStreams), 1000u);
  EXPECT_EQ(limit_of(kMaxHeaderList), 16'384u);
  Serve({.max_streams = 20'000});
  EXPECT_EQ(limit_of(kMaxStreams), 20'000u);
}

TEST_F(Hostile, ConnectionsWithoutAnAuthenticatedCallAreClosedInTime) {
  Serve({.authenticate_within = 300ms});
  Client known(port()), silent(port()), refused(port());
  known.Send(HeaderBlock(1, Request() + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 1, std::string(5, '\0')));
  refused.Send(HeaderBlock(1, Request()) + Frame(kDataFrame, kEndStream, 1, std::string(5, '\0')));
  EXPECT_TRUE(known.Next(kDataFrame));
  EXPECT_TRUE(silent.ClosedByServer());
  EXPECT_TRUE(refused.ClosedByServer());
  // Later than those, and still served.
  known.Send(HeaderBlock(3, Request() + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 3, std::string(5, '\0')));
  EXPECT_TRUE(known.Next(kDataFrame));
}

TEST_F(Hostile, OldestStrangersMakeRoom) {
  Serve({.max_connections = 4});
  Client known(port());
  known.Send(HeaderBlock(1, Request() + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 1, std::string(5, '\0')));
  ASSERT_TRUE(known.Next(kDataFrame));
  std::vector<std::unique_ptr<Client>> strangers;
  for (int i = 0; i < 20; ++i) {
    strangers.push_back(std::make_unique<Client>(port()));
    ASSERT_TRUE(strangers.back()->Next(kSettingsFrame)) << i;
  }
  EXPECT_EQ(Echo("a newcomer").value(), "a newcomer");
  for (int i = 0; i < 16; ++i) EXPECT_TRUE(strangers[static_cast<size_t>(i)]->ClosedByServer()) << i;
  known.Send(HeaderBlock(3, Request() + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 3, std::string(5, '\0')));
  EXPECT_TRUE(known.Next(kDataFrame));
}

TEST_F(Hostile, OneAddressHasFewStrangers) {
  Serve({.max_strangers_of_address = 2});
  Client first(port()), second(port());
  ASSERT_TRUE(first.Next(kSettingsFrame));
  ASSERT_TRUE(second.Next(kSettingsFrame));
  UniqueFd silent = Connect(port());  // not even a preface
  EXPECT_TRUE(first.ClosedByServer());
  Client third(port());
  EXPECT_TRUE(second.ClosedByServer());
  Client fourth(port());
  char byte = 0;
  EXPECT_EQ(recv(silent.get(), &byte, 1, 0), 0);
  EXPECT_TRUE(fourth.Next(kSettingsFrame));
  EXPECT_EQ(Echo("with a token").value(), "with a token");
}

TEST_F(Hostile, CallsWaitForAnswersThatAreNotRead) {
  auto memory = std::make_shared<MemoryBudget>(size_t{4} << 30);
  Serve({.unread_for = 500ms, .memory = memory});
  Client client(port());
  std::string bytes;
  for (uint32_t i = 0; i < 400; ++i) {
    bytes += HeaderBlock(1 + 2 * i, Request("POST", "/t.S/Large") + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 1 + 2 * i, std::string(5, '\0'));
  }
  client.Send(bytes);
  EXPECT_TRUE(client.ClosedByServer());  // what it hears leaves the streams' windows shut
  EXPECT_GE(echoes_, 64);
  EXPECT_LE(echoes_, 70);
  server_->Stop(0);
  EXPECT_EQ(memory->held(), 0u);
}

TEST_F(Hostile, ManyWhoDoNotReadLeaveRoomForOthers) {
  auto memory = std::make_shared<MemoryBudget>(size_t{64} << 20);
  Serve({.memory = memory});
  std::string bytes;
  for (uint32_t i = 0; i < 100; ++i) {
    bytes += HeaderBlock(1 + 2 * i, Request("POST", "/t.S/Large") + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 1 + 2 * i, std::string(5, '\0'));
  }
  std::list<Client> greedy;
  for (int i = 0; i < 30; ++i) greedy.emplace_back(port()).Send(bytes);
  for (Client& client : greedy) EXPECT_TRUE(client.Next(kDataFrame));
  EXPECT_GT(memory->held(), size_t{20} << 20);
  EXPECT_FALSE(memory->exceeded());
  auto channel = Channel::Create("127.0.0.1:" + std::to_string(port()));
  EXPECT_EQ(channel->CallBlocking("/t.S/Large", "", kToken, 10s).value().size(), size_t{1} << 20);
}

TEST_F(Hostile, AnswersThatComeAllAtOnceAndAreNotReadAreBounded) {
  constexpr int kCalls = 500;
  auto memory = std::make_shared<MemoryBudget>(size_t{64} << 20);
  std::mutex mutex;
  std::vector<RawReply> begun;
  std::promise<void> all;
  router_->AddUnary("t.S", "Later", [&](std::string_view, Ctx, RawReply reply) {
    std::lock_guard lock(mutex);
    begun.push_back(std::move(reply));
    if (begun.size() == kCalls) all.set_value();
  });
  Serve({.memory = memory});
  Client client(port());
  std::string bytes;
  for (uint32_t i = 0; i < kCalls; ++i) {
    bytes += HeaderBlock(1 + 2 * i, Request("POST", "/t.S/Later") + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 1 + 2 * i, std::string(5, '\0'));
  }
  client.Send(bytes);
  ASSERT_EQ(all.get_future().wait_for(20s), std::future_status::ready);
  for (RawReply& reply : begun) std::exchange(reply, {})(std::string(size_t{1} << 20, 'x'));
  EXPECT_FALSE(memory->exceeded());
  EXPECT_EQ(Echo("others go on").value(), "others go on");
}

TEST_F(Hostile, StreamsThatAreNotReadWaitForEachOther) {
  auto memory = std::make_shared<MemoryBudget>(size_t{256} << 20);
  Serve({.memory = memory});
  Client client(port());
  std::string bytes;
  for (uint32_t i = 0; i < 400; ++i) {
    bytes += HeaderBlock(1 + 2 * i, Request("POST", "/t.S/Lots") + Literal("x-token", "1")) +
             Frame(kDataFrame, kEndStream, 1 + 2 * i, std::string(5, '\0'));
  }
  client.Send(bytes);
  ASSERT_TRUE(client.Next(kDataFrame));
  EXPECT_EQ(Echo("others go on").value(), "others go on");
  EXPECT_LT(memory->held(), size_t{24} << 20);  // a sixteenth, and what the streams were about to write
}

TEST_F(Hostile, OneLargeMessageMayHaveMostOfTheMemory) {
  auto memory = std::make_shared<MemoryBudget>(size_t{8} << 20);
  Serve({.memory = memory});
  const std::string large(size_t{6} << 20, 'x');
  EXPECT_EQ(Echo(large).value(), large);
}

// A worker brings its containers' calls on one connection, while others hold all that there is.
TEST_F(Hostile, SmallCallsOfALinkAreAlwaysTaken) {
  auto memory = std::make_shared<MemoryBudget>(size_t{1} << 20);
  Serve({.max_unread_bytes = SIZE_MAX, .memory = memory});
  Client client(port());
  std::string bytes;
  for (uint32_t i = 0; i < 20; ++i) {  // none of them ends
    bytes +=
        HeaderBlock(1 + 2 * i, Request() + Literal("x-token", "1")) +
        Frame(kDataFrame, 0, 1 + 2 * i, std::string(1, '\0') + Number(20'000, 4) + std::string(8'000, 'x'));
  }
  client.Send(bytes);
  memory->Change(0, size_t{2} << 20);  // somebody's
  client.Send(HeaderBlock(101, Request() + Literal("x-token", "1")) +
              Frame(kDataFrame, kEndStream, 101, std::string(5, '\0')));
  const auto answer = client.Next(kDataFrame);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->stream, 101u);
  memory->Change(size_t{2} << 20, 0);
}

TEST_F(Hostile, SmallMessagesThatNeverEndAreBoundedTogether) {
  auto memory = std::make_shared<MemoryBudget>(size_t{8} << 20);
  Serve({.memory = memory});
  std::list<Client> clients;
  for (int c = 0; c < 8; ++c) {
    std::string bytes;
    for (uint32_t i = 0; i < 900; ++i) {
      bytes += HeaderBlock(1 + 2 * i, Request() + Literal("x-token", "1")) +
               Frame(kDataFrame, 0, 1 + 2 * i,
                     std::string(1, '\0') + Number(60'000, 4) + std::string(16'000, 'x'));
    }
    clients.emplace_back(port()).Send(bytes);
  }
  for (Client& client : clients) EXPECT_TRUE(client.Next(kResetFrame)) << "one is refused";
  EXPECT_LT(memory->held(), size_t{9} << 20);
  EXPECT_EQ(Echo("others go on").value(), "others go on");
}

// Two who may have less while a third holds much, and read nothing until it has gone.
TEST_F(Hostile, CallsGoOnWhenOthersHaveGivenMemoryBack) {
  auto memory = std::make_shared<MemoryBudget>(size_t{64} << 20);
  Serve({.memory = memory});
  memory->Change(0, size_t{63} << 20);  // somebody's
  Client client(port());
  client.Send(HeaderBlock(1, Request("POST", "/t.S/Large") + Literal("x-token", "1")) +
              Frame(kDataFrame, kEndStream, 1, std::string(5, '\0')));
  ASSERT_TRUE(client.Next(kDataFrame));  // 1 MiB is more than a sixteenth of what is left
  client.Send(HeaderBlock(3, Request() + Literal("x-token", "1")) +
              Frame(kDataFrame, kEndStream, 3, std::string(5, '\0')));
  memory->Change(size_t{63} << 20, 0);
  std::optional<Heard> answer;
  while ((answer = client.Next(kHeadersFrame)) && answer->stream != 3) {
  }
  EXPECT_TRUE(answer) << "nothing of this connection was read meanwhile";
}

TEST_F(Hostile, StreamsGoOnWhenTheOthersWereRead) {
  auto memory = std::make_shared<MemoryBudget>(size_t{256} << 20);
  Serve({.memory = memory});
  auto channel = Channel::Create("127.0.0.1:" + std::to_string(port()));
  constexpr int kStreams = 60;
  std::atomic<size_t> came{0};
  std::atomic<int> left{kStreams};
  std::promise<void> done;
  for (int i = 0; i < kStreams; ++i) {
    auto call = channel->Start("/t.S/Lots", kToken,
                               {.on_message = [&](std::string message) { came += message.size(); },
                                .on_done =
                                    [&](const Status&, const Metadata&) {
                                      if (--left == 0) done.set_value();
                                    }});
    call->Write("");
    call->WritesDone();
  }
  ASSERT_EQ(done.get_future().wait_for(20s), std::future_status::ready);
  EXPECT_EQ(came, size_t{kStreams} * 8 << 20);
}

TEST_F(Hostile, CallsGoOnWhenAnswersWereRead) {
  auto channel = Channel::Create("127.0.0.1:" + std::to_string(port()));
  std::atomic<int> answered{0}, left{300};
  std::promise<void> done;
  for (int i = 0; i < 300; ++i) {
    auto size = std::make_shared<size_t>(0);
    auto call = channel->Start("/t.S/Large", kToken,
                               {.on_message = [size](std::string message) { *size = message.size(); },
                                .on_done =
                                    [&, size](Status status, Metadata) {
                                      answered += status.ok() && *size == size_t{1} << 20;
                                      if (--left == 0) done.set_value();
                                    }});
    call->Write("");
    call->WritesDone();
  }
  ASSERT_EQ(done.get_future().wait_for(20s), std::future_status::ready);
  EXPECT_EQ(answered, 300);
}

TEST_F(Hostile, WhatIsNotGrpcIsAnsweredInHttp) {
  const auto status_of = [&](const std::string& block) {
    Client client(port());
    client.Send(HeaderBlock(1, block + Literal("x-token", "1"), /*end=*/true));
    const auto headers = client.Next(kHeadersFrame);
    return headers ? Decoder().Fields(headers->payload)[":status"] : "";
  };
  EXPECT_EQ(status_of(Request("POST", "/t.S/Echo", "application/json")), "415");
  EXPECT_EQ(status_of(Request("POST", "/t.S/Echo", "application/grpcx")), "415");
  EXPECT_EQ(status_of(Request("GET")), "405");
  EXPECT_EQ(status_of(Request("PUT")), "405");
  EXPECT_EQ(echoes_, 0);
  Client client(port());
  client.Send(
      HeaderBlock(1, Request("POST", "/t.S/Echo", "application/grpc+proto") + Literal("x-token", "1")) +
      Frame(kDataFrame, kEndStream, 1, std::string(5, '\0')));
  EXPECT_TRUE(client.Next(kDataFrame));
}

TEST_F(Hostile, MalformedCallsAreInternal) {
  const auto answer = [&](const std::string& extra, char compressed) {
    Client client(port());
    client.Send(HeaderBlock(1, Request() + Literal("x-token", "1") + extra) +
                Frame(kDataFrame, kEndStream, 1, compressed + std::string(3, '\0') + "\1x"));
    return StatusOf(client);
  };
  EXPECT_EQ(answer("", 0).code(), Code::kOk);
  EXPECT_EQ(answer(Literal("grpc-timeout", "5S"), 0).code(), Code::kOk);
  for (const char* wrong : {"5", "S", "5s", "123456789S", "-1S"}) {
    const Status status = answer(Literal("grpc-timeout", wrong), 0);
    EXPECT_EQ(status.code(), Code::kInternal) << wrong;
    EXPECT_NE(status.message().find("grpc-timeout \"" + std::string(wrong)), std::string::npos) << status;
  }
  EXPECT_EQ(answer("", 1).code(), Code::kInternal);
  EXPECT_EQ(answer(Literal("grpc-encoding", "gzip"), 1).code(), Code::kUnimplemented);
}

}  // namespace
}  // namespace lydian::rpc
