#include "worker/guest_http.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <thread>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::worker {
namespace {

UniqueFd UnixListener(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(listen(fd.get(), 16), 0);
  return fd;
}

UniqueFd UnixConnect(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  timeval limit{10, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return fd;
}

std::string ReadUntilEnd(int fd) {
  std::string all;
  char buffer[65536];
  for (ssize_t n; (n = recv(fd, buffer, sizeof buffer, 0)) > 0;) all.append(buffer, static_cast<size_t>(n));
  return all;
}

class GuestHttpTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/http-" + RandomHex(4);
    ASSERT_TRUE(MakeDirs(dir_).ok());
    upstream_ = UnixListener(dir_ + "/up");
    http_ = std::make_unique<GuestHttp>(dir_ + "/up");
    http_->Add("ta-1", UnixListener(dir_ + "/guest"));
  }
  void TearDown() override {
    http_.reset();
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  // Takes one request with a body of `length`, answers with `answer`.
  std::string ServeOne(size_t length, const std::string& answer) {
    UniqueFd fd(accept(upstream_.get(), nullptr, nullptr));
    std::string all;
    char buffer[65536];
    size_t whole = SIZE_MAX;
    while (all.size() < whole) {
      const ssize_t n = recv(fd.get(), buffer, sizeof buffer, 0);
      if (n <= 0) break;
      all.append(buffer, static_cast<size_t>(n));
      if (const size_t end = all.find("\r\n\r\n"); end != std::string::npos) whole = end + 4 + length;
    }
    EXPECT_TRUE(WriteAll(fd.get(), answer).ok());
    return all;
  }
  std::string dir_;
  UniqueFd upstream_;
  std::unique_ptr<GuestHttp> http_;
};

TEST_F(GuestHttpTest, LargeBodiesGoBothWays) {
  const std::string body(10 << 20, 'u'), content(12 << 20, 'd');
  std::string seen;
  std::thread server([&] { seen = ServeOne(body.size(), "HTTP/1.1 200 OK\r\ncontent-length: " + std::to_string(content.size()) + "\r\n\r\n" + content); });
  UniqueFd client = UnixConnect(dir_ + "/guest");
  ASSERT_TRUE(WriteAll(client.get(), "PUT /blob/bl-1?x=y HTTP/1.1\r\nHost: h\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n").ok());
  ASSERT_TRUE(WriteAll(client.get(), body).ok());
  const std::string answer = ReadUntilEnd(client.get());
  server.join();
  EXPECT_TRUE(seen.ends_with(body));
  EXPECT_TRUE(seen.starts_with("PUT /blob/bl-1?x=y HTTP/1.1\r\n"));
  EXPECT_TRUE(answer.ends_with(content));
}

TEST_F(GuestHttpTest, ASecondRequestBehindTheFirstIsNotPassedOn) {
  std::string seen;
  std::thread server([&] { seen = ServeOne(0, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"); });
  UniqueFd client = UnixConnect(dir_ + "/guest");
  ASSERT_TRUE(WriteAll(client.get(), "GET /blob/a HTTP/1.1\r\n\r\nGET /apps/ap-1 HTTP/1.1\r\n\r\n").ok());
  EXPECT_TRUE(ReadUntilEnd(client.get()).ends_with("ok"));
  server.join();
  EXPECT_EQ(seen.find("/apps/"), std::string::npos);
}

TEST_F(GuestHttpTest, OtherPathsAreNotFound) {
  for (const char* request : {"GET / HTTP/1.1\r\n\r\n", "GET /apps/ap-1 HTTP/1.1\r\n\r\n", "GET /blob/../apps HTTP/1.1\r\n\r\n",
                              "PUT /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"}) {
    UniqueFd client = UnixConnect(dir_ + "/guest");
    ASSERT_TRUE(WriteAll(client.get(), request).ok());
    EXPECT_TRUE(ReadUntilEnd(client.get()).starts_with("HTTP/1.1 404 ")) << request;
  }
  UniqueFd client = UnixConnect(dir_ + "/guest");
  ASSERT_TRUE(WriteAll(client.get(), "PUT /blob/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").ok());
  EXPECT_TRUE(ReadUntilEnd(client.get()).starts_with("HTTP/1.1 411 "));
}

TEST_F(GuestHttpTest, AnEarlyRefusalReachesTheSender) {
  std::thread server([&] {
    UniqueFd fd(accept(upstream_.get(), nullptr, nullptr));
    char buffer[1024];
    EXPECT_GT(recv(fd.get(), buffer, sizeof buffer, 0), 0);
    EXPECT_TRUE(WriteAll(fd.get(), "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").ok());
  });
  UniqueFd client = UnixConnect(dir_ + "/guest");
  ASSERT_TRUE(WriteAll(client.get(), "PUT /blob/x HTTP/1.1\r\nContent-Length: 50000000\r\n\r\nabc").ok());
  const std::string answer = ReadUntilEnd(client.get());
  server.join();
  EXPECT_TRUE(answer.ends_with("no")) << answer;
}

TEST_F(GuestHttpTest, ItWaitsForAControlThatIsAway) {
  upstream_.reset();
  UniqueFd client = UnixConnect(dir_ + "/guest");
  ASSERT_TRUE(WriteAll(client.get(), "GET /blob/a HTTP/1.1\r\n\r\n").ok());
  usleep(150'000);
  ASSERT_EQ(unlink((dir_ + "/up").c_str()), 0);
  upstream_ = UnixListener(dir_ + "/up");
  std::thread server([&] { ServeOne(0, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"); });
  EXPECT_TRUE(ReadUntilEnd(client.get()).ends_with("ok"));
  server.join();
}

}  // namespace
}  // namespace lydian::worker
