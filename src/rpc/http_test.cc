// HTTP/1.1 on the port that also serves gRPC.
#include "rpc/http.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <thread>

#include "rpc/channel.h"
#include "rpc/server.h"
#include "rpc/test_util.h"

namespace lydian::rpc {
namespace {

using namespace std::chrono_literals;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

class Handler : public http::Handler {
 public:
  http::Response Handle(http::Exchange& exchange) override {
    const http::Request& request = exchange.request();
    http::Response response;
    if (request.path == "/file") {
      response.file_fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
      response.file_offset = 3;
      response.file_length = 5;
      return response;
    }
    if (request.path == "/refuse") {
      response.status = 403;
      response.body = "no\n";
      return response;
    }
    if (request.path == "/throw") throw std::runtime_error("thrown");
    uint64_t size = 0;
    for (;;) {
      auto part = exchange.ReadBody(1 << 16);
      if (!part.ok()) {
        response.status = 400;
        response.body = part.status().ToString();
        return response;
      }
      if (part->empty()) break;
      size += part->size();
    }
    response.headers = {{"X-One", "1"}, {"X-Bad", "a\r\nInjected: yes"}};
    response.body = request.method + " " + request.path + " q=" + std::string(request.param("q")) + " " +
                    std::to_string(size) + " from " + request.peer;
    return response;
  }
  std::string path;
};

class HttpTest : public testing::Test {
 protected:
  void SetUp() override {
    handler_->path = dir_.path() + "/f";
    ASSERT_TRUE(WriteFileAtomic(handler_->path, "0123456789").ok());
    auto router = std::make_shared<Router>();
    router->AddUnary("t.S", "Echo",
                     [](std::string_view request, Ctx, RawReply reply) { reply(std::string(request)); });
    auto listener = Listen("127.0.0.1:0");
    ASSERT_TRUE(listener.ok()) << listener.status();
    port_ = PortOf(listener->get());
    server_ = Server::Start({.router = router, .http = handler_}, listener->get()).value();
    channel_ = Channel::Create("127.0.0.1:" + std::to_string(port_));
  }

  // Sends, and reads until the server closes.
  std::string Exchange(std::string_view bytes) {
    UniqueFd fd = Connect(port_);
    EXPECT_TRUE(WriteAll(fd.get(), bytes).ok());
    return ReadToEnd(fd.get());
  }
  static std::string ReadToEnd(int fd) {
    std::string all;
    char part[4096];
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0;) all.append(part, n);
    return all;
  }
  static std::string ReadUntil(int fd, std::string_view end) {
    std::string all;
    char c;
    while (!all.ends_with(end) && read(fd, &c, 1) == 1) all.push_back(c);
    return all;
  }

  TempDir dir_;
  std::shared_ptr<Handler> handler_ = std::make_shared<Handler>();
  int port_ = 0;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Channel> channel_;
};

TEST_F(HttpTest, AnswersBesideGrpc) {
  const std::string answer =
      Exchange("GET /a%20b?q=1%202+3&r HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nGET /a b q=1 2 3 0 from 127.0.0.1"));
  EXPECT_THAT(answer, HasSubstr("X-One: 1\r\n"));
  EXPECT_THAT(answer, testing::Not(HasSubstr("Injected")));
  EXPECT_EQ(channel_->CallBlocking("/t.S/Echo", "x").value(), "x");
}

TEST_F(HttpTest, KeepsConnectionsAndPipelines) {
  UniqueFd fd = Connect(port_);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(WriteAll(fd.get(), "PUT /k HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").ok());
    EXPECT_THAT(ReadUntil(fd.get(), "127.0.0.1"), EndsWith("PUT /k q= 3 from 127.0.0.1"));
  }
  ASSERT_TRUE(WriteAll(fd.get(), "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nConnection: close\r\n\r\n").ok());
  const std::string both = ReadToEnd(fd.get());
  EXPECT_THAT(both, HasSubstr("GET /1 "));
  EXPECT_THAT(both, EndsWith("GET /2 q= 0 from 127.0.0.1"));
}

TEST_F(HttpTest, BodiesInPieces) {
  UniqueFd fd = Connect(port_);
  ASSERT_TRUE(
      WriteAll(fd.get(),
               "PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n")
          .ok());
  std::this_thread::sleep_for(20ms);
  ASSERT_TRUE(WriteAll(fd.get(), "6\r\n world\r\n0\r\n\r\n").ok());
  EXPECT_THAT(ReadToEnd(fd.get()), HasSubstr("PUT /c q= 11 "));
}

TEST_F(HttpTest, LargeBody) {
  UniqueFd fd = Connect(port_);
  const size_t size = size_t{256} << 20;
  ASSERT_TRUE(WriteAll(fd.get(), "PUT /big HTTP/1.1\r\nConnection: close\r\nContent-Length: " +
                                     std::to_string(size) + "\r\n\r\n")
                  .ok());
  const std::string part(1 << 20, 'x');
  for (size_t i = 0; i < size / part.size(); ++i) ASSERT_TRUE(WriteAll(fd.get(), part).ok());
  EXPECT_THAT(ReadToEnd(fd.get()), HasSubstr(std::to_string(size)));
}

TEST_F(HttpTest, ContinueIsSentWhenTheBodyIsWanted) {
  UniqueFd fd = Connect(port_);
  ASSERT_TRUE(
      WriteAll(fd.get(),
               "PUT /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
          .ok());
  EXPECT_EQ(ReadUntil(fd.get(), "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  ASSERT_TRUE(WriteAll(fd.get(), "ok").ok());
  EXPECT_THAT(ReadToEnd(fd.get()), HasSubstr("PUT /e q= 2 "));
  fd = Connect(port_);
  ASSERT_TRUE(
      WriteAll(fd.get(), "PUT /refuse HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").ok());
  EXPECT_THAT(ReadToEnd(fd.get()), StartsWith("HTTP/1.1 403 "));
}

TEST_F(HttpTest, ShortBodyIsAnError) {
  UniqueFd fd = Connect(port_);
  ASSERT_TRUE(WriteAll(fd.get(), "PUT /s HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc").ok());
  shutdown(fd.get(), SHUT_WR);
  EXPECT_THAT(ReadToEnd(fd.get()), HasSubstr("DATA_LOSS: the client sent less than it announced"));
}

TEST_F(HttpTest, RefusalReachesAClientThatIsStillSending) {
  UniqueFd fd = Connect(port_);
  ASSERT_TRUE(WriteAll(fd.get(), "PUT /refuse HTTP/1.1\r\nContent-Length: 8388608\r\n\r\n").ok());
  const std::string part(1 << 20, 'x');
  for (int i = 0; i < 8; ++i) {
    if (!WriteAll(fd.get(), part).ok()) break;
  }
  EXPECT_THAT(ReadToEnd(fd.get()), StartsWith("HTTP/1.1 403 "));
}

TEST_F(HttpTest, RefusalWaitsForNoBody) {
  UniqueFd fd = Connect(port_);
  const timeval most{.tv_sec = 5, .tv_usec = 0};
  ASSERT_EQ(setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most), 0);
  ASSERT_TRUE(WriteAll(fd.get(), "PUT /refuse HTTP/1.1\r\nContent-Length: 1000000\r\n\r\na").ok());
  const std::string answer = ReadToEnd(fd.get());
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 403"));
  EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
}

TEST_F(HttpTest, HeadAndFiles) {
  EXPECT_THAT(Exchange("GET /file HTTP/1.1\r\nConnection: close\r\n\r\n"),
              EndsWith("Content-Length: 5\r\nConnection: close\r\n\r\n34567"));
  EXPECT_THAT(Exchange("HEAD /file HTTP/1.1\r\nConnection: close\r\n\r\n"),
              EndsWith("Content-Length: 5\r\nConnection: close\r\n\r\n"));
  EXPECT_THAT(Exchange("HEAD /x HTTP/1.0\r\n\r\n"), EndsWith("\r\n\r\n"));
}

TEST_F(HttpTest, GarbageGetsA400AndNoHarm) {
  EXPECT_THAT(Exchange("\x01\x02nonsense\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Exchange("GET /" + std::string(40'000, 'a') + " HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 4"));
  EXPECT_THAT(Exchange("GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
              StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Exchange("GET /throw HTTP/1.1\r\nConnection: close\r\n\r\n"), StartsWith("HTTP/1.1 500 "));
  Exchange("PRI * HTTP/2.0\r\n\r\nnot a preface at all, and some more bytes");
  std::string noise;
  for (int i = 0; i < 2000; ++i) noise.push_back(static_cast<char>(i * 7919 % 251));
  Exchange(noise + "\r\n\r\n");
  UniqueFd half = Connect(port_);
  ASSERT_TRUE(WriteAll(half.get(), "GET / HT").ok());
  half.reset();
  EXPECT_EQ(channel_->CallBlocking("/t.S/Echo", "x").value(), "x");
}

TEST_F(HttpTest, WhatOnlyBeginsLikeHttp2IsClosed) {
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  const std::string ping("\0\0\x08\x06\0\0\0\0\0", 9), endless("\xFF\xFF\xFF\x04\0\0\0\0\0", 9);
  for (const std::string& begin : {std::string("PRI * HTTP/1.1\r\n"), preface + ping, preface + endless}) {
    UniqueFd fd = Connect(port_);
    ASSERT_TRUE(WriteAll(fd.get(), begin).ok());
    char byte;
    EXPECT_LE(read(fd.get(), &byte, 1), 0);  // a close, or a reset over what was not read
  }
}

TEST_F(HttpTest, SilentConnectionsHoldUpNobody) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 1000; ++i) {
    idle.push_back(Connect(port_));
    ASSERT_TRUE(idle.back().valid());
    const char* const begins[] = {"", "PR", "GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"};
    ASSERT_TRUE(WriteAll(idle.back().get(), begins[i % 4]).ok());
  }
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_EQ(channel_->CallBlocking("/t.S/Echo", "x").value(), "x");
  EXPECT_THAT(Exchange("GET / HTTP/1.1\r\nConnection: close\r\n\r\n"), StartsWith("HTTP/1.1 200"));
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 2s);
  char byte;
  // Closed (or reset over what was not read) by the limit of our own, also after a preface and nothing more.
  for (int i = 0; i < 4; ++i) EXPECT_LE(read(idle[static_cast<size_t>(i)].get(), &byte, 1), 0) << i;
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 13s);
}

TEST_F(HttpTest, PeersOfAnotherUserAreRefusedAndConnectionsCounted) {
  auto router = std::make_shared<Router>();
  auto listener = Listen("unix:" + dir_.path() + "/own");
  auto server =
      Server::Start({.router = router, .http = handler_, .require_peer_uid = getuid() + 1}, listener->get())
          .value();
  EXPECT_EQ(Channel::Create("unix:" + dir_.path() + "/own")->CallBlocking("/t.S/Echo", "").status().code(),
            Code::kUnavailable);
  auto tcp = Listen("127.0.0.1:0");
  auto small = Server::Start({.router = router, .http = handler_, .max_connections = 2}, tcp->get()).value();
  const int port = PortOf(tcp->get());
  UniqueFd one = Connect(port), two = Connect(port), three = Connect(port);
  char byte;
  EXPECT_LE(read(three.get(), &byte, 1), 0);
  one.reset();
  std::string answer;
  for (int i = 0; i < 100 && answer.empty(); ++i) {
    UniqueFd again = Connect(port);
    if (WriteAll(again.get(), "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").ok())
      answer = ReadToEnd(again.get());
    if (answer.empty()) std::this_thread::sleep_for(10ms);
  }
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpTest, StopCutsWhatRuns) {
  UniqueFd busy = Connect(port_), parked = Connect(port_);
  ASSERT_TRUE(WriteAll(parked.get(), "GET /p HTTP/1.1\r\n\r\n").ok());
  ReadUntil(parked.get(), "127.0.0.1");
  ASSERT_TRUE(WriteAll(busy.get(), "PUT /b HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc").ok());
  std::this_thread::sleep_for(50ms);
  const auto begun = std::chrono::steady_clock::now();
  server_->Stop(2000);
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 1s);
  ReadToEnd(busy.get());
  EXPECT_EQ(ReadToEnd(parked.get()), "");
}

// The listening socket outlives each server: what one leaves in the acceptor must not meet the next.
TEST(Listeners, ServeAgainAfterStop) {
  TempDir dir;
  auto router = std::make_shared<Router>();
  router->AddUnary("t.S", "Echo",
                   [](std::string_view request, Ctx, RawReply reply) { reply(std::string(request)); });
  auto listener = Listen("unix:" + dir.path() + "/s");
  for (int i = 0; i < 20; ++i) {
    auto server = Server::Start({.router = router}, listener->get()).value();
    EXPECT_EQ(Channel::Create("unix:" + dir.path() + "/s")->CallBlocking("/t.S/Echo", "x").value(), "x");
  }
}

TEST(HttpText, Escapes) {
  EXPECT_EQ(http::EscapeHtml("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
  EXPECT_EQ(http::PercentDecode("%41%zz%4"), "A%zz%4");
}

TEST(Addresses, WrongOnesAreRefused) {
  EXPECT_EQ(Listen("nonsense").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Listen("unix:").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Listen("unix:/" + std::string(200, 'x')).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Listen("unix:/nowhere/at/all").status().code(), Code::kNotFound);
  auto taken = Listen("127.0.0.1:0");
  EXPECT_FALSE(Listen("127.0.0.1:" + std::to_string(PortOf(taken->get()))).ok());
}

}  // namespace
}  // namespace lydian::rpc
