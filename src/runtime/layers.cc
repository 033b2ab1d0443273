#include "runtime/layers.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/log.h"
#include "os/loop.h"
#include "os/mount.h"

namespace lydian::runtime {
namespace {

Status MakeUpperAndWork(int dir) {
  for (const char* name : {"upper", "work"}) {
    if (::mkdirat(dir, name, 0755) != 0 && errno != EEXIST)
      return ErrnoStatus(std::string("creating folder ") + name);
    // mkdir obeys the umask, and upper's mode is that of the container's "/".
    if (::fchmodat(dir, name, 0755, 0) != 0) return ErrnoStatus(std::string("changing folder ") + name);
  }
  return OkStatus();
}

// An overlay whose upper can't be written comes up read-only without a word.
Status CheckWritable(int mount) {
  struct statvfs info {};
  if (::fstatvfs(mount, &info) != 0) return ErrnoStatus("looking at the overlay");
  if ((info.f_flag & ST_RDONLY) != 0) return ErrnoStatus("the overlay came up read-only", EROFS);
  return OkStatus();
}

Result<UniqueFd> OpenDir(int at, const char* name) {
  UniqueFd fd(::openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(std::string("opening folder ") + name);
  return fd;
}

std::string FdPath(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

// One form of each thing on disk: no renames by xattr, no metadata-only copies, no index.
constexpr const char* kOptions[][2] = {
    {"redirect_dir", "off"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "off"}, {"nfs_export", "off"}};

}  // namespace

Result<QuotaDisk> QuotaPool::Take(uint64_t bytes) {
  if (bytes == usual_bytes_ && !pool_.empty()) {
    QuotaDisk disk = std::move(pool_.front());
    pool_.pop_front();
    return disk;
  }
  return Make(bytes);
}

Status QuotaPool::AddToPool() {
  ASSIGN_OR_RETURN(QuotaDisk disk, Make(usual_bytes_));
  pool_.push_back(std::move(disk));
  return OkStatus();
}

Result<QuotaDisk> QuotaPool::Make(uint64_t bytes) {
  const std::string image = dir_ + "/quota-" + std::to_string(++next_) + ".img";
  const std::string sample = dir_ + "/quota-template.img";
  if (bytes == usual_bytes_) {
    // Formatted once; the copies read only what mkfs wrote.
    if (!have_template_) RETURN_IF_ERROR(os::MakeImage(sample, bytes));
    have_template_ = true;
    RETURN_IF_ERROR(os::CopySparse(sample, image));
  } else {
    RETURN_IF_ERROR(os::MakeImage(image, bytes));
  }
  auto mount = os::MountImage(image);
  if (!mount.ok()) {
    ::unlink(image.c_str());
    return mount.status();
  }
  RETURN_IF_ERROR(MakeUpperAndWork(mount->first.get()));
  QuotaDisk disk;
  disk.mount = std::move(mount->first);
  disk.plain.reset(::openat(mount->second.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!disk.plain.valid()) return ErrnoStatus("opening a writable layer");
  return disk;
}

Result<UniqueFd> OpenWritableDir(const std::string& dir) {
  RETURN_IF_ERROR(MakeDirs(dir));
  ASSIGN_OR_RETURN(UniqueFd mount, os::CloneTree(AT_FDCWD, dir));
  RETURN_IF_ERROR(MakeUpperAndWork(mount.get()));
  return mount;
}

Result<UniqueFd> CloneLayer(const std::string& path, int user_ns) {
  ASSIGN_OR_RETURN(UniqueFd layer, os::CloneTree(AT_FDCWD, path));
  struct stat info {};
  if (::fstat(layer.get(), &info) != 0) return ErrnoStatus("looking at layer " + path);
  if (!S_ISDIR(info.st_mode)) return ErrnoStatus("layer " + path, ENOTDIR);
  constexpr uint64_t kQuiet = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  RETURN_IF_ERROR(os::ChangeMount(layer.get(), kQuiet, user_ns).With("layer " + path));
  return layer;
}

const char* OverlayModeName(OverlayMode mode) {
  switch (mode) {
    case OverlayMode::kDescriptors:
      return "layers by descriptor";
    case OverlayMode::kPaths:
      return "layers by path of descriptor";
    case OverlayMode::kAttached:
      return "layers attached in a mount namespace of its own";
  }
  return "";
}

Result<std::unique_ptr<Overlays>> Overlays::Create(const std::string& dir) {
  for (OverlayMode mode : {OverlayMode::kDescriptors, OverlayMode::kPaths, OverlayMode::kAttached}) {
    auto overlays = CreateWith(dir, mode);
    if (overlays.ok() || mode == OverlayMode::kAttached) return overlays;
    LOG_DEBUG("an overlay mode does not work here",
              {{"mode", OverlayModeName(mode)}, {"error", overlays.status()}});
  }
  return Internal("no overlay mode");
}

Result<std::unique_ptr<Overlays>> Overlays::CreateWith(const std::string& dir, OverlayMode mode) {
  std::unique_ptr<Overlays> overlays(new Overlays(dir));
  overlays->mode_ = mode;
  if (mode == OverlayMode::kAttached) {
    // Changes of the host's tree still arrive here, ours do not go there.
    if (::unshare(CLONE_NEWNS) != 0) return ErrnoStatus("making a mount namespace");
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0)
      return ErrnoStatus("separating mounts");
  }
  RETURN_IF_ERROR(overlays->Try());
  return overlays;
}

Status Overlays::Try() {
  const std::string trial = dir_ + "/trial";
  RETURN_IF_ERROR(MakeDirs(trial + "/lower"));
  Status status;
  {
    auto writable = OpenWritableDir(trial);
    status = writable.status();
    if (status.ok()) {
      status = Make({trial + "/lower"}, std::move(*writable), true, -1, 0).status();
    }
  }
  Status removed = RemoveTree(trial);
  return status.ok() ? removed : status;
}

Result<UniqueFd> Overlays::Make(const std::vector<std::string>& paths, UniqueFd writable, bool keep,
                                int user_ns, uint32_t base) {
  if (writable.valid()) {
    constexpr uint64_t kQuiet = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    RETURN_IF_ERROR(os::ChangeMount(writable.get(), kQuiet, user_ns).With("writable layer"));
  }
  std::vector<UniqueFd> lowers;
  for (const auto& path : paths) {
    ASSIGN_OR_RETURN(UniqueFd layer, CloneLayer(path, user_ns));
    lowers.push_back(std::move(layer));
  }
  Result<UniqueFd> overlay = Internal("no overlay");
  if (mode_ == OverlayMode::kAttached) {
    overlay = MakeAttached(lowers, writable.get(), keep, base);
  } else {
    UniqueFd upper, work;
    if (writable.valid()) {
      ASSIGN_OR_RETURN(upper, OpenDir(writable.get(), "upper"));
      ASSIGN_OR_RETURN(work, OpenDir(writable.get(), "work"));
    }
    overlay = MakeByContext(lowers, upper.get(), work.get(), keep, base);
  }
  if (overlay.ok() && writable.valid()) RETURN_IF_ERROR(CheckWritable(overlay->get()));
  return overlay;
}

Result<UniqueFd> Overlays::MakeByContext(const std::vector<UniqueFd>& lowers, int upper, int work, bool keep,
                                         uint32_t base) {
  ASSIGN_OR_RETURN(os::FsContext context, os::FsContext::Open("overlay"));
  auto set = [&](const char* key, int fd) {
    return mode_ == OverlayMode::kDescriptors ? context.SetFd(key, fd) : context.Set(key, FdPath(fd));
  };
  RETURN_IF_ERROR(context.Set("source", "lydian"));
  for (size_t i = lowers.size(); i-- > 0;) RETURN_IF_ERROR(set("lowerdir+", lowers[i].get()));  // top first
  if (upper >= 0) {
    RETURN_IF_ERROR(set("upperdir", upper));
    RETURN_IF_ERROR(set("workdir", work));
  }
  for (const auto& option : kOptions) RETURN_IF_ERROR(context.Set(option[0], option[1]));
  // A layer that is thrown away need never reach the disk.
  if (!keep && upper >= 0) RETURN_IF_ERROR(context.SetFlag("volatile"));
  // What overlayfs makes in work belongs to the mapped root; ids without a mapping would make it read-only.
  os::ScopedFsIds ids(base, base);
  return context.Mount(MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID);
}

Result<UniqueFd> Overlays::MakeAttached(const std::vector<UniqueFd>& lowers, int writable, bool keep,
                                        uint32_t base) {
  // In this process's own mount namespace: attach all below a scratch folder, mount, take the overlay out,
  // detach all.
  const std::string scratch = dir_ + "/scratch";
  RETURN_IF_ERROR(MakeDirs(scratch));
  if (::mount("tmpfs", scratch.c_str(), "tmpfs", 0, "mode=0755") != 0)
    return ErrnoStatus("mounting a scratch folder");
  auto attach = [&]() -> Result<UniqueFd> {
    UniqueFd dir(::open(scratch.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir.valid()) return ErrnoStatus("opening " + scratch);
    std::string options = "lowerdir=";
    for (size_t i = lowers.size(); i-- > 0;) {
      std::string name = std::to_string(i);
      if (::mkdirat(dir.get(), name.c_str(), 0755) != 0) return ErrnoStatus("creating folder " + name);
      RETURN_IF_ERROR(os::MoveMount(lowers[i].get(), dir.get(), name));
      options += name + (i == 0 ? "" : ":");
    }
    if (::mkdirat(dir.get(), "w", 0755) != 0 || ::mkdirat(dir.get(), "o", 0755) != 0)
      return ErrnoStatus("creating folders");
    if (writable >= 0) {
      RETURN_IF_ERROR(os::MoveMount(writable, dir.get(), "w"));
      options += ",upperdir=w/upper,workdir=w/work";
    }
    for (const auto& option : kOptions) options += std::string(",") + option[0] + "=" + option[1];
    if (!keep && writable >= 0) options += ",volatile";
    if (options.size() > 4000) return InvalidArgument("too many layers for this kernel");
    UniqueFd before(::open(".", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (::fchdir(dir.get()) != 0) return ErrnoStatus("entering " + scratch);
    int failed;
    {
      os::ScopedFsIds ids(base, base);
      failed = ::mount("lydian", "o", "overlay", MS_NODEV | MS_NOSUID, options.c_str()) != 0 ? errno : 0;
    }
    if (::fchdir(before.get()) != 0) return ErrnoStatus("leaving " + scratch);
    if (failed != 0) return ErrnoStatus("mounting overlay", failed);
    return os::CloneTree(dir.get(), "o");
  };
  auto overlay = attach();
  if (::umount2(scratch.c_str(), MNT_DETACH) != 0) return ErrnoStatus("detaching " + scratch);
  return overlay;
}

}  // namespace lydian::runtime
