#include "os/namespaces.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "os/caps.h"
#include "os/process.h"

namespace lydian::os {
namespace {

// Ends with its parent, whose descriptors it has: nothing may outlive a spawner that is killed just now.
int Pause(void* parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != static_cast<pid_t>(reinterpret_cast<intptr_t>(parent))) return 0;
  while (true) ::pause();
}

// The calling thread's effective user is another while this lives, with all its rights kept. By raw calls:
// those of the C library change all threads.
class ScopedUser {
 public:
  explicit ScopedUser(uint32_t uid) {
    ok_ = ::syscall(SYS_setresuid, -1, uid, -1) == 0 && RaiseEffective().ok();
  }
  ~ScopedUser() {
    CHECK(::syscall(SYS_setresuid, -1, before_, -1) == 0);
    CHECK(RaiseEffective().ok());
  }
  ScopedUser(const ScopedUser&) = delete;
  ScopedUser& operator=(const ScopedUser&) = delete;
  bool ok() const { return ok_; }

 private:
  uid_t before_ = ::geteuid();
  bool ok_;
};

Status Fill(pid_t pid, uint32_t base, uint32_t count, UserAndNet* out) {
  const std::string proc = "/proc/" + std::to_string(pid);
  const std::string map = "0 " + std::to_string(base) + " " + std::to_string(count);
  RETURN_IF_ERROR(WriteExisting(proc + "/uid_map", map));
  RETURN_IF_ERROR(WriteExisting(proc + "/gid_map", map));
  out->user.reset(::open((proc + "/ns/user").c_str(), O_RDONLY | O_CLOEXEC));
  out->net.reset(::open((proc + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC));
  if (!out->user.valid() || !out->net.valid()) return ErrnoStatus("opening new namespaces");
  return OkStatus();
}

}  // namespace

Result<UserAndNet> MakeUserAndNet(uint32_t base, uint32_t count) {
  Stack stack(16 << 10);
  int raw = -1;
  // The child shares memory and only sleeps, until its namespaces are held by descriptor.
  CloneSpec spec{.flags = CLONE_VM | CLONE_NEWUSER | CLONE_NEWNET | CLONE_CLEAR_SIGHAND,
                 .pidfd = &raw,
                 .stack = &stack,
                 .run = Pause,
                 // NOLINTNEXTLINE(performance-no-int-to-ptr): a number for the child, no address
                 .argument = reinterpret_cast<void*>(static_cast<intptr_t>(::getpid()))};
  // What is counted in a user namespace (inotify instances, namespaces, message queues) counts for who made
  // it as well: that must not be the account of the host's root, and not one for all.
  pid_t pid = -1;
  int error = 0;
  {
    ScopedUser owner(base);
    if (!owner.ok()) return ErrnoStatus("becoming user " + std::to_string(base));
    pid = RawClone(spec);
    error = errno;
  }
  if (pid < 0) return ErrnoStatus("making a user and a network namespace", error);
  UniqueFd pidfd(raw);
  UserAndNet out;
  Status status = Fill(pid, base, count, &out);
  (void)SignalPidfd(pidfd.get(), SIGKILL);
  Status ended = WaitPidfd(pidfd.get(), -1).status();
  RETURN_IF_ERROR(status);
  if (!ended.ok() && ended.error() != ECHILD) return ended;
  return out;
}

}  // namespace lydian::os
