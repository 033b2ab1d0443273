// What needs no network: parsing, matching, digests, and a container that is faked.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "base/fd.h"
#include "base/ids.h"
#include "build/apt_sources.h"
#include "build/ask_once.h"
#include "build/bases.h"
#include "build/container.h"
#include "build/context_match.h"
#include "build/host_process.h"
#include "build/host_settings.h"
#include "build/log_text.h"
#include "build/recipe.h"
#include "build/runtime_layers.h"
#include "build/single_flight.h"
#include "build/step_runner.h"
#include "build/testing.h"
#include "build/time_limit.h"
#include "image/layer_store.h"
#include "image/testing.h"
#include "os/loop.h"

namespace lydian::build {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LogText, KeepsCharactersThatAreSplitAndReplacesWhatIsNone) {
  Utf8Stream stream;
  EXPECT_EQ(stream.Feed("a\xC3"), "a");
  EXPECT_EQ(stream.Feed("\xA4"
                        "b\xFF"),
            "\xC3\xA4"
            "b\xEF\xBF\xBD");
  EXPECT_EQ(stream.Feed("\xE2\x82"), "");
  EXPECT_EQ(stream.Flush(), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ToUtf8("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(LogText, TailIsWholeLines) {
  Tail tail(10);
  tail.Add("first line\nsecond\n");
  EXPECT_EQ(tail.text(), "second\n");
}

// What is kept between two additions is cut too: an error's message must stay text.
TEST(LogText, ATailNeverBeginsInsideACharacter) {
  for (size_t limit : {4, 5, 6, 7}) {
    Tail tail(limit);
    for (int i = 0; i < 9; ++i) {
      tail.Add("\u20ac");
      EXPECT_EQ(ToUtf8(tail.text()), tail.text()) << limit << " after " << i;
      EXPECT_EQ(tail.text().find("\ufffd"), std::string::npos) << limit << " after " << i;
    }
  }
}

TEST(SingleFlight, WorksOnceForAllAndPassesOnACancelledWork) {
  SingleFlight<int> flights;
  std::atomic<int> calls = 0;
  std::promise<void> go;
  auto gate = go.get_future().share();
  auto work = [&]() -> Result<int> {
    gate.wait();
    return ++calls;
  };
  auto one = std::async(std::launch::async, [&] { return flights.Do("k", nullptr, work); });
  auto two = std::async(std::launch::async, [&] { return flights.Do("k", nullptr, work); });
  go.set_value();
  // The second may come after the first is done; then it works too.
  EXPECT_GE(*one.get(), 1);
  EXPECT_LE(*two.get(), 2);
  EXPECT_EQ(flights.Do("k", nullptr, [&]() -> Result<int> { return NotFound("x"); }).status().code(),
            Code::kNotFound);
  CancelToken cancel;
  cancel.Cancel();
  EXPECT_EQ(flights.Do("k", &cancel, work).status().code(), Code::kCancelled);
}

TEST(AskOnce, WorksOnceAndThoseWhoWaitHoldNoThread) {
  AskOnce<int> asks("asks", 2, Millis(60'000));
  std::promise<void> go;
  std::atomic<int> works = 0;
  std::vector<std::future<Result<int>>> answers;
  auto ask = [&](const std::string& key, std::function<Result<int>()> work) {
    auto answer = std::make_shared<std::promise<Result<int>>>();
    answers.push_back(answer->get_future());
    asks.Ask(key, std::move(work), [answer](Result<int> result) { answer->set_value(std::move(result)); });
  };
  for (int i = 0; i < 5; ++i) {
    ask("slow", [&]() -> Result<int> {
      ++works;
      go.get_future().wait();
      return 7;
    });
  }
  ask("quick", [] { return Result<int>(8); });
  EXPECT_EQ(*answers.back().get(), 8);
  answers.pop_back();
  go.set_value();
  for (auto& answer : answers) EXPECT_EQ(*answer.get(), 7);
  EXPECT_EQ(works, 1);
}

TEST(AskOnce, KeepsFailuresForAWhileUnlessTheyPass) {
  FakeClock clock;
  AskOnce<int> asks("asks", 1, Millis(60'000), &clock);
  int works = 0;
  auto ask = [&](Status status) {
    std::promise<Result<int>> answer;
    asks.Ask(
        "key",
        [&]() -> Result<int> {
          ++works;
          return status;
        },
        [&](Result<int> result) { answer.set_value(std::move(result)); });
    return answer.get_future().get().status().code();
  };
  EXPECT_EQ(ask(Unavailable("the spawner is not connected")), Code::kUnavailable);
  EXPECT_EQ(ask(NotFound("no wheel")), Code::kNotFound);
  EXPECT_EQ(ask(Unavailable("not asked")), Code::kNotFound);
  EXPECT_EQ(works, 2);
  clock.Advance(Millis(60'000));
  EXPECT_EQ(ask(Unavailable("asked")), Code::kUnavailable);
  EXPECT_EQ(works, 3);
}

TEST(OwnWork, EndsWithItsTimeOrWithTheBuilder) {
  Strand clock("clock");
  CancelToken stop;
  std::promise<void> late;
  OwnWork slow(&clock, 0, &stop, "making the layer");
  auto told = slow.token()->OnCancel([&] { late.set_value(); });
  late.get_future().wait();
  EXPECT_EQ(slow.token()->Check().code(), Code::kDeadlineExceeded);
  EXPECT_THAT(slow.token()->Check().message(), HasSubstr("making the layer took longer than 0 s"));
  OwnWork work(&clock, 3600, &stop, "making the layer");
  EXPECT_FALSE(work.token()->cancelled());
  stop.Cancel();
  EXPECT_EQ(work.token()->Check().code(), Code::kCancelled);
}

TEST(RuntimeLayers, AreForPythonsThatTheClientRunsIn) {
  auto want = [](const std::string& python) {
    ImageSpec image;
    image.set_image_id("im-1");
    image.set_builder_version("2025.06");
    image.set_python_version(python);
    return RuntimeLayers::Want(image, "1.6.4", true);
  };
  for (const char* python : {"3.10.22", "3.14.2", "3.15.0", "3.13t"})
    EXPECT_TRUE(want(python).ok()) << python;
  for (const char* python : {"3.9.22", "3.16.0", "3.20", "3.99.1"}) {
    EXPECT_EQ(want(python).status().code(), Code::kFailedPrecondition);
    EXPECT_THAT(want(python).status().message(), HasSubstr("3.10 to 3.15 have one")) << python;
  }
  EXPECT_THAT(want("").status().message(), HasSubstr("has no Python"));
  EXPECT_EQ(want("3.13.3")->Key(), "3.13 1.6.4 2025.06");
}

TEST(Recipe, ParsesAndRefuses) {
  std::string good =
      R"({"format": 1, "name": "x:1", "also": ["x:1.<n>"], "root": {"suite": "s", "packages": ["a"]}, "cmd": ["c"]})";
  auto recipe = ParseRecipe(good, "x.json");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_TRUE(recipe->Serves("x:1") && recipe->Serves("x:1.22"));
  EXPECT_FALSE(recipe->Serves("x:1.") || recipe->Serves("x:1.2.3") || recipe->Serves("x:2"));
  auto error = [](const std::string& text) { return ParseRecipe(text, "x.json").status().message(); };
  EXPECT_THAT(error("["), HasSubstr("x.json"));
  EXPECT_THAT(error(R"({"format": 2})"), HasSubstr("format"));
  EXPECT_THAT(error(R"({"format": 1, "name": "x", "root": {"packages": []}})"),
              HasSubstr("suite is missing"));
  EXPECT_THAT(error(R"({"format": 1, "name": "x", "nmae": 1, "root": {"suite": "s", "packages": []}})"),
              HasSubstr("unknown field nmae"));
}

TEST(Recipe, ThoseOfTheProjectParseAndOfferBothPythons) {
  auto recipes = LoadRecipes(LYDIAN_RECIPES_DIR);
  ASSERT_TRUE(recipes.ok()) << recipes.status();
  std::set<std::string> roots;
  int served = 0;
  for (const auto& recipe : *recipes) {
    roots.insert(recipe.RootDigest());
    for (const char* name : {"python:3.11.12-slim-bookworm", "python:3.13.3-slim-bookworm",
                             "python:3.13-slim", "debian:bookworm-slim"})
      served += recipe.Serves(name);
  }
  EXPECT_EQ(served, 4);
  EXPECT_EQ(roots.size(), 1u);  // one root is made, all stand on it
}

TEST(Names, ImagesAndTarballs) {
  EXPECT_EQ(NormalizeImageName("docker.io/library/python"), "python:latest");
  EXPECT_EQ(NormalizeImageName("library/python:3"), "python:3");
  EXPECT_EQ(NormalizeImageName("host:5000/a/b"), "host:5000/a/b:latest");
  EXPECT_EQ(TarballVersion("python3.11_3.11.2.orig.tar.gz"), "3.11.2");
  EXPECT_EQ(TarballVersion("x_1.2+dfsg.orig.tar.xz"), "1.2");
  EXPECT_EQ(TarballVersion("x.tar"), "");
  EXPECT_EQ(PythonSeries("3.11.2"), "3.11");
  EXPECT_EQ(PythonSeries("3.13t"), "3.13");
  EXPECT_EQ(PythonSeries("python"), "");
  EXPECT_EQ(PythonSeries("3.145"), "");
  EXPECT_TRUE(PlainVersion("1.6.4.dev2+abc"));
  EXPECT_FALSE(PlainVersion("1; rm") || PlainVersion("-e x") || PlainVersion(""));
}

TEST(Apt, FindsTheMirrorInBothForms) {
  auto entries = ParseAptParagraphs(
      "Types: deb deb-src\n# note\nURIs: http://m/debian\nSuites: bookworm\n bookworm-updates\nComponents: "
      "main\n\n"
      "Types: deb\nURIs: http://m/security\nSuites: bookworm-security\nComponents: main\n\n"
      "Enabled: no\nTypes: deb\nURIs: http://off\nSuites: bookworm\n");
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_THAT(entries[0].suites, ElementsAre("bookworm", "bookworm-updates"));
  auto mirror = FindMirror(entries);
  ASSERT_TRUE(mirror.ok());
  EXPECT_EQ(mirror->main, "http://m/debian");
  EXPECT_EQ(mirror->security, "http://m/security");
  auto lines = ParseAptList(
      "deb [arch=amd64 signed-by=/k] https://other nodistro main\n# deb x\ndeb http://n/debian trixie main "
      "contrib # y\n");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(FindMirror(lines)->main, "http://n/debian");
  EXPECT_EQ(FindMirror({}).status().code(), Code::kNotFound);
}

TEST(HostSettings, LendsWhatIsThereUnderNamesOfItsOwn) {
  std::map<std::string, std::string> env = {{"PIP_INDEX_URL", "http://i"},
                                            {"PIP_FIND_LINKS", "/w http://l /none"},
                                            {"SECRET", "s"},
                                            {"https_proxy", "http://p"}};
  auto settings = FindHostSettings(
      Lending::kAll, [&](const std::string& key) { return env.contains(key) ? env[key] : ""; },
      [](const std::string& path) {
        return path == "/etc/ssl/cert.pem" || path == "/w" || path == "/etc/pip.conf";
      });
  EXPECT_EQ(settings.mounts.size(), 3u);
  for (const auto& mount : settings.mounts)
    EXPECT_TRUE(mount.read_only() && mount.target().starts_with(kBorrowedDir));
  EXPECT_EQ(settings.env["SSL_CERT_FILE"], std::string(kBorrowedDir) + "/ca.crt");
  EXPECT_EQ(settings.env["PIP_FIND_LINKS"], std::string(kBorrowedDir) + "/find-links-0 http://l");
  EXPECT_EQ(settings.env["UV_DEFAULT_INDEX"], "http://i");
  EXPECT_EQ(settings.env["https_proxy"], "http://p");
  EXPECT_FALSE(settings.env.contains("SECRET"));
}

class ContextTest : public ::testing::Test {
 protected:
  ContextTest() {
    for (const char* path : {"/a.py", "/src/b.py", "/src/c.txt", "/src/deep/d.py"}) Add(path);
  }
  std::vector<std::string> Match(const std::vector<std::string>& sources) {
    BuildContext context(files_);
    auto matches = context.Match(sources, nullptr, limits_);
    if (!matches.ok()) return {matches.status().message()};
    std::vector<std::string> out;
    for (const auto& match : *matches)
      out.push_back(match.in_folder ? "dir:" + std::string(match.relative) : std::string(match.source));
    digest_ = ContextDigest(*matches);
    return out;
  }
  void Add(const std::string& path) {
    ContextFile file;
    file.set_path(path);
    file.set_sha256(Sha256Hex(path));
    file.set_mode(0644);
    files_.push_back(file);
  }
  std::vector<ContextFile> files_;
  MatchLimits limits_;
  std::string digest_;
};

TEST_F(ContextTest, Matches) {
  EXPECT_THAT(Match({"."}), ElementsAre("dir:a.py", "dir:src/b.py", "dir:src/c.txt", "dir:src/deep/d.py"));
  EXPECT_THAT(Match({"src"}), ElementsAre("dir:b.py", "dir:c.txt", "dir:deep/d.py"));
  EXPECT_THAT(Match({"src/*.py", "/a.py"}), ElementsAre("/src/b.py", "/a.py"));
  EXPECT_THAT(Match({"sr?"}), ElementsAre("dir:b.py", "dir:c.txt", "dir:deep/d.py"));
  EXPECT_THAT(Match({"../../a.py"}), ElementsAre("/a.py"));
  EXPECT_THAT(Match({"none"}), ElementsAre(HasSubstr("not in the build context")));
}

TEST_F(ContextTest, NamesThatBeginAlikeAreApart) {
  for (const char* path : {"src-x/e.py", "src.txt", "src", "srcs/f.py"}) Add(path);
  EXPECT_THAT(Match({"src"}), ElementsAre("dir:b.py", "dir:c.txt", "dir:deep/d.py", "/src"));
  EXPECT_THAT(Match({"*/*.py"}), ElementsAre("/src-x/e.py", "/src/b.py", "/srcs/f.py"));
  EXPECT_THAT(Match({"src*"}), ElementsAre("dir:b.py", "dir:c.txt", "dir:deep/d.py", "/src", "dir:e.py",
                                           "/src.txt", "dir:f.py"));
  EXPECT_THAT(Match({"*/*/*"}), ElementsAre("/src/deep/d.py"));
  EXPECT_THAT(Match({"*/*/*/*"}), ElementsAre(HasSubstr("not in the build context")));
}

// Steps of before are found in the cache by it.
TEST_F(ContextTest, TheDigestOfAListStays) {
  Match({".", "src/*.py"});
  EXPECT_EQ(digest_, "a0f8a39f5d32793d62ebc5b2b805811d657d5c8b6b6665fd7a3eacd862f1d9c4");
}

// With every match looked for among all files, this would not end in a test's time.
TEST_F(ContextTest, AWildcardTakesTensOfThousands) {
  files_.clear();
  for (int i = 0; i < 50'000; ++i) Add("/data/" + std::to_string(i));
  EXPECT_EQ(Match({"data/*"}).size(), 50'000u);
}

TEST_F(ContextTest, SourcesAndMatchesAreBounded) {
  limits_ = {.sources = 3, .matches = 7};
  EXPECT_EQ(Match({"src", "src", "a.py"}).size(), 7u);
  EXPECT_THAT(Match({".", "."}), ElementsAre(HasSubstr("more than 7 files of the build context")));
  EXPECT_THAT(Match({"src/*", "src*", "*"}), ElementsAre(HasSubstr("more than 7 files")));
  EXPECT_THAT(Match({"a.py", "a.py", "a.py", "a.py"}), ElementsAre(HasSubstr("it has 4 sources; 3 is")));
}

TEST_F(ContextTest, MatchingEndsWhenTheBuildIsCancelled) {
  CancelToken cancel;
  cancel.Cancel();
  BuildContext context(files_);
  EXPECT_EQ(context.Match({"."}, &cancel).status().code(), Code::kCancelled);
}

TEST_F(ContextTest, TheDigestDependsOnContentAndModeOfWhatIsMatchedOnly) {
  Match({"src"});
  std::string before = digest_;
  files_[0].set_mode(0755);
  Match({"src"});
  EXPECT_EQ(digest_, before);
  files_[1].set_mode(0755);
  Match({"src"});
  EXPECT_NE(digest_, before);
}

TEST(HostProcess, FailsWithCodeAndOutput) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root for a pid namespace";
  std::string seen;
  LogSink log = [&](int, const std::string& text) { seen += text; };
  EXPECT_TRUE(RunHostCommand({.argv = {"sh", "-c", "echo $X"}, .env = {"X=yes"}}, log, nullptr).ok());
  EXPECT_EQ(seen, "yes\n");
  Status failed = RunHostCommand({.argv = {"sh", "-c", "echo bad; exit 3"}}, nullptr, nullptr);
  EXPECT_THAT(failed.message(), HasSubstr("exit code 3\nbad"));
  CancelToken cancel;
  std::thread later([&] { cancel.Cancel(); });
  EXPECT_EQ(RunHostCommand({.argv = {"sleep", "1000"}}, nullptr, &cancel).code(), Code::kCancelled);
  later.join();
}

TEST(ContainerRunner, GivesOutputAndExit) {
  auto spawner = std::make_shared<FakeSpawner>();
  ContainerRunner runner([&] { return spawner; });
  spawner->on_exit = [&](const std::string& id, int status) { runner.OnExit(id, status, false); };
  // The exit may be told before the reply to Create.
  spawner->on_create = [&] {
    EXPECT_TRUE(WriteAll(spawner->out_.get(), "out\n").ok());
    EXPECT_TRUE(WriteAll(spawner->err_.get(), "err\n").ok());
    spawner->End(3 << 8);
  };
  std::string seen[4];
  auto result = runner.Run(
      Job(), [&](int fd, const std::string& text) { seen[fd] += text; }, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(seen[1], "out\n");
  EXPECT_EQ(seen[2], "err\n");
  EXPECT_EQ(result->How(), "exit code 3");
  EXPECT_EQ(spawner->removed, 1);
}

// What is written after the layer was taken would be missing in it.
TEST(ContainerRunner, KeepsNothingOfAContainerThatHasNotEnded) {
  auto spawner = std::make_shared<FakeSpawner>();
  ContainerRunner runner([&] { return spawner; });
  int status = 0;
  spawner->on_exit = [&](const std::string& id, int exit) { runner.OnExit(id, exit, false); };
  spawner->on_create = [&] { spawner->End(status); };
  spawner->remove_status = DeadlineExceeded("a process is left");
  Job none, handed, own, mounted;
  handed.mutable_rootfs()->set_hand_over(true);
  own.mutable_rootfs()->set_writable_dir("/somewhere");
  mounted.add_mounts()->set_writable_dir("/somewhere");
  EXPECT_TRUE(runner.Run(none, nullptr, nullptr).ok());
  for (const Job& job : {handed, own, mounted})
    EXPECT_EQ(runner.Run(job, nullptr, nullptr).status().code(), Code::kUnavailable);
  spawner->remove_status = NotFound("gone");
  EXPECT_TRUE(runner.Run(handed, nullptr, nullptr).ok());
  // Nothing of a step that failed is kept.
  spawner->remove_status = DeadlineExceeded("a process is left");
  status = 1 << 8;
  auto failed = runner.Run(handed, nullptr, nullptr);
  ASSERT_TRUE(failed.ok()) << failed.status();
  EXPECT_EQ(failed->How(), "exit code 1");
}

// More than a pipe holds, from a tool that takes the next request only after it was said.
TEST(ContainerRunner, ReadsWhatIsSaidDuringTheTalk) {
  auto spawner = std::make_shared<FakeSpawner>();
  ContainerRunner runner([&] { return spawner; });
  spawner->on_exit = [&](const std::string& id, int status) { runner.OnExit(id, status, false); };
  std::string seen;
  auto talk = [&](UniqueFd) {
    EXPECT_TRUE(WriteAll(spawner->err_.get(), std::string(1 << 20, 'x')).ok());
    spawner->End(0);
  };
  auto result = runner.Run(
      Job(), [&](int, const std::string& text) { seen += text; }, nullptr, talk);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(seen.size(), size_t{1} << 20);
}

TEST(ContainerRunner, CancelKills) {
  auto spawner = std::make_shared<FakeSpawner>();
  ContainerRunner runner([&] { return spawner; });
  spawner->on_exit = [&](const std::string& id, int status) { runner.OnExit(id, status, false); };
  CancelToken cancel;
  spawner->on_create = [&] { EXPECT_TRUE(WriteAll(spawner->out_.get(), "x").ok()); };
  auto result = runner.Run(
      Job(), [&](int, const std::string&) { cancel.Cancel(); }, &cancel);
  EXPECT_EQ(result.status().code(), Code::kCancelled);
  EXPECT_EQ(spawner->removed, 1);
}

// A tenant's step in a file system of its own, as the runtime hands it over.
class StepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root for a loop device";
    dir_ = ::testing::TempDir() + "step-" + RandomHex(6);
    ASSERT_TRUE(MakeDirs(dir_).ok());
    auto layers = image::LayerStore::OpenFolders(dir_ + "/layers");
    ASSERT_TRUE(layers.ok()) << layers.status();
    layers_ = std::move(*layers);
    ASSERT_TRUE(os::MakeImage(dir_ + "/disk", uint64_t{16} << 20).ok());
    auto disk = os::MountImage(dir_ + "/disk");
    ASSERT_TRUE(disk.ok()) << disk.status();
    disk_ = std::move(disk->second);
    ASSERT_EQ(::mkdirat(disk_.get(), "upper", 0755), 0);
    ASSERT_EQ(::mkdirat(disk_.get(), "upper/kept", 0755), 0);
    spawner_->writable.reset(::openat(disk->first.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    spawner_->on_exit = [this](const std::string& id, int status) { runner_.OnExit(id, status, false); };
    auto transaction = layers_->Begin();
    ASSERT_TRUE(transaction.ok());
    transaction_ = std::move(*transaction);
  }
  void TearDown() override {
    transaction_.reset();
    disk_.reset();
    if (dir_.empty()) return;
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  Result<RunResult> Run() {
    StepRunner steps({.scratch_dir = dir_}, layers_.get(), &runner_, nullptr);
    return steps.Run({.transaction = transaction_.get(), .argv = {"true"}}, nullptr, &cancel_);
  }
  bool Abandoned() { return ::mkdirat(disk_.get(), "later", 0755) != 0 && errno == EIO; }

  std::string dir_;
  std::unique_ptr<image::LayerStore> layers_;
  std::unique_ptr<image::LayerTransaction> transaction_;
  std::shared_ptr<FakeSpawner> spawner_ = std::make_shared<FakeSpawner>();
  ContainerRunner runner_{[this] { return spawner_; }};
  CancelToken cancel_;
  UniqueFd disk_;
};

TEST_F(StepTest, WhatAStepWroteIsCopiedAndItsFileSystemGivenUp) {
  spawner_->on_create = [&] { spawner_->End(0); };
  auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(Exists(transaction_->dir() + "/upper/kept"));
  EXPECT_TRUE(Abandoned());
}

TEST_F(StepTest, ACancelledStepWritesNothingBack) {
  spawner_->on_create = [&] {
    spawner_->End(0);
    cancel_.Cancel();
  };
  EXPECT_EQ(Run().status().code(), Code::kCancelled);
  EXPECT_FALSE(Exists(transaction_->dir() + "/upper/kept"));
  EXPECT_TRUE(Abandoned());
}

// The container has ended; what it wrote is not copied to the end.
TEST_F(StepTest, ACancelledStepIsNotCopied) {
  class Late : public image::PassingTransaction {
   public:
    Late(std::unique_ptr<image::LayerTransaction> real, CancelToken* cancel)
        : PassingTransaction(std::move(real)), cancel_(cancel) {}
    Status Take(int writable, const std::function<Status()>& check) override {
      cancel_->Cancel();
      return PassingTransaction::Take(writable, check);
    }

   private:
    CancelToken* cancel_;
  };
  transaction_ = std::make_unique<Late>(std::move(transaction_), &cancel_);
  spawner_->on_create = [&] { spawner_->End(0); };
  EXPECT_EQ(Run().status().code(), Code::kCancelled);
  EXPECT_TRUE(Abandoned());
}

TEST(ContainerRunner, WithoutASpawner) {
  ContainerRunner runner([] { return nullptr; });
  EXPECT_EQ(runner.Run(Job(), nullptr, nullptr).status().code(), Code::kUnavailable);
}

}  // namespace
}  // namespace lydian::build
