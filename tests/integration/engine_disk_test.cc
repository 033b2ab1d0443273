// The call engine on a disk that is really full: a small tmpfs. Nothing acknowledged is lost, and work goes on once there is room.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "control/engine_test_util.h"

namespace lydian::control {
namespace {

using namespace std::chrono_literals;

class EngineDiskTest : public EngineTest {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root, to mount a small tmpfs";
    ASSERT_TRUE(MakeDirs(disk_).ok());
    if (mount("lydian-test", disk_.c_str(), "tmpfs", 0, "size=8m") != 0) GTEST_SKIP() << "no tmpfs can be mounted: " << strerror(errno);
    mounted_ = true;
    EngineTest::SetUp();
  }
  void TearDown() override {
    if (mounted_) {
      EngineTest::TearDown();
      EXPECT_EQ(umount(disk_.c_str()), 0) << strerror(errno);
    }
    EXPECT_TRUE(RemoveTree(disk_).ok());
  }
  void Fill() {
    UniqueFd file(open((disk_ + "/ballast").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    struct statvfs info {};
    ASSERT_EQ(statvfs(disk_.c_str(), &info), 0);
    ASSERT_EQ(fallocate(file.get(), 0, 0, static_cast<off_t>(info.f_bavail * info.f_bsize)), 0) << strerror(errno);
  }
  void Free() { ASSERT_EQ(unlink((disk_ + "/ballast").c_str()), 0); }

  std::string disk_ = std::filesystem::temp_directory_path() / ("lydian-disk-" + RandomHex(6));
  bool mounted_ = false;
};

TEST_F(EngineDiskTest, AFullDiskRefusesNewCallsAndKeepsOutputs) {
  EngineOptions options = Options();
  options.journal_path = disk_ + "/calls.db";
  Begin(Function(), options);
  FakeWorker* worker = Connect();
  std::string call = Map("before");
  auto task = worker->WaitStart();
  ASSERT_TRUE(task);
  worker->Ready(task->task_id());
  auto lease = worker->WaitLease();
  ASSERT_TRUE(lease);
  std::this_thread::sleep_for(300ms);  // what was under way is written
  Fill();

  // New work is refused with a sentence, as soon as a page more is needed.
  Status refused;
  int created = 0;
  NewCall big = CallOf(std::string(100'000, 'x'));
  while (refused.ok() && created < 100) {
    auto made = Create(big);
    refused = made.status();
    if (made.ok()) ++created;
  }
  EXPECT_EQ(refused.code(), Code::kResourceExhausted) << refused;
  EXPECT_NE(refused.message().find("no space left on " + disk_), std::string::npos) << refused;

  // An output is not acknowledged, and not lost.
  worker->Succeed(*lease, std::string(100'000, 'r'));
  EXPECT_FALSE(worker->WaitAck(lease->input_id(), 700ms));
  Free();
  EXPECT_TRUE(worker->WaitAck(lease->input_id()));
  auto page = Poll(call);
  ASSERT_EQ(page->outputs.size(), 1u);
  EXPECT_EQ(page->outputs[0].result->size(), 100'000u);

  EXPECT_TRUE(Create(CallOf("after")).ok());
  Restart();
  EXPECT_EQ(Poll(call)->outputs.size(), 1u);
}

}  // namespace
}  // namespace lydian::control
