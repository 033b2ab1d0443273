#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <map>
#include <set>

#include "base/executor.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/status.h"
#include "base/text.h"

namespace lydian {
namespace {

TEST(Status, CarriesCodeErrnoAndContext) {
  Status status = ErrnoStatus("opening x", ENOSPC).With("starting ta-1");
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_EQ(status.error(), ENOSPC);
  EXPECT_EQ(status.message(), "starting ta-1: opening x: No space left on device");
  EXPECT_TRUE(OkStatus().With("nothing").ok());
}

Result<int> Half(int x) {
  if (x % 2 != 0) return InvalidArgument("odd");
  return x / 2;
}
Result<int> Quarter(int x) {
  ASSIGN_OR_RETURN(int half, Half(x));
  return Half(half);
}

TEST(Result, PassesValuesAndErrors) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(Result<int>(OkStatus()).ok());
}

TEST(Ids, HaveTheClientsShape) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    std::string task = NewTaskId();
    ASSERT_EQ(task.size(), 29u);
    ASSERT_NE(task.back(), 'V');
    ASSERT_EQ(IdPrefix(task), "ta");
    std::string app = NewId("ap");
    ASSERT_EQ(app.size(), 25u);
    ASSERT_TRUE(seen.insert(app).second);
  }
  EXPECT_EQ(DigestId("im", "a"), DigestId("im", "a"));
  EXPECT_NE(DigestId("im", "a"), DigestId("im", "b"));
  EXPECT_EQ(IdPrefix("a-b-c"), "");
  EXPECT_EQ(IdPrefix("-x"), "");
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Md5Hex(""), "d41d8cd98f00b204e9800998ecf8427e");
  EXPECT_EQ(Base64Encode("a"), "YQ==");
  for (const std::string raw : {"", "a", "ab", "abc", "\xff\xfe="}) {
    EXPECT_EQ(Base64Decode(Base64Encode(raw)), raw);
  }
  EXPECT_EQ(Base64Decode("YQ"), "a");
  EXPECT_EQ(Base64Decode("no base64!"), "");
}

TEST(Strand, RunsInOrderAndTimersCancel) {
  Strand strand("test");
  std::vector<int> order;
  std::promise<void> done;
  auto late = strand.PostAfter(std::chrono::hours(1), [&] { order.push_back(99); });
  strand.PostAfter(std::chrono::milliseconds(20), [&] {
    order.push_back(3);
    done.set_value();
  });
  for (int i = 0; i < 3; ++i) strand.Post([&order, i] { order.push_back(i); });
  done.get_future().wait();
  EXPECT_TRUE(strand.CancelTimer(late));
  EXPECT_FALSE(strand.CancelTimer(late));
  strand.Stop();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
}

TEST(Strand, RunsShortWorkOnTheCallersThread) {
  Strand strand("test");
  std::thread::id ran;
  bool on_strand = false, nested = false;
  strand.Run([&] {
    ran = std::this_thread::get_id();
    on_strand = strand.OnStrand();
    strand.Run([&] { nested = true; });
    EXPECT_FALSE(nested);  // never inside another
  });
  EXPECT_EQ(ran, std::this_thread::get_id());
  EXPECT_TRUE(on_strand);
  EXPECT_TRUE(nested);
  EXPECT_FALSE(strand.OnStrand());
  // What was posted goes first, on the strand's own thread; timers set meanwhile come.
  std::promise<std::thread::id> posted, timed;
  strand.Run([&] {
    strand.Post([&] { posted.set_value(std::this_thread::get_id()); });
    strand.PostAfter(std::chrono::milliseconds(5), [&] { timed.set_value(std::this_thread::get_id()); });
  });
  EXPECT_NE(posted.get_future().get(), std::this_thread::get_id());
  EXPECT_NE(timed.get_future().get(), std::this_thread::get_id());
}

TEST(Text, NumbersForPeople) {
  EXPECT_EQ(BytesText(0), "0 bytes");
  EXPECT_EQ(BytesText(1536), "1.5 KiB");
  EXPECT_EQ(BytesText(uint64_t{256} << 20), "256 MiB");
  EXPECT_EQ(BytesText((uint64_t{256} << 20) - 4096), "256 MiB");
  EXPECT_EQ(AgeText(90), "90 s");
  EXPECT_EQ(AgeText(86'400), "24 h");
  EXPECT_EQ(AgeText(14 * 86'400), "14 days");
}

TEST(Strand, NeverRunsTwoAtOnceAndKeepsOrder) {
  Strand strand("test");
  std::atomic<int> inside{0};
  std::map<int, int> last;  // touched only on the strand
  int total = 0;
  std::promise<void> done;
  constexpr int kThreads = 4, kEach = 5000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 1; i <= kEach; ++i) {
        auto task = [&, t, i] {
          EXPECT_EQ(inside.fetch_add(1), 0);
          EXPECT_EQ(last[t], i - 1);
          last[t] = i;
          if (i % 100 == 0) strand.PostAfter(std::chrono::microseconds(50), [] {});
          inside.fetch_sub(1);
          if (++total == kThreads * kEach) done.set_value();
        };
        i % 3 == 0 ? strand.Post(task) : strand.Run(task);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(done.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
}

TEST(Files, AtomicWriteAndRemoveTree) {
  std::string dir = ::testing::TempDir() + "/lydian-base-" + std::to_string(::getpid());
  ASSERT_TRUE(MakeDirs(dir + "/a/b").ok());
  ASSERT_TRUE(WriteFileAtomic(dir + "/a/b/f", "one").ok());
  ASSERT_TRUE(WriteFileAtomic(dir + "/a/b/f", "two", 0600, true).ok());
  EXPECT_EQ(*ReadFile(dir + "/a/b/f"), "two");
  EXPECT_EQ(ReadFile(dir + "/a/b/f", 2).status().code(), Code::kResourceExhausted);
  std::filesystem::create_symlink("/etc", dir + "/a/link");
  EXPECT_TRUE(RemoveTree(dir).ok());
  EXPECT_FALSE(Exists(dir));
  EXPECT_TRUE(Exists("/etc/passwd"));
  EXPECT_EQ(ReadFile(dir).status().code(), Code::kNotFound);
}

}  // namespace
}  // namespace lydian
