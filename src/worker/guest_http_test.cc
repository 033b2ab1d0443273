// Containers that share the way to control's blobs: one that takes all it can get is not to starve others.
#include "worker/guest_http.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <string>
#include <vector>

namespace lydian::worker {
namespace {

constexpr int kPatience = 10'000;  // ms, for what must come
constexpr int kMoment = 200;       // ms, for what must not

UniqueFd UnixSocket(const std::string& path, bool listening) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  const bool good = listening ? bind(fd.get(), any, sizeof address) == 0 && listen(fd.get(), 1024) == 0
                              : connect(fd.get(), any, sizeof address) == 0;
  EXPECT_TRUE(good) << path;
  return fd;
}

bool Readable(int fd, int millis) {
  pollfd wait{fd, POLLIN, 0};
  return poll(&wait, 1, millis) == 1;
}

// What comes before the other side closes, or as much as `end`; "nothing" when it stays silent.
std::string Read(int fd, std::string_view end = "") {
  std::string all;
  char byte;
  for (;;) {
    if (!Readable(fd, kPatience)) return "nothing";
    if (recv(fd, &byte, 1, 0) != 1) return all;
    all.push_back(byte);
    if (!end.empty() && all.ends_with(end)) return all;
  }
}

void Say(int fd, std::string_view text) {
  ASSERT_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

class GuestHttpTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/lydian-guest-XXXXXX";
    dir_ = mkdtemp(name);
    control_ = UnixSocket(dir_ + "/control", true);
  }
  ~GuestHttpTest() override {
    guest_.reset();
    (void)RemoveTree(dir_).ok();
  }
  void Start(GuestHttp::Limits limits) { guest_ = std::make_unique<GuestHttp>(dir_ + "/control", limits); }
  void Container(const std::string& task) { guest_->Add(task, UnixSocket(dir_ + "/" + task, true)); }

  UniqueFd Open(const std::string& task) { return UnixSocket(dir_ + "/" + task, false); }
  // The head of a body that doesn't come.
  UniqueFd Slow(const std::string& task) {
    UniqueFd fd = Open(task);
    Say(fd.get(), "PUT /blob/" + task + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\na");
    return fd;
  }
  // The next exchange that control hears of, and whose it is.
  std::pair<UniqueFd, std::string> Exchange() {
    if (!Readable(control_.get(), kPatience)) return {UniqueFd(), "none"};
    UniqueFd fd(accept4(control_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const std::string head = Read(fd.get(), "\r\n\r\n");
    const size_t from = head.find("/blob/") + 6;
    return {std::move(fd), head.substr(from, head.find(' ', from) - from)};
  }
  bool NoExchange() { return !Readable(control_.get(), kMoment); }

  std::string dir_;
  UniqueFd control_;
  std::unique_ptr<GuestHttp> guest_;
};

TEST_F(GuestHttpTest, FurtherExchangesOfAContainerWaitTheirTurn) {
  Start({.exchanges_of_one = 3});
  Container("a");
  Container("b");
  std::vector<UniqueFd> slow, taken;
  for (int i = 0; i < 5; ++i) slow.push_back(Slow("a"));
  for (int i = 0; i < 3; ++i) taken.push_back(Exchange().first);
  EXPECT_TRUE(NoExchange());
  UniqueFd other = Slow("b");
  auto [of_b, whose] = Exchange();
  EXPECT_EQ(whose, "b");
  // One ends, the next begins, and nothing of it was lost.
  Say(taken[0].get(), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  taken[0].reset();
  auto [next, of_next] = Exchange();
  EXPECT_EQ(of_next, "a");
  EXPECT_EQ(Read(next.get(), "a"), "a");
  EXPECT_TRUE(NoExchange());
}

TEST_F(GuestHttpTest, WhoeverWaitsIsToldInTheEnd) {
  Start({.exchanges_of_one = 1, .turn_within = Millis(kMoment)});
  Container("a");
  UniqueFd first = Slow("a");
  auto [taken, whose] = Exchange();
  UniqueFd second = Slow("a");
  EXPECT_TRUE(Read(second.get()).starts_with("HTTP/1.1 503 "));
  UniqueFd third = Slow("a");
  third.reset();  // gave up: its turn goes to who is still there
  UniqueFd fourth = Slow("a");
  taken.reset();
  EXPECT_EQ(Exchange().second, "a");
}

TEST_F(GuestHttpTest, SlowExchangesOfWhoHasMostMakeRoom) {
  Start({.exchanges = 4, .exchanges_of_one = 3, .slow_after = Millis(kMoment)});
  for (const char* task : {"a", "b", "c"}) Container(task);
  std::vector<UniqueFd> slow, taken;
  for (int i = 0; i < 3; ++i) slow.push_back(Slow("a"));
  for (int i = 0; i < 3; ++i) taken.push_back(Exchange().first);
  UniqueFd one = Slow("b");
  auto [of_b, b] = Exchange();
  ASSERT_EQ(b, "b");
  UniqueFd newcomer = Slow("c");
  auto [of_c, c] = Exchange();
  EXPECT_EQ(c, "c");
  int cut = 0;
  for (const UniqueFd& fd : slow) cut += Readable(fd.get(), 0) ? 1 : 0;
  EXPECT_EQ(cut, 1);
  EXPECT_FALSE(Readable(one.get(), 0));
  // Now they have two, one and one: nobody has to go for a second one of "c".
  UniqueFd more = Slow("c");
  EXPECT_FALSE(Readable(control_.get(), 4 * kMoment));
}

TEST_F(GuestHttpTest, FastExchangesStay) {
  Start({.exchanges = 2, .exchanges_of_one = 2, .slow_after = Millis(kMoment), .slow_rate = 1});
  Container("a");
  Container("b");
  std::vector<UniqueFd> busy, taken;
  for (int i = 0; i < 2; ++i) busy.push_back(Slow("a"));
  for (int i = 0; i < 2; ++i) taken.push_back(Exchange().first);
  for (const UniqueFd& fd : busy) Say(fd.get(), std::string(1000, 'x'));
  UniqueFd newcomer = Slow("b");
  EXPECT_FALSE(Readable(control_.get(), 5 * kMoment));
  taken[0].reset();
  EXPECT_EQ(Exchange().second, "b");
}

TEST_F(GuestHttpTest, ContainerWithMostConnectionsMakesRoom) {
  Start({.connections = 6, .connections_of_one = 4});
  for (const char* task : {"a", "b", "c"}) Container(task);
  std::vector<UniqueFd> greedy, more;
  for (int i = 0; i < 4; ++i) greedy.push_back(Open("a"));
  UniqueFd fifth = Open("a");
  EXPECT_EQ(Read(fifth.get()), "");  // closed, and so the four before are known of
  for (int i = 0; i < 2; ++i) more.push_back(Slow("b"));
  std::vector<UniqueFd> taken;
  for (int i = 0; i < 2; ++i) taken.push_back(Exchange().first);
  UniqueFd newcomer = Slow("c");
  EXPECT_EQ(Exchange().second, "c");
  EXPECT_EQ(Read(greedy[0].get()), "");
  for (size_t i = 1; i < greedy.size(); ++i) EXPECT_FALSE(Readable(greedy[i].get(), 0)) << i;
}

}  // namespace
}  // namespace lydian::worker
