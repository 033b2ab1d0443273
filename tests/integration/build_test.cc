// The builder as a whole: bases from recipes, Dockerfile steps, the client's runtime.
#include "build_fixture.h"

namespace lydian::build {
namespace {

using ::testing::HasSubstr;

TEST_F(BuildTest, BaseHasPythonWhereUsersExpectIt) {
  ImageSpec base = Base("python:3.11.12-slim-bookworm");
  EXPECT_THAT(base.python_version(), HasSubstr("3.11."));
  std::string top = Path(base.layer_ids(base.layer_ids_size() - 1));
  EXPECT_TRUE(Exists(top + "/usr/local/bin/python"));
  EXPECT_TRUE(Exists(top + "/usr/local/bin/pip"));
  EXPECT_TRUE(Exists(top + "/usr/local/lib/python3.11/site-packages/pip"));
  EXPECT_FALSE(Exists(top + "/usr/local/lib/python3.11/test"));
  EXPECT_TRUE(Exists(top + "/usr/local/lib/python3.11/__pycache__/ast.cpython-311.pyc"));
  auto built = Build(
      Spec({"FROM python:3.11.12-slim-bookworm",
            "RUN python -c 'import sys, sysconfig, ssl, sqlite3; "
            "print(sys.prefix, sysconfig.get_path(\"purelib\"), sys.version.split()[0])' && pip --version"}));
  EXPECT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_THAT(built.log,
              HasSubstr("/usr/local /usr/local/lib/python3.11/site-packages " + base.python_version()));
  EXPECT_THAT(built.log, HasSubstr("served by the base recipe python:3.11-slim-bookworm, Python " +
                                   base.python_version()));
  EXPECT_EQ(built.result.libc_version(), "2.36");
}

TEST_F(BuildTest, StepsMakeLayersOnceAndLeaveNothingBorrowed) {
  auto spec = Spec(
      {"FROM python:3.11-slim-bookworm", "ARG WHO=me", "ENV GREETING='hello \"you\"'", "WORKDIR /srv/app",
       "COPY . /", "RUN echo \"$GREETING $WHO $(pwd)\" > out.txt && env > /env.txt && test -f $SSL_CERT_FILE",
       "RUN true"});
  AddContext(spec, "/etc/app.conf", "setting\n", 0600);
  AddContext(spec, "/bin/tool", "#!/bin/sh\necho tool\n", 0755);
  auto built = Build(spec);
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  const auto& image = built.result.image();
  ASSERT_EQ(image.layer_ids_size(), 2 + 3);  // base, then WORKDIR, COPY, RUN; `true` changes nothing
  std::string copied = Path(image.layer_ids(3)), ran = Path(image.layer_ids(4));
  // /bin is a link in the base: the file goes where it leads, and the link stays.
  EXPECT_TRUE(Exists(copied + "/usr/bin/tool"));
  EXPECT_FALSE(Exists(copied + "/bin"));
  struct stat st;
  ASSERT_EQ(::stat((copied + "/etc/app.conf").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  EXPECT_EQ(*ReadFile(ran + "/srv/app/out.txt"), "hello \"you\" me /srv/app\n");
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(ran))
    names.push_back(entry.path().string().substr(ran.size()));
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("/srv", "/srv/app", "/srv/app/out.txt", "/env.txt"));
  EXPECT_EQ(image.config().workdir(), "/srv/app");
  EXPECT_THAT(image.python_version(), HasSubstr("3.11."));

  int before = Containers();
  spec.set_image_id(NewId("im"));
  auto again = Build(spec);
  EXPECT_TRUE(again.result.ok());
  EXPECT_EQ(Containers(), before);
  EXPECT_THAT(again.log, HasSubstr("cached"));
}

TEST_F(BuildTest, AFailingStepShowsCommandOutputAndCode) {
  auto built =
      Build(Spec({"FROM python:3.11-slim-bookworm", "RUN echo about to fail; echo why >&2; exit 7"}));
  EXPECT_FALSE(built.result.ok());
  EXPECT_THAT(built.result.error(), HasSubstr("RUN echo about to fail"));
  EXPECT_THAT(built.result.error(), HasSubstr("exit code 7"));
  EXPECT_THAT(built.result.error(), HasSubstr("why"));
  EXPECT_THAT(built.log, HasSubstr("=> RUN echo about to fail"));
}

TEST_F(BuildTest, CancelEndsTheContainerAndLeavesNothing) {
  auto spec = Spec({"FROM python:3.11-slim-bookworm", "RUN echo started; sleep 1000"});
  spec.set_build_id("bu-cancelled");
  spec.set_image_id("im-cancelled");
  std::promise<void> started;
  std::promise<BuildResult> done;
  bool seen = false;
  world_->builder->Start(spec, [&](BuildUpdate update) {
    if (update.has_log() && update.log().file_descriptor() == 1 && !seen) seen = true, started.set_value();
    if (update.has_result()) done.set_value(update.result());
  });
  started.get_future().get();
  world_->builder->Cancel("bu-cancelled");
  EXPECT_TRUE(done.get_future().get().cancelled());
  EXPECT_EQ(world_->layers->GetRecord("image/im-cancelled").status().code(), Code::kNotFound);
}

TEST_F(BuildTest, TwoBuildsOfOneImageAreOne) {
  auto spec = Spec({"FROM python:3.11-slim-bookworm", "RUN sleep 1; echo once; date +%N > /stamp"});
  spec.set_image_id("im-shared");
  int before = Containers();
  auto other = std::async(std::launch::async, [&] { return Build(spec); });
  auto one = Build(spec), two = other.get();
  EXPECT_TRUE(one.result.ok() && two.result.ok());
  EXPECT_EQ(one.result.image().layer_ids(2), two.result.image().layer_ids(2));
  EXPECT_EQ(Containers(), before + 2);  // the step, and a look at its C library
}

TEST_F(BuildTest, PipInstallsFromTheHostsIndex) {
  auto built = Build(Spec({"FROM python:3.11-slim-bookworm", "RUN python -m pip install six==1.17.0"}));
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  std::string top = Path(built.result.image().layer_ids(2));
  EXPECT_TRUE(Exists(top + "/usr/local/lib/python3.11/site-packages/six.py"));
  EXPECT_FALSE(Exists(top + "/run"));
}

TEST_F(BuildTest, StagesAndUv) {
  auto built = Build(Spec(
      {"FROM debian:bookworm-slim AS make",
       "RUN mkdir -p /out/d && echo 1 > /out/d/a && ln -s a /out/d/b && chown 5:6 /out/d/a",
       "FROM python:3.11-slim-bookworm", "COPY --from=make /out /in",
       "COPY --from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv",
       "RUN /.uv/uv --version && /.uv/uv pip install --python $(command -v python) --compile-bytecode six"}));
  ASSERT_TRUE(built.result.ok()) << built.result.error() << built.log;
  std::string copied = Path(built.result.image().layer_ids(2));
  struct stat st;
  ASSERT_EQ(::lstat((copied + "/in/d/a").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 5u);
  ASSERT_EQ(::lstat((copied + "/in/d/b").c_str(), &st), 0);
  EXPECT_TRUE(S_ISLNK(st.st_mode));
}

TEST_F(BuildTest, UnknownBaseNamesTheWaysOut) {
  auto built = Build(Spec({"FROM example.com/some/image:1", "RUN true"}));
  EXPECT_FALSE(built.result.ok());
  EXPECT_THAT(built.result.error(), HasSubstr("lydian image import"));
  EXPECT_THAT(built.result.error(), HasSubstr("python:3.11-slim-bookworm"));
}

TEST_F(BuildTest, RuntimeLayersRunTheClient) {
  ImageSpec image = Base("python:3.11-slim-bookworm");
  image.set_builder_version("2025.06");
  std::promise<Result<std::vector<std::string>>> done;
  world_->builder->RuntimeLayers(image, "1.6.4", true,
                                 [&](auto layers) { done.set_value(std::move(layers)); });
  auto layers = done.get_future().get();
  ASSERT_TRUE(layers.ok()) << layers.status();
  ASSERT_EQ(layers->size(), 2u);
  std::string deps = Path((*layers)[0]), client = Path((*layers)[1]);
  EXPECT_TRUE(Exists(deps + "/pkg/sitecustomize.py"));
  EXPECT_TRUE(Exists(deps + "/__modal/deps/aiohttp/__pycache__/client.cpython-311.pyc"));
  EXPECT_TRUE(Exists(client + "/pkg/modal/__pycache__/app.cpython-311.pyc"));
  EXPECT_TRUE(Exists(client + "/pkg/synchronicity"));
  EXPECT_FALSE(Exists(client + "/made"));
  BuildSpec spec =
      Spec({"FROM base", "ENV PYTHONPATH=/root:/pkg",
            "RUN python -c 'import modal, aiohttp; print(modal.__version__, aiohttp.__file__)'"});
  auto& base = (*spec.mutable_bases())["base"];
  for (const auto& id : image.layer_ids()) base.add_layer_ids(id);
  for (const auto& id : *layers) base.add_layer_ids(id);
  *base.mutable_config() = image.config();
  base.set_python_version(image.python_version());
  auto built = Build(spec);
  EXPECT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_THAT(built.log, HasSubstr("1.6.4 /__modal/deps/aiohttp/"));
  std::promise<Status> ensured;
  world_->builder->EnsureClient("1.6.4", [&](Status status) { ensured.set_value(status); });
  EXPECT_TRUE(ensured.get_future().get().ok());
}

TEST_F(BuildTest, TheOtherPythonWorksToo) {
  ImageSpec image = Base("python:3.13.3-slim-bookworm");
  EXPECT_THAT(image.python_version(), HasSubstr("3.13."));
  image.set_builder_version("2025.06");
  std::promise<Result<std::vector<std::string>>> done;
  world_->builder->RuntimeLayers(image, "1.6.4", true,
                                 [&](auto layers) { done.set_value(std::move(layers)); });
  auto layers = done.get_future().get();
  ASSERT_TRUE(layers.ok()) << layers.status();
  EXPECT_TRUE(Exists(Path((*layers)[1]) + "/pkg/modal/__pycache__/app.cpython-313.pyc"));
  auto built =
      Build(Spec({"FROM python:3.13-slim",
                  "RUN python --version && python -c 'import ssl, sqlite3, ctypes' && pip --version"}));
  EXPECT_TRUE(built.result.ok()) << built.result.error();
  std::map<std::string, Builder::Base> bases;
  for (const auto& base : world_->builder->Bases()) bases[base.name] = base;
  EXPECT_TRUE(bases["python:3.13-slim-bookworm"].made);
  EXPECT_EQ(bases["python:3.13-slim-bookworm"].version, image.python_version());
  EXPECT_FALSE(bases["python:3.12-slim-bookworm"].made);
  EXPECT_THAT(bases["python:3.12-slim-bookworm"].note, HasSubstr("lydian image import"));
}

TEST_F(BuildTest, ImportsArchivesSafely) {
  // A plain root file system, made of a layer that is here.
  ImageSpec base = Base("debian:bookworm-slim");
  std::string tar = g_dir + "/root.tar";
  ASSERT_EQ(std::system(("tar -C " + Path(base.layer_ids(0)) + " -cf " + tar + " . 2> /dev/null").c_str()),
            0);
  ASSERT_TRUE(world_->builder->ImportArchive("my/debian:1", tar).ok());
  auto built = Build(Spec({"FROM my/debian:1", "RUN cat /etc/debian_version && id -un"}));
  EXPECT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_THAT(built.log, HasSubstr("root"));
  EXPECT_EQ(built.result.image().python_version(), "");
  // Docker's form with a whiteout, and paths and links that lead out.
  std::string dir = g_dir + "/docker";
  std::string make = "set -e; mkdir -p " + dir + "/one/d " + dir + "/two/d; cd " + dir +
                     "; echo a > one/d/a; echo b > one/d/b; ln -s / one/up; : > two/d/.wh.a; : > two/up2; "
                     "tar -C one -cf one.tar .; tar -C two -P --transform 's,^./up2,../../../../up2,' -cf "
                     "two.tar ./d ./up2; "
                     "echo '[{\"Config\":\"c.json\",\"Layers\":[\"one.tar\",\"two.tar\"]}]' > manifest.json; "
                     "echo '{\"config\":{\"Env\":[\"X=1\"],\"WorkingDir\":\"/d\"}}' > c.json; tar -cf "
                     "../docker.tar manifest.json c.json one.tar two.tar";
  ASSERT_EQ(std::system(make.c_str()), 0);
  Status imported = world_->builder->ImportArchive("two", g_dir + "/docker.tar");
  ASSERT_TRUE(imported.ok()) << imported;
  auto copied = Build(Spec(
      {"FROM debian:bookworm-slim", "COPY --from=two / /got/", "RUN ls /got/d > /list; ls /got >> /list"}));
  ASSERT_TRUE(copied.result.ok()) << copied.result.error();
  EXPECT_EQ(
      *ReadFile(Path(copied.result.image().layer_ids(copied.result.image().layer_ids_size() - 1)) + "/list"),
      "b\nd\nup\nup2\n");
  EXPECT_FALSE(Exists("/up2"));
  ASSERT_TRUE(WriteFileAtomic(tar, "this is no archive").ok());
  EXPECT_FALSE(world_->builder->ImportArchive("bad", tar).ok());
}

TEST_F(BuildTest, AddUnpacksArchivesAndCopyDoesNot) {
  std::string dir = g_dir + "/add";
  ASSERT_EQ(std::system(("mkdir -p " + dir + "/x && echo in > " + dir + "/x/f && tar -C " + dir + " -czf " +
                         dir + ".tgz x")
                            .c_str()),
            0);
  auto spec = Spec({"FROM debian:bookworm-slim", "ADD a.tgz plain.txt /bin/", "COPY a.tgz /kept/"});
  AddContext(spec, "/a.tgz", *ReadFile(dir + ".tgz"));
  AddContext(spec, "/plain.txt", "text");
  auto built = Build(spec);
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  std::string added = Path(built.result.image().layer_ids(1));
  EXPECT_EQ(*ReadFile(added + "/usr/bin/x/f"), "in\n");
  EXPECT_EQ(*ReadFile(added + "/usr/bin/plain.txt"), "text");
  EXPECT_TRUE(Exists(Path(built.result.image().layer_ids(2)) + "/kept/a.tgz"));
}

TEST_F(BuildTest, SecretsReachTheStepAndNoLogOrLayer) {
  auto spec = Spec({"FROM debian:bookworm-slim", "RUN echo ${#TOKEN} > /length"});
  (*spec.mutable_env())["TOKEN"] = "hush-hush";
  auto built = Build(spec);
  ASSERT_TRUE(built.result.ok()) << built.result.error();
  EXPECT_EQ(built.log.find("hush-hush"), std::string::npos);
  EXPECT_EQ(*ReadFile(Path(built.result.image().layer_ids(1)) + "/length"), "9\n");
  EXPECT_THAT(built.result.image().config().DebugString(), ::testing::Not(HasSubstr("hush")));
}

TEST_F(BuildTest, MountLayerKeepsUsualFolderModes) {
  std::vector<ContextFile> files(2);
  files[0].set_path("/root/pkg/mod.py");
  files[0].set_sha256(world_->files->Add("x = 1\n"));
  files[1].set_path("/tmp/../tmp/data");
  files[1].set_sha256(world_->files->Add("y"));
  files[1].set_mode(0755);
  std::promise<Result<std::string>> done;
  world_->builder->MountLayer("mo-1", files, [&](auto layer) { done.set_value(std::move(layer)); });
  auto layer = done.get_future().get();
  ASSERT_TRUE(layer.ok()) << layer.status();
  struct stat st;
  ASSERT_EQ(::stat((Path(*layer) + "/root").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700u);
  ASSERT_EQ(::stat((Path(*layer) + "/tmp").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 01777u);
  EXPECT_EQ(*ReadFile(Path(*layer) + "/root/pkg/mod.py"), "x = 1\n");
}

}  // namespace
}  // namespace lydian::build
