// The root file system: layers, kept writable layers, mounts, hostile images.
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RuntimeLayersTest : public RuntimeTest {
 protected:
  void SetUp() override {
    RuntimeTest::SetUp();
    dir_ = state_dir() + "/layers";
    ASSERT_TRUE(RemoveTree(dir_).ok());
    ASSERT_TRUE(MakeDirs(dir_).ok());
  }
  void TearDown() override {
    RuntimeTest::TearDown();
    if (!dir_.empty()) {
      EXPECT_TRUE(RemoveTree(dir_).ok());
    }
  }
  std::string Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir_ + "/" + path).parent_path());
    std::ofstream(dir_ + "/" + path) << text;
    return dir_ + "/" + path;
  }
  std::string dir_;
};

TEST_F(RuntimeLayersTest, AKeptUpperIsALayerAsItStands) {
  Job build = Shell(
      "set -e; echo one > /opt/file; mkdir /opt/dir; chown 1000:7 /opt/dir; rm /etc/issue; rm -r "
      "/usr/share/doc; "
      "mkdir /usr/share/doc; ln -s file /opt/link; chmod 4755 /opt/file");
  build.mutable_rootfs()->set_writable_dir(dir_ + "/build");
  build.set_api_socket(true);
  Outcome outcome = Run(build);
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const std::string upper = dir_ + "/build/upper";

  // Owner ids from 0; one form of whiteout; an opaque folder.
  struct stat info {};
  ASSERT_EQ(::lstat((upper + "/opt/file").c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 0u);
  EXPECT_EQ(info.st_mode & 07777, 04755u);
  ASSERT_EQ(::lstat((upper + "/opt/dir").c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 1000u);
  EXPECT_EQ(info.st_gid, 7u);
  ASSERT_EQ(::lstat((upper + "/etc/issue").c_str(), &info), 0);
  EXPECT_TRUE(S_ISCHR(info.st_mode) && info.st_rdev == makedev(0, 0));
  char opaque[8] = {};
  ASSERT_GT(::lgetxattr((upper + "/usr/share/doc").c_str(), "trusted.overlay.opaque", opaque, sizeof opaque),
            0);
  EXPECT_EQ(opaque[0], 'y');
  // Nothing that was only there for mounting.
  for (const char* path :
       {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run/modal.sock", "/proc/1", "/dev/null"}) {
    EXPECT_FALSE(Exists(upper + path)) << path;
  }

  // And it is a lower of the next container.
  Job next = Shell(
      "cat /opt/link; stat -c %u:%g /opt/dir; ls /etc/issue 2>&1; ls /usr/share/doc | wc -l; echo two > "
      "/opt/file; cat /opt/file");
  next.mutable_rootfs()->add_lowers(upper);
  outcome = Run(next);
  EXPECT_THAT(outcome.out, HasSubstr("one\n1000:7\n")) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("No such file"));
  EXPECT_TRUE(outcome.out.ends_with("0\ntwo\n")) << outcome.out;
  std::string text = *ReadFile(upper + "/opt/file");
  EXPECT_EQ(text, "one\n");
}

TEST_F(RuntimeLayersTest, LaterLayersWinFileByFile) {
  Write("a/opt/x", "a");
  Write("a/opt/only-a", "a");
  Write("b/opt/x", "b");
  Job job = Shell("cat /opt/x /opt/only-a");
  job.mutable_rootfs()->add_lowers(dir_ + "/a");
  job.mutable_rootfs()->add_lowers(dir_ + "/b");
  EXPECT_EQ(Run(job).out, "ba");
}

TEST_F(RuntimeLayersTest, ManyLayers) {
  Job job = Shell("ls /opt | wc -l");
  for (int i = 0; i < 120; ++i) {
    Write("l" + std::to_string(i) + "/opt/" + std::to_string(i), "x");
    job.mutable_rootfs()->add_lowers(dir_ + "/l" + std::to_string(i));
  }
  EXPECT_EQ(Run(job).out, "120\n");
}

TEST_F(RuntimeLayersTest, BindsFilesAndFolders) {
  std::string file = Write("src/file", "content");
  Write("src/dir/inner", "deep");
  Job job = Shell(
      "cat /a/new/file /srv/d/inner; echo x > /srv/d/inner; stat -c %u /a/new/file /mapped/inner; echo y > "
      "/mapped/inner; "
      "echo t > /scratch/t && cat /scratch/t; df -k /scratch | tail -1 | { read a b c; echo $b; }");
  auto add = [&](Mount::Kind kind, const std::string& source, const std::string& target, bool read_only,
                 bool idmap) {
    auto* mount = job.add_mounts();
    mount->set_kind(kind);
    mount->set_source(source);
    mount->set_target(target);
    mount->set_read_only(read_only);
    mount->set_idmap(idmap);
    if (kind == Mount::TMPFS) mount->set_size_bytes(8 << 20);
  };
  add(Mount::BIND, file, "/a/new/file", true, false);
  add(Mount::BIND, dir_ + "/src/dir", "/srv/d", true, false);
  add(Mount::BIND, dir_ + "/src/dir", "/mapped", false, true);
  add(Mount::TMPFS, "", "/scratch", false, false);
  Outcome outcome = Run(job);
  EXPECT_EQ(outcome.out, "contentdeep65534\n0\nt\n8192\n") << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("Read-only file system"));
  EXPECT_EQ(*ReadFile(dir_ + "/src/dir/inner"), "y\n");
}

TEST_F(RuntimeLayersTest, ReadOnlyRoot) {
  Job job = Shell("touch /x 2>&1; echo ok > /dev/shm/x && cat /dev/shm/x");
  job.mutable_rootfs()->set_read_only(true);
  EXPECT_THAT(Run(job).out, HasSubstr("Read-only file system\nok\n"));
}

TEST_F(RuntimeLayersTest, AHostileImageReachesNothing) {
  // Links out of the root where the runtime puts things.
  Write("victim/keep", "mine");
  std::filesystem::create_directories(dir_ + "/evil/etc");
  std::filesystem::create_symlink(dir_ + "/victim", dir_ + "/evil/srv");
  std::filesystem::create_symlink("../../../../../../.." + dir_ + "/victim/planted",
                                  dir_ + "/evil/etc/resolv.conf");
  Job job = Shell("cat /etc/resolv.conf; mount | grep -c resolv; pwd");
  job.mutable_rootfs()->add_lowers(dir_ + "/evil");
  job.mutable_process()->set_cwd("/srv/inside");
  auto* mount = job.add_mounts();
  mount->set_kind(Mount::TMPFS);
  mount->set_target("/srv/here");
  Outcome outcome = Run(job);
  EXPECT_THAT(outcome.out, HasSubstr("nameserver 169.254.77.53\n")) << outcome.err;
  EXPECT_FALSE(Exists(dir_ + "/victim/planted"));
  EXPECT_FALSE(Exists(dir_ + "/victim/here"));
  EXPECT_FALSE(Exists(dir_ + "/victim/inside"));
}

TEST_F(RuntimeLayersTest, NothingOfTheContainerIsInTheHostsTree) {
  std::string before = *ReadFile("/proc/self/mountinfo");
  auto container = Start(Shell("exec sleep 100"));
  ASSERT_NE(container, nullptr);
  EXPECT_EQ(*ReadFile("/proc/self/mountinfo"), before);
  EXPECT_TRUE(runtime_->Remove(std::move(container)).ok());
}

TEST_F(RuntimeLayersTest, InstallsPackagesLikeAnImageBuild) {
  // No network needed: a package that is built here.
  Job job = Shell(
      "set -e; mkdir -p /tmp/p/DEBIAN /tmp/p/usr/share/tiny; echo hello > /tmp/p/usr/share/tiny/f; "
      "printf 'Package: tiny\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\nDescription: x\\n' > "
      "/tmp/p/DEBIAN/control; "
      "printf '#!/bin/sh\\nchown www-data:www-data /usr/share/tiny/f\\n' > /tmp/p/DEBIAN/postinst; chmod 755 "
      "/tmp/p/DEBIAN/postinst; "
      "dpkg-deb --build /tmp/p /tmp/p.deb >/dev/null; apt-get install -qq -y /tmp/p.deb >/dev/null; "
      "stat -c %U /usr/share/tiny/f; dpkg -s tiny | grep Status");
  job.mutable_rootfs()->set_writable_dir(dir_ + "/apt");
  job.mutable_process()->add_env("DEBIAN_FRONTEND=noninteractive");
  Outcome outcome = Run(job);
  EXPECT_EQ(outcome.out, "www-data\nStatus: install ok installed\n") << outcome.err;
}

}  // namespace
}  // namespace lydian::runtime
