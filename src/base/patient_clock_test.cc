#include "base/patient_clock.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian {
namespace {

using namespace std::chrono_literals;

constexpr double kHour = 3600, kDay = 24 * kHour;

class SetClock : public Clock {
 public:
  SteadyTime Now() const override { return SteadyTime(std::chrono::nanoseconds(passed_)); }
  int64_t UnixNanos() const override { return 1'700'000'000'000'000'000 + passed_ + jumped_; }
  void Pass(double secs) { passed_ += static_cast<int64_t>(secs * 1e9); }
  void Jump(double secs) { jumped_ += static_cast<int64_t>(secs * 1e9); }

 private:
  int64_t passed_ = 0, jumped_ = 0;
};

class PatientClockTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(MakeDirs(dir_).ok()); }
  void TearDown() override { ASSERT_TRUE(RemoveTree(dir_).ok()); }

  SetClock clock_;
  std::string dir_ = std::filesystem::temp_directory_path() / ("lydian-clock-" + RandomHex(6));
  std::string path_ = dir_ + "/clock";
};

TEST_F(PatientClockTest, IsTheWallClockWhileThatGoesAsTimeDoes) {
  PatientClock patient(clock_, path_);
  EXPECT_DOUBLE_EQ(patient.Look(), clock_.UnixSeconds());
  clock_.Pass(40 * kDay);
  EXPECT_DOUBLE_EQ(patient.Look(), clock_.UnixSeconds());
  clock_.Jump(60);
  EXPECT_DOUBLE_EQ(patient.Look(), clock_.UnixSeconds());
}

TEST_F(PatientClockTest, AJumpAheadIsBelievedAfterADay) {
  PatientClock patient(clock_, path_);
  const double begin = patient.Look();
  clock_.Jump(7 * kDay);
  for (int hour = 1; hour < 24; ++hour) {
    clock_.Pass(kHour);
    EXPECT_NEAR(patient.Look(), begin + hour * kHour, 1);
  }
  clock_.Pass(kHour);
  EXPECT_DOUBLE_EQ(patient.Look(), clock_.UnixSeconds());
}

TEST_F(PatientClockTest, AJumpThatIsTakenBackLeavesNothing) {
  PatientClock patient(clock_, path_);
  const double begin = patient.Look();
  clock_.Jump(7 * kDay);
  clock_.Pass(20 * kHour);
  patient.Look();
  clock_.Jump(-7 * kDay);
  EXPECT_NEAR(patient.Look(), begin + 20 * kHour, 1);
  clock_.Jump(7 * kDay);
  clock_.Pass(20 * kHour);
  EXPECT_NEAR(patient.Look(), begin + 40 * kHour, 1) << "it doubts anew";
}

TEST_F(PatientClockTest, ARestartIsNoWayAround) {
  double begin;
  {
    PatientClock patient(clock_, path_);
    begin = patient.Look();
  }
  clock_.Jump(7 * kDay);
  for (int i = 1; i <= 3; ++i) {
    PatientClock patient(clock_, path_);
    patient.Look();
    clock_.Pass(7 * kHour);
    EXPECT_NEAR(patient.Look(), begin + i * 7 * kHour, 1);
  }
  PatientClock patient(clock_, path_);
  clock_.Pass(7 * kHour);
  EXPECT_DOUBLE_EQ(patient.Look(), clock_.UnixSeconds());
}

TEST_F(PatientClockTest, AFileThatMakesNoSenseIsTheWallClock) {
  ASSERT_TRUE(WriteFileAtomic(path_, "nonsense", 0600).ok());
  PatientClock patient(clock_, path_);
  EXPECT_DOUBLE_EQ(patient.Look(), clock_.UnixSeconds());
}

}  // namespace
}  // namespace lydian
