#include "base/executor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <stdexcept>

namespace lydian {
namespace {

// What a caller of RPCs does for its own sake: it catches what a handler throws.
template <typename Fn>
void Guarded(Fn fn) {
  try {
    fn();
  } catch (const std::exception&) {
  }
}

void Throw() { throw std::runtime_error("on purpose"); }

TEST(ExecutorDeathTest, AnExceptionOnACallersThreadEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Strand strand("engine");
        Guarded([&] { strand.Run(Throw); });
      },
      "ends this process.*engine.*on purpose");
}

TEST(ExecutorDeathTest, AnExceptionOfADispatchedTaskEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Strand strand("engine");
        strand.Run([&] { Guarded([&] { strand.Dispatch(Throw); }); });
      },
      "ends this process.*engine.*on purpose");
}

TEST(ExecutorDeathTest, APoolSaysWhoseTaskEndedTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Pool pool("engine-io", 1);
        pool.Post(Throw);
        pause();
      },
      "ends this process.*engine-io.*on purpose");
}

}  // namespace
}  // namespace lydian
