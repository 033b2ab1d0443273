// The life of a container: start, output, exit, exec, removal.
#include <sys/wait.h>
#include <unistd.h>

#include "os/process.h"
#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

using ::testing::HasSubstr;

TEST_F(RuntimeTest, RunsAProgramAndReportsItsOutput) {
  Outcome outcome = Run(Shell("echo out; echo err >&2; exit 3"));
  EXPECT_EQ(outcome.out, "out\n");
  EXPECT_EQ(outcome.err, "err\n");
  ASSERT_TRUE(WIFEXITED(outcome.status));
  EXPECT_EQ(WEXITSTATUS(outcome.status), 3);
}

TEST_F(RuntimeTest, TellsASignalFromAnExit) {
  Outcome outcome = Run(Shell("kill -9 $$"));
  ASSERT_TRUE(WIFSIGNALED(outcome.status));
  EXPECT_EQ(WTERMSIG(outcome.status), SIGKILL);
}

TEST_F(RuntimeTest, RunsPython) {
  Outcome outcome = Run(NewJob({"python3", "-c", "print(6 * 7)"}));
  EXPECT_EQ(outcome.out, "42\n") << outcome.err;
}

TEST_F(RuntimeTest, MainIsProcessTwoUnderInit) {
  Outcome outcome = Run(Shell("echo $$; cat /proc/1/comm"));
  EXPECT_EQ(outcome.out, "2\nlydian-init\n") << outcome.err;
}

TEST_F(RuntimeTest, ExecsIntoARunningContainer) {
  auto container = Start(Shell("exec sleep 100"));
  ASSERT_NE(container, nullptr);
  lydian::Process process;
  for (const char* word :
       {"sh", "-c", "hostname; ps 2>/dev/null; cat /proc/2/comm; echo hi > /tmp/x; exit 5"})
    process.add_argv(word);
  process.add_env("PATH=/usr/bin:/bin");
  StepError error;
  auto exec = runtime_->Exec(*container, process, {}, &error);
  ASSERT_TRUE(exec.ok()) << error.step << exec.status();
  Outcome outcome = Finish(&*exec);
  EXPECT_EQ(outcome.out, "box\nsleep\n") << outcome.err;
  EXPECT_EQ(WEXITSTATUS(outcome.status), 5);
  EXPECT_TRUE(runtime_->KillAll(*container).ok());
  EXPECT_TRUE(WIFSIGNALED(Finish(&container->main).status));
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

}  // namespace
}  // namespace lydian::runtime
