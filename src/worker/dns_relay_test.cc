#include "worker/dns_relay.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::worker {
namespace {

std::string Question(uint16_t id) {
  std::string question("\0\0\1\0\0\1\0\0\0\0\0\1\7example\4test\0\0\1\0\1\0\0\x29\4\xD0\0\0\0\0\0\0", 41);
  question[0] = static_cast<char>(id >> 8);
  question[1] = static_cast<char>(id & 0xFF);
  return question;
}

UniqueFd Socket(int type, uint16_t port, bool server, uint16_t* got = nullptr) {
  UniqueFd fd(socket(AF_INET, type | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  auto* raw = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(server ? bind(fd.get(), raw, sizeof address) : connect(fd.get(), raw, sizeof address), 0);
  socklen_t length = sizeof address;
  getsockname(fd.get(), raw, &length);
  if (got != nullptr) *got = ntohs(address.sin_port);
  timeval limit{5, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return fd;
}

class DnsRelayTest : public testing::Test {
 protected:
  void Start(uint16_t upstream_port) {
    conf_ = testing::TempDir() + "/resolv-" + RandomHex(4);
    ASSERT_TRUE(WriteFileAtomic(conf_, "# ours\nnameserver 127.0.0.1\n").ok());
    DnsRelay::Options options;
    options.address = "127.0.0.1";
    options.port = 0;
    options.resolv_conf = conf_;
    options.upstream_port = upstream_port;
    options.timeout_ms = 50;
    // The port that UDP was given may be somebody's on TCP.
    for (int tries = 0; tries < 10 && port_ == 0; ++tries) {
      relay_ = std::make_unique<DnsRelay>(options);
      relay_->Open();
      port_ = relay_->BoundPort();
    }
    ASSERT_NE(port_, 0);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(conf_).ok()); }
  std::string conf_;
  std::unique_ptr<DnsRelay> relay_;
  uint16_t port_ = 0;
};

TEST_F(DnsRelayTest, ADatagramGoesThereAndBack) {
  uint16_t upstream_port = 0;
  UniqueFd upstream = Socket(SOCK_DGRAM, 0, true, &upstream_port);
  Start(upstream_port);
  UniqueFd client = Socket(SOCK_DGRAM, port_, false);
  const std::string question = Question(0x1234);
  ASSERT_GT(send(client.get(), question.data(), question.size(), 0), 0);
  char buffer[512];
  sockaddr_in from{};
  socklen_t length = sizeof from;
  const ssize_t n =
      recvfrom(upstream.get(), buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length);
  ASSERT_EQ(std::string(buffer, static_cast<size_t>(n)), question);
  std::string forged = question, answer = question;
  forged[0] ^= 1;
  forged[2] = static_cast<char>(0x81);
  answer[2] = static_cast<char>(0x81);
  sendto(upstream.get(), forged.data(), forged.size(), 0, reinterpret_cast<sockaddr*>(&from), length);
  sendto(upstream.get(), answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from), length);
  const ssize_t got = recv(client.get(), buffer, sizeof buffer, 0);
  ASSERT_GT(got, 0);
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(got)), answer);
}

TEST_F(DnsRelayTest, SilenceIsServfail) {
  uint16_t upstream_port = 0;
  UniqueFd upstream = Socket(SOCK_DGRAM, 0, true, &upstream_port);
  Start(upstream_port);
  UniqueFd client = Socket(SOCK_DGRAM, port_, false);
  const std::string question = Question(7);
  ASSERT_GT(send(client.get(), question.data(), question.size(), 0), 0);
  char buffer[512];
  const ssize_t got = recv(client.get(), buffer, sizeof buffer, 0);
  ASSERT_GT(got, 12);
  EXPECT_EQ(buffer[3] & 0x0F, 2);
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(got)), ServFail(question));
}

TEST_F(DnsRelayTest, TcpWorksToo) {
  uint16_t upstream_port = 0;
  UniqueFd upstream = Socket(SOCK_STREAM, 0, true, &upstream_port);
  ASSERT_EQ(listen(upstream.get(), 1), 0);
  Start(upstream_port);
  UniqueFd client = Socket(SOCK_STREAM, port_, false);
  const std::string question = Question(9);
  const std::string framed = std::string(1, '\0') + static_cast<char>(question.size()) + question;
  ASSERT_TRUE(WriteAll(client.get(), framed).ok());
  UniqueFd server(accept(upstream.get(), nullptr, nullptr));
  char buffer[512];
  ASSERT_EQ(recv(server.get(), buffer, framed.size(), MSG_WAITALL), static_cast<ssize_t>(framed.size()));
  buffer[4] = static_cast<char>(0x81);
  ASSERT_TRUE(WriteAll(server.get(), {buffer, framed.size()}).ok());
  char answer[512];
  ASSERT_EQ(recv(client.get(), answer, framed.size(), MSG_WAITALL), static_cast<ssize_t>(framed.size()));
  EXPECT_EQ(std::string(answer, framed.size()), std::string(buffer, framed.size()));
}

TEST(DnsText, ResolvConf) {
  using List = std::vector<std::string>;
  EXPECT_EQ(ParseResolvConf("nameserver 10.0.0.1\nsearch x\nnameserver\t::1 # two\nnameservers 1.1.1.1\n"),
            (List{"10.0.0.1", "::1"}));
  EXPECT_EQ(ParseResolvConf(""), List{"127.0.0.1"});
  EXPECT_EQ(ParseResolvConf("nameserver 1\nnameserver 2\nnameserver 3\nnameserver 4").size(), 3u);
}

TEST(DnsText, ServFailOfOddQuestions) {
  EXPECT_EQ(ServFail("short"), "");
  std::string endless(12, '\0');
  endless[5] = 1;
  endless += '\x3F';
  EXPECT_EQ(ServFail(endless), "");
  EXPECT_EQ(ServFail(Question(1)).size(), Question(1).size() - 11);
}

}  // namespace
}  // namespace lydian::worker
