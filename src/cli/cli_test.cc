#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>

#include "base/fd.h"
#include "cli/lock_file.h"
#include "cli/profile.h"
#include "cli/state.h"
#include "cli/verbs.h"

namespace lydian::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

const Profile kProfile{"http://127.0.0.1:7070", "ak-1", "as-\"2"};

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/lydian-cli-test-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Folder() { (void)RemoveTree(path); }
  std::string path;
};

TEST(ProfileTest, IsActiveWhenItIsTheOnlyOne) {
  auto edited = WithProfile("", kProfile);
  ASSERT_TRUE(edited.ok());
  EXPECT_TRUE(edited->active);
  EXPECT_THAT(edited->text, HasSubstr("[lydian]\nserver_url = "));
  EXPECT_THAT(edited->text, HasSubstr("disable_api_proxy = true\n"));
  EXPECT_THAT(edited->text, HasSubstr("active = true\n"));
  auto again = WithProfile(edited->text, kProfile);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->text, edited->text);
}

TEST(ProfileTest, LeavesOthersAndCommentsAlone) {
  const std::string text =
      "# mine\n[work] # the company's\ntoken_id = \"ak-w\"\nactive = true\n\n[lydian]\n# kept\ntoken_id = "
      "\"old\"\n"
      "environment = \"dev\"\nactive = true\n\n[z]\na = 1\n";
  auto edited = WithProfile(text, kProfile);
  ASSERT_TRUE(edited.ok());
  EXPECT_FALSE(edited->active);
  EXPECT_THAT(edited->text, HasSubstr("# mine\n[work] # the company's\ntoken_id = \"ak-w\"\nactive = "
                                      "true\n\n[lydian]\n# kept\ntoken_id = "));
  EXPECT_THAT(edited->text, HasSubstr("environment = \"dev\"\n"));
  EXPECT_THAT(edited->text, HasSubstr("\n\n[z]\na = 1\n"));
  EXPECT_THAT(edited->text, Not(HasSubstr("old")));
  EXPECT_EQ(edited->text.find("active"), edited->text.rfind("active"));
}

TEST(ProfileTest, AnImpliedDefaultStaysInUse) {
  auto edited = WithProfile("[default]\ntoken_id = \"ak-d\"\n", kProfile);
  ASSERT_TRUE(edited.ok());
  EXPECT_FALSE(edited->active);
  EXPECT_THAT(edited->text, HasSubstr("[default]\ntoken_id = \"ak-d\"\nactive = true\n"));
}

TEST(ProfileTest, BecomesActiveBesideProfilesThatNobodyUses) {
  auto edited = WithProfile("[other]\ntoken_id = \"x\"\n", kProfile);
  ASSERT_TRUE(edited.ok());
  EXPECT_TRUE(edited->active);
}

TEST(ProfileTest, FormsThatLinesDoNotShow) {
  auto edited =
      WithProfile("lydian = {token_id = \"old\", environment = \"dev\"}\nother.token_id = \"x\"\n", kProfile);
  ASSERT_TRUE(edited.ok());
  EXPECT_THAT(edited->text, HasSubstr("dev"));
  EXPECT_THAT(edited->text, Not(HasSubstr("old")));
  auto again = WithProfile(edited->text, kProfile);
  EXPECT_TRUE(again.ok()) << again.status();
  // A header inside a long string is none.
  edited = WithProfile("[a]\nnote = \"\"\"\n[lydian]\ntoken_id = 1\n\"\"\"\n", kProfile);
  ASSERT_TRUE(edited.ok());
  EXPECT_THAT(edited->text, HasSubstr("token_id = 1"));
}

TEST(ProfileTest, WhatIsNoTomlIsLeftAlone) {
  Folder folder;
  std::string path = folder.path + "/modal.toml";
  ASSERT_TRUE(WriteFileAtomic(path, "[a]\nb = = 1\n").ok());
  auto written = WriteProfile(path, kProfile);
  EXPECT_EQ(written.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(written.status().message(), HasSubstr("line 2"));
  EXPECT_EQ(ReadFile(path).value_or(""), "[a]\nb = = 1\n");
}

TEST(ProfileTest, TheFileIsForItsOwnerAlone) {
  Folder folder;
  std::string path = folder.path + "/modal.toml", link = folder.path + "/link";
  ASSERT_TRUE(WriteFileAtomic(path, "", 0644).ok());
  ASSERT_EQ(::symlink(path.c_str(), link.c_str()), 0);
  auto written = WriteProfile(link, kProfile);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_TRUE(*written);
  struct stat info {};
  ASSERT_EQ(::lstat(link.c_str(), &info), 0);
  EXPECT_TRUE(S_ISLNK(info.st_mode));
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST(FdsTest, ParsesWhatItFormats) {
  auto fds = ParseFds("api=5,link=16");
  ASSERT_TRUE(fds.ok());
  EXPECT_EQ((*fds)["link"], 16);
  EXPECT_EQ(FormatFds(*fds), "api=5,link=16");
  EXPECT_TRUE(ParseFds("")->empty());
  for (const char* bad : {"api", "api=", "api=x", "=3", "api=3,api=4", "api=-1", "a=1,,b=2"})
    EXPECT_FALSE(ParseFds(bad).ok()) << bad;
}

TEST(LockFileTest, OneProcessHoldsItAndItGoesWithIt) {
  Folder folder;
  std::string path = folder.path + "/up.lock";
  EXPECT_FALSE(ReadHolder(path)->has_value());
  int told[2], end[2];
  ASSERT_EQ(::pipe(told), 0);
  ASSERT_EQ(::pipe(end), 0);
  pid_t child = ::fork();
  if (child == 0) {
    ::close(end[1]);
    auto lock = LockFile::Take(path, {.listen = "127.0.0.1:1", .fds = "api=5"});
    if (!lock.ok() || ::write(told[1], "x", 1) != 1) ::_exit(1);
    char byte;
    [[maybe_unused]] ssize_t n = ::read(end[0], &byte, 1);
    ::_exit(0);
  }
  char byte;
  ASSERT_EQ(::read(told[0], &byte, 1), 1);
  auto holder = ReadHolder(path);
  ASSERT_TRUE(holder.ok() && *holder);
  EXPECT_EQ((*holder)->pid, child);
  EXPECT_EQ((*holder)->listen, "127.0.0.1:1");
  EXPECT_EQ((*holder)->fds, "api=5");
  EXPECT_EQ((*holder)->start_time, ProcessStartTime(child));
  std::optional<Holder> other;
  EXPECT_EQ(LockFile::Take(path, {}, &other).status().code(), Code::kFailedPrecondition);
  ASSERT_TRUE(other);
  EXPECT_EQ(other->pid, child);
  ::close(end[1]);
  ::waitpid(child, nullptr, 0);
  EXPECT_FALSE(ReadHolder(path)->has_value());
  EXPECT_TRUE(LockFile::Take(path, {}).ok());
}

// A process that holds the lock of `up` and makes the first token when it is told to.
class Starting {
 public:
  explicit Starting(const StatePaths& paths) {
    EXPECT_EQ(::pipe(ready_), 0);
    EXPECT_EQ(::pipe(go_), 0);
    pid_ = ::fork();
    if (pid_ != 0) return;
    auto lock = LockFile::Take(paths.lock("up"), {.url = "http://127.0.0.1:7070"});
    char byte = lock.ok() ? '+' : '-';
    (void)!::write(ready_[1], &byte, 1);
    (void)!::read(go_[0], &byte, 1);
    (void)MakeDirs(paths.control_dir());
    (void)WriteFileAtomic(paths.first_token(), R"({"token_id": "ak-1", "token_secret": "as-1"})", 0600,
                          false);
    ::pause();
  }
  ~Starting() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    for (int fd : {ready_[0], ready_[1], go_[0], go_[1]}) ::close(fd);
  }
  bool Holds() {
    char byte = 0;
    return ::read(ready_[0], &byte, 1) == 1 && byte == '+';
  }
  void Go() { (void)!::write(go_[1], "x", 1); }
  void Kill() { ::kill(pid_, SIGKILL); }

 private:
  int ready_[2], go_[2];
  pid_t pid_;
};

TEST(LoginTest, WaitsForTheFirstTokenWhileUpIsStarting) {
  Folder folder;
  const StatePaths paths = *FindState(folder.path);
  ::setenv("MODAL_CONFIG_PATH", (folder.path + "/modal.toml").c_str(), 1);
  Starting up(paths);
  ASSERT_TRUE(up.Holds());
  auto login = std::async(std::launch::async, [&] { return Login(folder.path); });
  EXPECT_EQ(login.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  up.Go();
  EXPECT_EQ(login.get(), 0);
  EXPECT_THAT(*ReadFile(folder.path + "/modal.toml"), HasSubstr("ak-1"));
  ::unsetenv("MODAL_CONFIG_PATH");
}

TEST(LoginTest, StopsWaitingWhenUpHasEndedOrIsNotThere) {
  Folder folder;
  const StatePaths paths = *FindState(folder.path);
  EXPECT_NE(Login(folder.path), 0);
  Starting up(paths);
  ASSERT_TRUE(up.Holds());
  auto login = std::async(std::launch::async, [&] { return Login(folder.path); });
  EXPECT_EQ(login.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  up.Kill();
  EXPECT_NE(login.get(), 0);
}

TEST(StateTest, TheInstanceNameFollowsFromTheRealPath) {
  EXPECT_EQ(InstanceName("/var/lib/lydian").size(), 8u);
  EXPECT_EQ(InstanceName("/var/lib/lydian"), InstanceName("/var/lib/lydian"));
  EXPECT_NE(InstanceName("/var/lib/lydian"), InstanceName("/srv/lydian"));
  Folder folder;
  ASSERT_EQ(::symlink(folder.path.c_str(), (folder.path + "/l").c_str()), 0);
  EXPECT_EQ(FindState(folder.path + "/l")->root, FindState(folder.path)->root);
  EXPECT_EQ(FindState(folder.path + "/none").status().code(), Code::kNotFound);
}

}  // namespace
}  // namespace lydian::cli
