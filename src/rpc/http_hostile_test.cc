// What a client of HTTP/1.1 may do that has no right to anything here, while another wants to be served.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "rpc/channel.h"
#include "rpc/http.h"
#include "rpc/router.h"
#include "rpc/server.h"
#include "rpc/test_util.h"

namespace lydian::rpc {
namespace {

using namespace std::chrono_literals;

constexpr char kSlow[] = "PUT /body HTTP/1.1\r\nContent-Length: 1000000\r\n\r\na";
constexpr char kRefused[] = "PUT /refuse HTTP/1.1\r\nContent-Length: 1000000\r\n\r\na";

class Handler : public http::Handler {
  http::Response Handle(http::Exchange& exchange) override {
    http::Response response;
    response.body = "answered";
    if (exchange.request().path == "/refuse") response.status = 403;
    if (exchange.request().path != "/body") return response;
    for (;;) {
      auto part = exchange.ReadBody();
      if (!part.ok() || part->empty()) return response;
    }
  }
};

class HttpHostile : public testing::Test {
 protected:
  void Serve(size_t most = 10'000) {
    auto router = std::make_shared<Router>();
    router->AddUnary("t.S", "Echo",
                     [](std::string_view request, Ctx, RawReply reply) { reply(std::string(request)); });
    auto listener = Listen("127.0.0.1:0");
    ASSERT_TRUE(listener.ok()) << listener.status();
    port_ = PortOf(listener->get());
    server_ = Server::Start({.router = router, .http = std::make_shared<Handler>(), .max_connections = most},
                            listener->get())
                  .value();
  }

  // From the loopback address 127.0.0.`host`.
  UniqueFd Say(std::string_view text, uint8_t host) {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(0x7F000000 | host);
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    address.sin_port = htons(static_cast<uint16_t>(port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    return fd;
  }
  std::vector<UniqueFd> Many(int count, std::string_view text, uint8_t host = 2) {
    std::vector<UniqueFd> all;
    for (int i = 0; i < count; ++i) all.push_back(Say(text, host));
    return all;
  }
  // What is heard until "answered", or the end, or nothing for so long.
  static std::string Hear(int fd, std::chrono::milliseconds most) {
    std::string all;
    const auto until = std::chrono::steady_clock::now() + most;
    while (!all.ends_with("answered")) {
      pollfd wait{fd, POLLIN, 0};
      const auto left = std::chrono::ceil<Millis>(until - std::chrono::steady_clock::now());
      if (left.count() <= 0 || poll(&wait, 1, static_cast<int>(left.count())) != 1) return "nothing";
      char part[4096];
      const ssize_t count = recv(fd, part, sizeof part, 0);
      if (count <= 0) return all;
      all.append(part, static_cast<size_t>(count));
    }
    return all;
  }
  bool Answered(std::chrono::milliseconds most) {
    const UniqueFd fd = Say("GET / HTTP/1.1\r\n\r\n", 1);
    return Hear(fd.get(), most).starts_with("HTTP/1.1 200 ");
  }

  int port_ = 0;
  std::unique_ptr<Server> server_;
};

TEST_F(HttpHostile, SlowBodiesOfOneAddressLeaveThreadsForOthers) {
  Serve();
  const auto slow = Many(200, kSlow);
  EXPECT_TRUE(Answered(10s));
}

TEST_F(HttpHostile, WhatIsRefusedHoldsNoThreadAfterItsAnswer) {
  Serve();
  const auto refused = Many(400, kRefused);
  const auto begun = std::chrono::steady_clock::now();
  for (const UniqueFd& fd : refused) {
    ASSERT_TRUE(Hear(fd.get(), 10s).starts_with("HTTP/1.1 403 "));
  }
  // A thread that waits half a second for each would take three.
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 2s);
}

TEST_F(HttpHostile, WhatIsRefusedIsClosedHoweverMuchComes) {
  Serve();
  const UniqueFd fd = Say(kRefused, 2);
  const auto begun = std::chrono::steady_clock::now();
  const std::string more(size_t{64} << 10, 'x');
  timeval most{1, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most);
  while (send(fd.get(), more.data(), more.size(), MSG_NOSIGNAL) > 0) {
    ASSERT_LT(std::chrono::steady_clock::now() - begun, 10s);
  }
  EXPECT_TRUE(Hear(fd.get(), 10s).starts_with("HTTP/1.1 403 ") || errno == ECONNRESET);
}

TEST_F(HttpHostile, HalfOfASecondHeadHoldsNoThreadForLong) {
  Serve();
  const auto halves = Many(100, "GET / HTTP/1.1\r\n\r\nG", 1);
  EXPECT_TRUE(Answered(6s));
}

TEST_F(HttpHostile, ConnectionsThatWaitForTheirNextRequestMakeRoom) {
  Serve(8);
  const auto kept = Many(8, "GET / HTTP/1.1\r\n\r\n", 1);
  for (const UniqueFd& fd : kept) ASSERT_TRUE(Hear(fd.get(), 10s).starts_with("HTTP/1.1 200 "));
  auto channel = Channel::Create("127.0.0.1:" + std::to_string(port_));
  EXPECT_EQ(channel->CallBlocking("/t.S/Echo", "x").value(), "x");
  std::vector<pollfd> ends;
  for (const UniqueFd& fd : kept) ends.push_back({fd.get(), POLLIN | POLLRDHUP, 0});
  EXPECT_EQ(poll(ends.data(), ends.size(), 10'000), 1) << "the one that has waited longest";
  UniqueFd last = Say("GET / HTTP/1.1\r\n\r\n", 1);
  EXPECT_TRUE(Hear(last.get(), 10s).starts_with("HTTP/1.1 200 "));
}

TEST_F(HttpHostile, RequestsThatWaitForTheirAddressesTurnMakeRoom) {
  constexpr int kMost = 80;
  Serve(kMost);
  const auto slow = Many(kMost, kSlow);
  EXPECT_TRUE(Answered(10s));
}

}  // namespace
}  // namespace lydian::rpc
