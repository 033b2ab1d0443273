#include "os/loop.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "os/mount.h"
#include "os/process.h"

namespace lydian::os {

Status MakeImage(const std::string& path, uint64_t bytes) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus("creating " + path);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return ErrnoStatus("sizing " + path);
  fd.reset();
  // No journal: the layer never outlives its container. No reserved blocks: root inside is who fills it.
  // Blocks as the loop device's; small images would get smaller ones.
  auto result = RunProgram({"mkfs.ext4", "-q", "-F", "-O", "^has_journal,^resize_inode", "-b", "4096", "-m",
                            "0", "-E", "nodiscard,lazy_itable_init=1,root_owner=0:0", path});
  if (!result.ok()) return result.status().With("formatting " + path);
  if (result->status == 0) return OkStatus();
  ::unlink(path.c_str());
  return Internal("formatting " + path + ": mkfs.ext4 failed: " + result->output);
}

Status CopySparse(const std::string& from, const std::string& to) {
  UniqueFd in(::open(from.c_str(), O_RDONLY | O_CLOEXEC));
  if (!in.valid()) return ErrnoStatus("opening " + from);
  UniqueFd out(::open(to.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!out.valid()) return ErrnoStatus("creating " + to);
  struct stat info {};
  if (::fstat(in.get(), &info) != 0) return ErrnoStatus("reading " + from);
  if (::ftruncate(out.get(), info.st_size) != 0) return ErrnoStatus("sizing " + to);
  off_t at = 0;
  while (at < info.st_size) {
    off_t begin = ::lseek(in.get(), at, SEEK_DATA);
    if (begin < 0 && errno == ENXIO) break;
    off_t end = begin < 0 ? -1 : ::lseek(in.get(), begin, SEEK_HOLE);
    if (end < 0) return ErrnoStatus("reading the extents of " + from);
    off_t from_at = begin, to_at = begin;
    while (from_at < end) {
      ssize_t n =
          ::copy_file_range(in.get(), &from_at, out.get(), &to_at, static_cast<size_t>(end - from_at), 0);
      if (n < 0) return ErrnoStatus("copying to " + to);
      if (n == 0) break;
    }
    at = end;
  }
  return OkStatus();
}

namespace {

// A loop device over `file`, which clears itself when its last user goes.
Result<UniqueFd> Attach(int file, std::string* name) {
  UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  if (!control.valid()) return ErrnoStatus("opening /dev/loop-control");
  for (int attempt = 0; attempt < 64; ++attempt) {
    int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return ErrnoStatus("finding a free loop device");
    *name = "/dev/loop" + std::to_string(number);
    UniqueFd device(::open(name->c_str(), O_RDWR | O_CLOEXEC));
    if (!device.valid()) return ErrnoStatus("opening " + *name);
    struct loop_config config {};
    config.fd = static_cast<uint32_t>(file);
    config.block_size = 4096;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    std::strncpy(reinterpret_cast<char*>(config.info.lo_file_name), "lydian", LO_NAME_SIZE - 1);
    if (::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) return device;
    if (errno != EBUSY) return ErrnoStatus("configuring " + *name);
  }
  return ResourceExhausted("no loop device could be had: others take each free one first");
}

Result<UniqueFd> MountDevice(const std::string& name) {
  ASSIGN_OR_RETURN(FsContext context, FsContext::Open("ext4"));
  RETURN_IF_ERROR(context.Set("source", name));
  RETURN_IF_ERROR(context.SetFlag("noinit_itable"));
  // Nothing of it is worth a write to the disk: no flushes.
  RETURN_IF_ERROR(context.SetFlag("nobarrier"));
  RETURN_IF_ERROR(context.SetFlag("discard"));  // what is deleted inside is free again outside
  return context.Mount(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME);
}

}  // namespace

Result<std::pair<UniqueFd, UniqueFd>> MountImage(const std::string& path) {
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file.valid()) return ErrnoStatus("opening " + path);
  std::string name;
  ASSIGN_OR_RETURN(UniqueFd device, Attach(file.get(), &name));
  if (::unlink(path.c_str()) != 0) return ErrnoStatus("unlinking " + path);
  ASSIGN_OR_RETURN(UniqueFd first, MountDevice(name));
  ASSIGN_OR_RETURN(UniqueFd second, MountDevice(name));
  return std::make_pair(std::move(first), std::move(second));
}

void AbandonWrites(int root) {
  // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: the kernel's header has it only inside.
  constexpr unsigned long kShutdown = _IOR('X', 125, uint32_t);
  uint32_t flags = 2;
  ::ioctl(root, kShutdown, &flags);  // without it, the last close writes all to the file first
}

}  // namespace lydian::os
