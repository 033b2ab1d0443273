// The ways to make an overlay on older kernels, which newer ones can do as well.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "os/mount.h"
#include "os/namespaces.h"
#include "runtime/layers.h"
#include "runtime_fixture.h"

namespace lydian::runtime {
namespace {

constexpr uint32_t kBase = 0x6fff0000;

// Makes an overlay of three layers in `mode`, writes through it as the mapped root and looks at what is
// stored.
Status TryMode(OverlayMode mode, const std::string& dir, bool keep) {
  RETURN_IF_ERROR(RemoveTree(dir));
  for (const char* layer : {"a", "b", "c"}) {
    RETURN_IF_ERROR(MakeDirs(dir + "/" + layer + "/opt"));
    std::ofstream(dir + "/" + layer + "/opt/who") << layer;
    std::ofstream(dir + "/" + layer + "/opt/" + layer) << layer;
  }
  ASSIGN_OR_RETURN(auto overlays, Overlays::CreateWith(dir, mode));
  ASSIGN_OR_RETURN(auto namespaces, os::MakeUserAndNet(kBase, 65536));
  ASSIGN_OR_RETURN(UniqueFd writable, OpenWritableDir(dir + "/w"));
  ASSIGN_OR_RETURN(UniqueFd overlay, overlays->Make({dir + "/a", dir + "/b", dir + "/c"}, std::move(writable),
                                                    keep, namespaces.user.get(), kBase));
  os::ScopedFsIds ids(kBase, kBase);
  auto at = [&](const std::string& path) { return "/proc/self/fd/" + std::to_string(overlay.get()) + path; };
  ASSIGN_OR_RETURN(std::string who, ReadFile(at("/opt/who")));
  if (who != "c") return Internal("the top layer is not on top: " + who);
  for (const char* path : {"/opt/a", "/opt/b", "/opt/c"}) RETURN_IF_ERROR(ReadFile(at(path)).status());
  std::ofstream(at("/opt/new")) << "new";
  if (::unlink(at("/opt/a").c_str()) != 0) return ErrnoStatus("removing a lower's file");
  struct stat info {};
  if (::stat((dir + "/w/upper/opt/new").c_str(), &info) != 0) return ErrnoStatus("the new file in upper");
  if (info.st_uid != 0 || info.st_size != 3)
    return Internal("stored with owner " + std::to_string(info.st_uid));
  if (::lstat((dir + "/w/upper/opt/a").c_str(), &info) != 0 || !S_ISCHR(info.st_mode))
    return Internal("no whiteout");
  return OkStatus();
}

class RuntimeOverlayTest : public RuntimeTest {
 protected:
  void Try(OverlayMode mode) {
    const std::string dir = state_dir() + "/overlay";
    for (bool keep : {true, false}) {
      // In a child, since one mode moves the process into a mount namespace.
      pid_t pid = ::fork();
      if (pid == 0) {
        Status status = TryMode(mode, dir, keep);
        if (!status.ok()) std::fprintf(stderr, "%s: %s\n", OverlayModeName(mode), status.ToString().c_str());
        ::_exit(status.ok() ? 0 : 1);
      }
      int status = -1;
      ASSERT_EQ(::waitpid(pid, &status, 0), pid);
      EXPECT_EQ(status, 0) << OverlayModeName(mode);
    }
    EXPECT_TRUE(RemoveTree(dir).ok());
  }
};

TEST_F(RuntimeOverlayTest, LayersByDescriptor) { Try(OverlayMode::kDescriptors); }
TEST_F(RuntimeOverlayTest, LayersByPath) { Try(OverlayMode::kPaths); }
TEST_F(RuntimeOverlayTest, LayersAttached) { Try(OverlayMode::kAttached); }

}  // namespace
}  // namespace lydian::runtime
