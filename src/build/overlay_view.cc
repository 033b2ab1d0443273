#include "build/overlay_view.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

#include "image/stage.h"

namespace lydian::build {
namespace {

int FsConfig(int fd, unsigned command, const char* key, const char* value) {
  return static_cast<int>(::syscall(SYS_fsconfig, fd, command, key, value, 0));
}

// What the kernel says about the last failure in the file system's own words.
std::string MountMessage(int fd) {
  char text[512];
  ssize_t got = ::read(fd, text, sizeof text);
  return got > 2 ? " (" + std::string(text + 2, static_cast<size_t>(got) - 2) + ")" : "";
}

Status Set(int fd, const char* key, const std::string& value) {
  if (FsConfig(fd, FSCONFIG_SET_STRING, key, value.c_str()) == 0) return OkStatus();
  int error = errno;
  return ErrnoStatus("overlay " + std::string(key) + "=" + value + MountMessage(fd), error);
}

// Top first, as overlayfs wants them. Kernels before 6.5 know no list that grows: there, one short string of
// descriptors.
Status SetLowers(int fd, const std::vector<std::string>& lowers, std::vector<UniqueFd>& keep) {
  bool append = true;
  for (auto it = lowers.rbegin(); it != lowers.rend() && append; ++it) {
    if (FsConfig(fd, FSCONFIG_SET_STRING, "lowerdir+", it->c_str()) == 0) continue;
    if (it != lowers.rbegin() || errno != EINVAL || !Exists(*it)) {
      int error = errno;
      return ErrnoStatus("stacking " + *it + MountMessage(fd), error);
    }
    append = false;
  }
  if (append) return OkStatus();
  std::string joined;
  for (auto it = lowers.rbegin(); it != lowers.rend(); ++it) {
    UniqueFd folder(::open(it->c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!folder.valid()) return ErrnoStatus("opening " + *it);
    joined += (joined.empty() ? "" : ":") + std::string("/proc/self/fd/") + std::to_string(folder.get());
    keep.push_back(std::move(folder));
  }
  return Set(fd, "lowerdir", joined);
}

Result<UniqueFd> MountOverlay(const std::vector<std::string>& lowers, const std::string& transaction_dir) {
  UniqueFd fs(static_cast<int>(::syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC)));
  if (!fs.valid()) return ErrnoStatus("overlay: fsopen");
  std::vector<UniqueFd> keep;
  RETURN_IF_ERROR(SetLowers(fs.get(), lowers, keep));
  if (!transaction_dir.empty()) {
    RETURN_IF_ERROR(Set(fs.get(), "upperdir", transaction_dir + "/upper"));
    RETURN_IF_ERROR(Set(fs.get(), "workdir", transaction_dir + "/work"));
  }
  // The form of a layer: no redirects, no files that are metadata only, no index.
  for (const char* option : {"redirect_dir", "metacopy", "index"})
    RETURN_IF_ERROR(Set(fs.get(), option, "off"));
  if (FsConfig(fs.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr) != 0) {
    int error = errno;
    return ErrnoStatus(
        "mounting an overlay of " + std::to_string(lowers.size()) + " layers" + MountMessage(fs.get()),
        error);
  }
  UniqueFd mount(static_cast<int>(
      ::syscall(SYS_fsmount, fs.get(), FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)));
  if (!mount.valid()) return ErrnoStatus("overlay: fsmount");
  return mount;
}

// An empty folder: overlayfs wants at least one lower, and two without an upper.
Result<std::string> EmptyFolder() {
  char path[] = "/tmp/lydian-empty-XXXXXX";
  if (::mkdtemp(path) == nullptr) return ErrnoStatus("making an empty folder");
  ::chmod(path, 0755);
  return std::string(path);
}

}  // namespace

int UsualMode(const std::string& path) {
  if (path == "/tmp" || path == "/var/tmp") return 01777;
  return path == "/root" ? 0700 : 0755;
}

Result<OverlayView> OverlayView::Writable(const std::vector<std::string>& lowers,
                                          const std::string& transaction_dir) {
  if (!lowers.empty()) {
    ASSIGN_OR_RETURN(UniqueFd root, MountOverlay(lowers, transaction_dir));
    return OverlayView(std::move(root));
  }
  // From scratch: the upper is all there is.
  UniqueFd root(::open((transaction_dir + "/upper").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return ErrnoStatus("opening " + transaction_dir);
  return OverlayView(std::move(root));
}

Result<OverlayView> OverlayView::ReadOnly(const std::vector<std::string>& lowers) {
  if (lowers.size() == 1) {
    UniqueFd root(::open(lowers[0].c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!root.valid()) return ErrnoStatus("opening " + lowers[0]);
    return OverlayView(std::move(root));
  }
  if (!lowers.empty()) {
    ASSIGN_OR_RETURN(UniqueFd root, MountOverlay(lowers, ""));
    return OverlayView(std::move(root));
  }
  ASSIGN_OR_RETURN(std::string empty, EmptyFolder());
  UniqueFd root(::open(empty.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  ::rmdir(empty.c_str());
  if (!root.valid()) return ErrnoStatus("opening an empty folder");
  return OverlayView(std::move(root));
}

Result<UniqueFd> OverlayView::Open(const std::string& path, int flags, int mode) const {
  struct open_how how {};
  how.flags = static_cast<unsigned>(flags) | O_CLOEXEC;
  how.mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? static_cast<unsigned>(mode) : 0;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  std::string name = path.empty() ? "/" : path;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, root_.get(), name.c_str(), &how, sizeof how)));
  if (!fd.valid()) return ErrnoStatus(name);
  return fd;
}

Result<struct stat> OverlayView::Stat(const std::string& path) const {
  ASSIGN_OR_RETURN(UniqueFd fd, Open(path, O_PATH));
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus(path);
  return st;
}

Result<std::string> OverlayView::Read(const std::string& path, size_t limit) const {
  ASSIGN_OR_RETURN(UniqueFd fd, Open(path, O_RDONLY));
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return ErrnoStatus(path);
  if (!S_ISREG(st.st_mode)) return InvalidArgument(path + " is not a file");
  return ReadFile("/proc/self/fd/" + std::to_string(fd.get()), limit);
}

Result<UniqueFd> OverlayView::MakeDir(const std::string& wanted, unsigned uid, unsigned gid) const {
  std::string path = image::JoinPath("/", wanted);
  auto found = Open(path, O_PATH | O_DIRECTORY);
  if (found.ok() || found.status().error() != ENOENT) return found;
  size_t slash = path.rfind('/');
  ASSIGN_OR_RETURN(UniqueFd parent, MakeDir(path.substr(0, slash), uid, gid));
  std::string name = path.substr(slash + 1);
  if (::mkdirat(parent.get(), name.c_str(), 0700) != 0) {
    if (errno == EEXIST) return FailedPrecondition(path + " is a link that leads nowhere");
    return ErrnoStatus("making " + path);
  }
  // Its mode whatever the umask.
  if (::fchownat(parent.get(), name.c_str(), uid, gid, AT_SYMLINK_NOFOLLOW) != 0)
    return ErrnoStatus("owner of " + path);
  if (::fchmodat(parent.get(), name.c_str(), static_cast<mode_t>(UsualMode(path)), 0) != 0)
    return ErrnoStatus("mode of " + path);
  return Open(path, O_PATH | O_DIRECTORY);
}

}  // namespace lydian::build
