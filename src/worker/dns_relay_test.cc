#include "worker/dns_relay.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

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

UniqueFd Socket(int type, uint16_t port, bool server, uint16_t* got = nullptr, const char* from = nullptr) {
  UniqueFd fd(socket(AF_INET, type | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  auto* raw = reinterpret_cast<sockaddr*>(&address);
  if (from != nullptr) {
    sockaddr_in own{};
    own.sin_family = AF_INET;
    inet_pton(AF_INET, from, &own.sin_addr);
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&own), sizeof own), 0);
  }
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
    options.timeout_ms = timeout_ms_;
    options.most_in_flight = 64;
    options.most_in_flight_each = 30;
    options.most_streams = 16;
    options.most_streams_each = 8;
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
  int timeout_ms_ = 50;
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
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(got)), ErrorAnswer(question, 2));
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

std::string Framed(const std::string& message) {
  return std::string(1, static_cast<char>(message.size() >> 8)) + static_cast<char>(message.size()) + message;
}

std::string Receive(const UniqueFd& fd) {
  char buffer[512];
  const ssize_t n = recv(fd.get(), buffer, sizeof buffer, 0);
  return n < 0 ? "" : std::string(buffer, static_cast<size_t>(n));
}

// Questions of `type` with another operation.
std::string Odd(int operation, unsigned type) {
  std::string question = Question(5);
  question[2] = static_cast<char>(operation << 3);
  question[26] = static_cast<char>(type >> 8);
  question[27] = static_cast<char>(type & 0xFF);
  return question;
}

TEST_F(DnsRelayTest, PassesOnPlainQuestionsAlone) {
  uint16_t upstream_port = 0;
  UniqueFd upstream = Socket(SOCK_DGRAM, 0, true, &upstream_port);
  Start(upstream_port);
  UniqueFd client = Socket(SOCK_DGRAM, port_, false), stream = Socket(SOCK_STREAM, port_, false);
  const std::pair<std::string, int> odd[] = {{Odd(5, 6), 4},     // UPDATE
                                             {Odd(4, 6), 4},     // NOTIFY
                                             {Odd(0, 252), 5},   // AXFR
                                             {Odd(0, 251), 5}};  // IXFR
  for (const auto& [question, code] : odd) {
    ASSERT_GT(send(client.get(), question.data(), question.size(), 0), 0);
    EXPECT_EQ(Receive(client), ErrorAnswer(question, code));
    ASSERT_TRUE(WriteAll(stream.get(), Framed(question)).ok());
    EXPECT_EQ(Receive(stream), Framed(ErrorAnswer(question, code)));
  }
  const std::string plain = Odd(0, 28);
  ASSERT_GT(send(client.get(), plain.data(), plain.size(), 0), 0);
  EXPECT_EQ(Receive(upstream), plain);  // and none of the others before it
}

TEST_F(DnsRelayTest, AFlooderLosesOnlyItsOwnQuestions) {
  uint16_t upstream_port = 0;
  UniqueFd upstream = Socket(SOCK_DGRAM, 0, true, &upstream_port);
  timeout_ms_ = 5000;
  Start(upstream_port);
  UniqueFd quiet = Socket(SOCK_DGRAM, port_, false, nullptr, "127.0.0.2");
  const std::string question = Question(1);
  ASSERT_GT(send(quiet.get(), question.data(), question.size(), 0), 0);
  char buffer[512];
  sockaddr_in from{};
  socklen_t length = sizeof from;
  ASSERT_GT(recvfrom(upstream.get(), buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length),
            0);
  // More than there is room for in all, by several askers.
  for (const char* flooder : {"127.0.0.3", "127.0.0.4", "127.0.0.5"}) {
    UniqueFd socket = Socket(SOCK_DGRAM, port_, false, nullptr, flooder);
    for (int i = 0; i < 40; ++i) {
      const std::string more = Question(static_cast<uint16_t>(100 + i));
      ASSERT_GT(send(socket.get(), more.data(), more.size(), 0), 0);
      ASSERT_GT(recv(upstream.get(), buffer, sizeof buffer, 0), 0);  // so that none is lost on the way
    }
  }
  std::string answer = question;
  answer[2] = static_cast<char>(0x81);
  sendto(upstream.get(), answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from), length);
  EXPECT_EQ(Receive(quiet), answer);
}

TEST_F(DnsRelayTest, AFlooderLosesOnlyItsOwnStreams) {
  uint16_t upstream_port = 0;
  UniqueFd upstream = Socket(SOCK_DGRAM, 0, true, &upstream_port);  // nobody listens on TCP: SERVFAIL
  Start(upstream_port);
  UniqueFd quiet = Socket(SOCK_STREAM, port_, false, nullptr, "127.0.0.2");
  const std::string odd = Odd(5, 6);
  ASSERT_TRUE(WriteAll(quiet.get(), Framed(odd)).ok());
  EXPECT_EQ(Receive(quiet), Framed(ErrorAnswer(odd, 4)));  // it is accepted
  std::vector<UniqueFd> flood;
  for (const char* flooder : {"127.0.0.3", "127.0.0.4", "127.0.0.5"}) {
    for (int i = 0; i < 20; ++i) {
      flood.push_back(Socket(SOCK_STREAM, port_, false, nullptr, flooder));
      ASSERT_TRUE(WriteAll(flood.back().get(), Framed(odd)).ok());
      EXPECT_EQ(Receive(flood.back()), Framed(ErrorAnswer(odd, 4)));
    }
  }
  ASSERT_TRUE(WriteAll(quiet.get(), Framed(odd)).ok());
  EXPECT_EQ(Receive(quiet), Framed(ErrorAnswer(odd, 4)));
  EXPECT_EQ(Receive(flood.front()), "");  // closed
}

TEST_F(DnsRelayTest, TenThousandRefusedQuestionsInARow) {
  uint16_t upstream_port = 0;
  UniqueFd upstream = Socket(SOCK_DGRAM, 0, true, &upstream_port);
  Start(upstream_port);
  ASSERT_TRUE(
      WriteFileAtomic(conf_, "nameserver nowhere\n").ok());  // no resolver can be asked: SERVFAIL at once
  UniqueFd client = Socket(SOCK_STREAM, port_, false);
  std::string all;
  for (int i = 0; i < 10'000; ++i) all += Framed(Question(static_cast<uint16_t>(i)));
  std::thread writer([&] { EXPECT_TRUE(WriteAll(client.get(), all).ok()); });
  size_t answers = 0;
  const size_t expected = 10'000 * Framed(ErrorAnswer(Question(0), 2)).size();
  for (std::string some = Receive(client); !some.empty(); some = Receive(client)) {
    answers += some.size();
    if (answers == expected) break;
  }
  EXPECT_EQ(answers, expected);
  writer.join();
}

TEST(DnsText, Judges) {
  EXPECT_EQ(Judge(Question(1)), 0);
  EXPECT_EQ(Judge("short"), -1);
  std::string text = Question(1);
  text[2] = static_cast<char>(0x80);
  EXPECT_EQ(Judge(text), -1);
  text = Question(1);
  text[5] = 2;
  EXPECT_EQ(Judge(text), 1);
  text = Question(1);
  text[7] = 1;
  EXPECT_EQ(Judge(text), 1);
  text = Question(1);
  text[12] = static_cast<char>(0xC0);
  EXPECT_EQ(Judge(text), 1);
  EXPECT_EQ(Judge(Question(1).substr(0, 20)), 1);
  EXPECT_EQ(Judge(Odd(0, 255)), 0);
  EXPECT_EQ(Judge(Odd(0, 65)), 0);   // HTTPS
  EXPECT_EQ(Judge(Odd(0, 250)), 5);  // TSIG
}

TEST(DnsText, ResolvConf) {
  using List = std::vector<std::string>;
  EXPECT_EQ(ParseResolvConf("nameserver 10.0.0.1\nsearch x\nnameserver\t::1 # two\nnameservers 1.1.1.1\n"),
            (List{"10.0.0.1", "::1"}));
  EXPECT_EQ(ParseResolvConf(""), List{"127.0.0.1"});
  EXPECT_EQ(ParseResolvConf("nameserver 1\nnameserver 2\nnameserver 3\nnameserver 4").size(), 3u);
}

TEST(DnsText, ServFailOfOddQuestions) {
  EXPECT_EQ(ErrorAnswer("short", 2), "");
  std::string endless(12, '\0');
  endless[5] = 1;
  endless += '\x3F';
  EXPECT_EQ(ErrorAnswer(endless, 2), "");
  EXPECT_EQ(ErrorAnswer(Question(1), 2).size(), Question(1).size() - 11);
}

}  // namespace
}  // namespace lydian::worker
