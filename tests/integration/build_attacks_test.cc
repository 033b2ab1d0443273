// A tenant's image against whoever builds on it: trees, archives and steps made in order to reach what is not
// theirs. Canaries stand for the host's files: folders and files that only these tests know.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

#include <chrono>

#include "build_fixture.h"

namespace lydian::build {
namespace {

using ::testing::HasSubstr;

constexpr const char* kFrom = "FROM python:3.11-slim-bookworm";

class BuildAttackTest : public BuildTest {
 protected:
  void SetUp() override {
    BuildTest::SetUp();
    canary_ = "/var/tmp/lydian-canary-" + RandomHex(6);
    ASSERT_TRUE(MakeDirs(canary_ + "/lydian-build").ok());
    ASSERT_EQ(::chmod(canary_.c_str(), 0700), 0);
    ASSERT_TRUE(WriteFileAtomic(canary_ + "/secret", "of the host\n", 0600).ok());
    ASSERT_TRUE(WriteFileAtomic(canary_ + "/lydian-build/kept", "x", 0600).ok());
  }

  // Nothing was added, removed, changed or opened up.
  void TearDown() override {
    struct stat st {};
    ASSERT_EQ(::stat(canary_.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0700u);
    EXPECT_EQ(st.st_uid, 0u);
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(canary_))
      names.push_back(entry.path().string().substr(canary_.size()));
    EXPECT_THAT(names, ::testing::UnorderedElementsAre("/secret", "/lydian-build", "/lydian-build/kept"));
    EXPECT_EQ(*ReadFile(canary_ + "/secret"), "of the host\n");
    ASSERT_EQ(::stat((canary_ + "/secret").c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0600u);
    EXPECT_TRUE(RemoveTree(canary_).ok());
  }

  // The way from a folder `depth` levels deep to the host's root and from there to the canary.
  std::string Up(int depth) const {
    std::string up;
    for (int i = 0; i < depth + 8; ++i) up += "../";
    return up + canary_.substr(1);
  }

  // A context file with the bytes of a host file.
  static void AddFile(BuildSpec& spec, const std::string& path, const std::string& host_file) {
    auto bytes = ReadFile(host_file);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    AddContext(spec, path, *bytes);
  }

  static void ExpectNoLeftovers() {
    std::vector<std::string> left;
    for (const auto& entry : std::filesystem::directory_iterator(g_dir + "/layers/tx"))
      left.push_back(entry.path().filename().string());
    EXPECT_THAT(left, ::testing::IsEmpty());
  }

  std::string canary_;
};

TEST_F(BuildAttackTest, CopyThroughLinksOfTheTargetStaysInside) {
  for (const std::string& link : {canary_, Up(1)}) {
    auto built = Build(
        Spec({std::string(kFrom) + " AS src", "RUN mkdir -p /payload/x && echo evil > /payload/x/evil", kFrom,
              "RUN mkdir /dest && ln -s " + link + " /dest/x", "COPY --from=src /payload /dest/"}));
    EXPECT_FALSE(built.result.ok());
    EXPECT_THAT(built.result.error(), HasSubstr("/dest/x is a folder here"));
  }
  // Where the link leads to a folder of the image, that is where the files go.
  auto built =
      Build(Spec({std::string(kFrom) + " AS src", "RUN mkdir -p /payload/x && echo good > /payload/x/file",
                  kFrom, "RUN mkdir -p /dest " + canary_ + " && ln -s " + canary_ + " /dest/x",
                  "COPY --from=src /payload /dest/", "RUN cat " + canary_ + "/file"}));
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_THAT(built.log, HasSubstr("good"));
}

TEST_F(BuildAttackTest, FilesOfTheContextGoThroughNoLink) {
  for (const char* step :
       {"COPY file /dest/x/", "COPY file /dest/x/new", "COPY --chown=5:6 --chmod=777 file /dest/x/",
        "ADD file /dest/x/deeper/", "WORKDIR /dest/x/made"}) {
    auto spec = Spec({kFrom, "RUN mkdir /dest && ln -s " + canary_ + " /dest/x", step});
    AddContext(spec, "/file", "evil");
    auto built = Build(spec);
    // A link that leads nowhere inside: refused, or its target is made inside the image; TearDown looks
    // outside.
    if (!built.result.ok()) {
      EXPECT_THAT(built.result.error(), HasSubstr("link")) << step;
    }
  }
  auto spec = Spec({kFrom, "RUN mkdir /dest && ln -s " + canary_ + "/secret /dest/file", "COPY file /dest/"});
  AddContext(spec, "/file", "mine");
  auto built = Build(spec);
  ASSERT_TRUE(built.result.ok()) << built.result.error();  // the link is replaced
}

TEST_F(BuildAttackTest, SourcesThatAreLinksShowNothingOfTheHost) {
  auto built = Build(
      Spec({std::string(kFrom) + " AS src", "RUN ln -s " + canary_ + "/secret /s && ln -s " + canary_ + " /d",
            kFrom, "COPY --from=src /s /got"}));
  EXPECT_FALSE(built.result.ok());
  built = Build(Spec(
      {std::string(kFrom) + " AS src", "RUN ln -s " + canary_ + " /d", kFrom, "COPY --from=src /d /got/"}));
  EXPECT_FALSE(built.result.ok());
  built = Build(Spec(
      {kFrom, "RUN rm /etc/passwd && ln -s " + canary_ + "/secret /etc/passwd", "USER nobody2", "RUN true"}));
  EXPECT_FALSE(built.result.ok());
  EXPECT_THAT(built.result.error(), HasSubstr("no user nobody2"));
}

TEST_F(BuildAttackTest, FifosAndDevicesAreNeverOpened) {
  const std::string dir = g_dir + "/devices";
  ASSERT_TRUE(MakeDirs(dir).ok());
  ASSERT_EQ(::mknod((dir + "/full").c_str(), S_IFCHR | 0666, makedev(1, 7)), 0);
  ASSERT_EQ(::mknod((dir + "/disk").c_str(), S_IFBLK | 0666, makedev(7, 200)), 0);
  ASSERT_EQ(::mkfifo((dir + "/fifo").c_str(), 0666), 0);
  ASSERT_TRUE(WriteFileAtomic(dir + "/file", "x").ok());
  ASSERT_EQ(std::system(("tar -C " + dir + " -cf " + g_dir + "/devices.tar .").c_str()), 0);
  for (const char* name : {"full", "disk", "fifo"}) {
    auto spec =
        Spec({"FROM scratch AS d", "ADD dev.tar /", kFrom, std::string("COPY --from=d /") + name + " /dump"});
    AddFile(spec, "/dev.tar", g_dir + "/devices.tar");
    auto built = Build(spec);
    EXPECT_FALSE(built.result.ok()) << name;
    EXPECT_THAT(built.result.error(), HasSubstr(std::string("/") + name)) << name;
  }
  // A FIFO that a step made: neither copied nor waited for, and no table of users.
  auto built = Build(
      Spec({std::string(kFrom) + " AS d", "RUN mkfifo /f && mkdir /in && mkfifo /in/f && echo x > /in/file",
            kFrom, "COPY --from=d /in /got", "RUN test -f /got/file && test ! -e /got/f"}));
  EXPECT_TRUE(built.result.ok()) << built.result.error();
  built = Build(Spec({std::string(kFrom) + " AS d", "RUN mkfifo /f", kFrom, "COPY --from=d /f /dump"}));
  EXPECT_THAT(built.result.error(), HasSubstr("/f is not a regular file"));
  built = Build(Spec({kFrom, "RUN rm /etc/passwd && mkfifo /etc/passwd", "USER someone", "RUN true"}));
  EXPECT_THAT(built.result.error(), HasSubstr("no user someone"));
  built = Build(Spec(
      {kFrom, "RUN rm /lib/x86_64-linux-gnu/libc.so.6 && mkfifo /lib/x86_64-linux-gnu/libc.so.6 || true"}));
  EXPECT_EQ(built.result.libc_version(), built.result.ok() ? "" : built.result.libc_version());
}

TEST_F(BuildAttackTest, AStepReachesNoFolderOfTheHostByItsName) {
  // /run is a link to a folder of the host in which lies a folder of the name that steps are lent things
  // under.
  const std::string dir = g_dir + "/linked";
  ASSERT_TRUE(MakeDirs(dir + canary_).ok());  // inside the image it is a folder of the image's own
  for (const auto& [name, to] : std::map<std::string, std::string>{
           {"run", canary_}, {"bin", "usr/bin"}, {"lib", "usr/lib"}, {"lib64", "usr/lib64"}})
    ASSERT_EQ(::symlink(to.c_str(), (dir + "/" + name).c_str()), 0);
  ASSERT_EQ(std::system(("tar -C " + dir + " -cf " + dir + ".tar .").c_str()), 0);
  auto spec = Spec({std::string(kFrom) + " AS full", "FROM scratch", "ADD linked.tar /",
                    "COPY --from=full /usr /usr/",
                    "RUN echo written > /written; rm -rf /run/lydian-build/* || true", "RUN cat /written"});
  AddFile(spec, "/linked.tar", dir + ".tar");
  auto built = Build(spec);
  EXPECT_TRUE(built.result.ok()) << built.result.error();
}

TEST_F(BuildAttackTest, FortyThousandLevelsEndNobody) {
  const std::string dig =
      "python3 -c 'import os; [(os.mkdir(\"d\"), os.chdir(\"d\")) for _ in range(40000)]'";
  auto failed = Build(Spec({kFrom, "RUN cd /srv && " + dig + "; exit 1"}));
  EXPECT_FALSE(failed.result.ok());
  EXPECT_THAT(failed.result.error(), HasSubstr("exit code 1"));
  auto kept = Build(Spec({kFrom, "RUN cd /srv && " + dig}));
  EXPECT_FALSE(kept.result.ok());
  EXPECT_THAT(kept.result.error(), HasSubstr("nested more than 1024 deep"));
  ExpectNoLeftovers();
}

TEST_F(BuildAttackTest, AStepKeepsToItsDiskAndItsTime) {
  auto spec = Spec({kFrom, "RUN head -c 200M /dev/zero > /big || echo code $?; df -k / | tail -n 1"});
  spec.mutable_limits()->set_disk_bytes(uint64_t{64} << 20);
  auto built = Build(spec);
  EXPECT_THAT(built.log, HasSubstr("No space left on device"));
  // A file with a hole takes what it takes on the disk.
  built = Build(Spec({kFrom, "RUN truncate -s 1T /hole && echo end >> /hole"}));
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_LT(world_->layers->Find(built.result.image().layer_ids(2))->bytes, 1u << 20);
}

// Names that no path reaches: one copy all the same, of no more than the disk holds.
TEST_F(BuildAttackTest, FilesWithManyNamesFarBelowAreCopiedOnce) {
  const std::string enter = "import os\nos.chdir('/srv')\nfor _ in range(60):\n  n = 'd' * 250\n";
  const std::string make = enter +
                           "  os.mkdir(n); os.chdir(n)\n"
                           "open('0', 'wb').write(os.urandom(4 << 20))\n"
                           "for i in range(1, 50): os.link('0', str(i))\n"
                           "for i in range(2000):\n"
                           "  open('a%d' % i, 'w').close(); os.link('a%d' % i, 'b%d' % i)\n";
  const std::string look = enter +
                           "  os.chdir(n)\n"
                           "print('names', os.stat('0').st_nlink, os.stat('a1999').st_nlink)\n"
                           "print('same', os.stat('0').st_ino == os.stat('49').st_ino)\n";
  auto spec = Spec({kFrom, "COPY make.py look.py /", "RUN python3 /make.py", "RUN python3 /look.py"});
  AddContext(spec, "/make.py", make);
  AddContext(spec, "/look.py", look);
  spec.mutable_limits()->set_disk_bytes(uint64_t{64} << 20);
  auto built = Build(spec);
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_THAT(built.log, HasSubstr("names 50 2"));
  EXPECT_THAT(built.log, HasSubstr("same True"));
  ExpectNoLeftovers();
}

TEST_F(BuildAttackTest, ArchivesStayInBounds) {
  const std::string dir = g_dir + "/bombs";
  const std::string script = R"py(
import io, sys, tarfile
def add(tar, name, type=tarfile.REGTYPE, link='', size=0):
    info = tarfile.TarInfo(name); info.type, info.linkname, info.size = type, link, size
    tar.addfile(info, io.BytesIO(b'x' * size) if size else None)
with tarfile.open(sys.argv[1] + '/deep.tar', 'w', format=tarfile.PAX_FORMAT) as tar:
    add(tar, 'd/' * 1500 + 'file', size=1)
with tarfile.open(sys.argv[1] + '/links.tar', 'w') as tar:
    add(tar, 'x', tarfile.SYMTYPE, sys.argv[2]); add(tar, 'x/evil', size=4)
with tarfile.open(sys.argv[1] + '/up.tar', 'w') as tar:
    add(tar, '../../../..' + sys.argv[2] + '/evil', size=4)
    add(tar, 'hard', tarfile.LNKTYPE, '../../../..' + sys.argv[2] + '/secret')
with tarfile.open(sys.argv[1] + '/names.tar', 'w', format=tarfile.PAX_FORMAT) as tar:
    add(tar, 'n' * 255, size=1); add(tar, b'\xff\xfe'.decode('utf-8', 'surrogateescape'), size=1)
with tarfile.open(sys.argv[1] + '/copies.tar', 'w') as tar:
    for i in range(100): add(tar, 'l%d' % i, tarfile.LNKTYPE, 'big/%d' % i)
)py";
  ASSERT_TRUE(MakeDirs(dir).ok());
  ASSERT_TRUE(WriteFileAtomic(dir + "/make.py", script).ok());
  ASSERT_EQ(std::system(("python3 " + dir + "/make.py " + dir + " " + canary_).c_str()), 0);
  // More than a gigabyte of nothing in some kilobytes.
  ASSERT_EQ(std::system(("truncate -s 1200M " + dir + "/zeros && tar -C " + dir + " --zstd -cf " + dir +
                         "/zeros.tar zeros")
                            .c_str()),
            0);
  auto add = [&](const char* name) {
    auto spec = Spec({kFrom, "ADD a.tar /into/", "RUN find /into | head -n 5"});
    AddFile(spec, "/a.tar", dir + "/" + name);
    return Build(spec);
  };
  EXPECT_THAT(add("deep.tar").result.error(), HasSubstr("nested more than 1000 deep"));
  EXPECT_THAT(add("zeros.tar").result.error(), HasSubstr("it grows more than 500-fold"));
  // Each name of a file that lies below is a copy of it when it is linked.
  auto copies = Spec({kFrom,
                      "RUN mkdir -p /into/big && head -c 20000000 /dev/urandom > /into/big/0 && for i in "
                      "$(seq 99); do ln /into/big/0 /into/big/$i; done",
                      "ADD a.tar /into/"});
  AddFile(copies, "/a.tar", dir + "/copies.tar");
  EXPECT_THAT(Build(copies).result.error(), HasSubstr("it grows more than 500-fold"));
  (void)add("links.tar");
  (void)add("up.tar");
  auto names = add("names.tar");
  EXPECT_TRUE(names.result.ok()) << names.result.error();
}

TEST_F(BuildAttackTest, SharedLayersComeFromOurOwnImages) {
  // An image that claims a Python that no base here has, and answers whoever runs it with files of its own.
  const std::string fake =
      "RUN printf '#!/bin/sh\\necho Python 3.12.1\\nmkdir -p /pkg/modal/builder /made/wheels\\n"
      "ln -sf " +
      canary_ +
      "/secret /pkg/modal/builder/2025.06.txt\\necho EVIL > /pkg/modal/__init__.py\\n"
      "for w in /run/lydian-build/wheels/*.whl; do echo EVIL > /made/wheels/${w##*/}; done\\n' > "
      "/usr/local/bin/python3 "
      "&& chmod 755 /usr/local/bin/python3 && rm -f /usr/local/bin/python";
  auto built = Build(Spec({kFrom, fake}));
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  ASSERT_EQ(built.result.image().python_version(), "3.12.1");
  std::promise<Result<std::vector<std::string>>> done;
  world_->builder->RuntimeLayers(
      built.result.image(), "1.6.4", true,
      [&](Result<std::vector<std::string>> layers) { done.set_value(std::move(layers)); });
  auto layers = done.get_future().get();
  ASSERT_TRUE(layers.ok()) << layers.status();
  for (const auto& id : *layers) {
    auto tree = world_->layers->Open(id);
    ASSERT_TRUE(tree.ok());
    auto text = tree->Read("/pkg/modal/__init__.py", 1 << 20);
    if (text.ok()) {
      EXPECT_THAT(*text, ::testing::Not(HasSubstr("EVIL")));
    }
  }
  const std::string cache = "/var/cache/lydian/wheels-2";
  std::error_code error;
  for (const auto& wheel : std::filesystem::directory_iterator(cache, error))
    if (wheel.path().extension() == ".whl") {
      EXPECT_GT(std::filesystem::file_size(wheel.path()), 100u) << wheel.path();
    }
}

TEST_F(BuildAttackTest, WhatOneWorkspacesStepsMadeIsNoOthers) {
  const auto of = [&](const std::string& workspace) {
    auto spec = Spec({kFrom, "RUN echo made by && od -An -N8 -tx8 /dev/urandom | tee /made"});
    spec.set_workspace_id(workspace);
    return Build(spec);
  };
  const auto mine = of("ac-mine"), again = of("ac-mine"), others = of("ac-others");
  ASSERT_TRUE(mine.result.ok() && again.result.ok() && others.result.ok()) << others.result.error();
  const auto layers = [](const auto& built) { return built.result.image().layer_ids(); };
  EXPECT_EQ(*layers(mine).rbegin(), *layers(again).rbegin());
  EXPECT_THAT(again.log, HasSubstr("cached"));
  EXPECT_NE(*layers(mine).rbegin(), *layers(others).rbegin());
  EXPECT_THAT(others.log, ::testing::Not(HasSubstr("cached")));
}

TEST_F(BuildAttackTest, WhatAnImagesPythonSaysIsNotKept) {
  const auto peak = [] {
    rusage use{};
    ::getrusage(RUSAGE_SELF, &use);
    return static_cast<uint64_t>(use.ru_maxrss) << 10;
  };
  const uint64_t before = peak();
  auto built = Build(Spec({kFrom,
                           "RUN rm -f /usr/local/bin/python && printf '#!/bin/sh\\nhead -c 400000000 "
                           "/dev/zero\\necho Python 3.11.9\\n' > "
                           "/usr/local/bin/python && chmod 755 /usr/local/bin/python"}));
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_EQ(built.result.image().python_version(), "3.11.9");
  EXPECT_LT(peak(), before + (uint64_t{100} << 20));
}

TEST_F(BuildAttackTest, AStepThatNeverEndsIsEnded) {
  auto builder = Builder::Create({.state_dir = g_dir + "/impatient",
                                  .cache_dir = "",
                                  .client_version = "1.6.4",
                                  .lend_host_settings = true,
                                  .step_seconds = 1},
                                 world_->layers.get(), world_->files.get(), [] { return world_->spawner; });
  ASSERT_TRUE(builder.ok()) << builder.status();
  Builder* before = world_->listening.exchange(builder->get());
  auto spec = Spec({kFrom, "RUN sleep 1000"});
  spec.set_build_id(NewId("bu"));
  spec.set_image_id(NewId("im"));
  std::promise<BuildResult> done;
  (*builder)->Start(spec, [&](BuildUpdate update) {
    if (update.has_result()) done.set_value(update.result());
  });
  BuildResult result = done.get_future().get();
  world_->listening = before;
  EXPECT_FALSE(result.ok() || result.cancelled());
  EXPECT_THAT(result.error(), HasSubstr("took longer than 1 s"));
}

}  // namespace
}  // namespace lydian::build
