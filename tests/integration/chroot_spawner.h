// A spawner::Client for tests of the builder alone: runs a job with unshare, an overlay and chroot, in the host's network. No
// isolation to speak of. Needs root.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <thread>

#include "base/fd.h"
#include "spawner/client.h"

extern char** environ;

namespace lydian::testing {

class ChrootSpawner : public spawner::Client {
 public:
  explicit ChrootSpawner(std::function<void(const ExitEvent&)> on_exit) : on_exit_(std::move(on_exit)) {}
  ~ChrootSpawner() override {
    for (auto& thread : threads_) thread.join();
  }

  int pid() const override { return ::getpid(); }

  void Create(Job job, std::function<void(Result<spawner::Container>)> reply) override {
    int out[2], err[2];
    if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) return reply(ErrnoStatus("pipe"));
    UniqueFd out_read(out[0]), out_write(out[1]), err_read(err[0]), err_write(err[1]);
    std::vector<std::string> argv = Argv(job);
    std::vector<char*> pointers;
    for (auto& word : argv) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out_write.get(), 1);
    posix_spawn_file_actions_adddup2(&actions, err_write.get(), 2);
    pid_t pid;
    int error = ::posix_spawnp(&pid, pointers[0], &actions, nullptr, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) return reply(ErrnoStatus("spawn", error));
    spawner::Container container;
    container.info.set_container_id(job.container_id());
    container.fds["stdout"] = std::move(out_read);
    container.fds["stderr"] = std::move(err_read);
    container.fds["pidfd"] = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    {
      std::lock_guard guard(mutex_);
      pids_[job.container_id()] = pid;
      ++created;
    }
    threads_.emplace_back([this, pid, id = job.container_id()] {
      int status = 0;
      ::waitpid(pid, &status, 0);
      ExitEvent event;
      event.set_container_id(id);
      event.set_status(status);
      on_exit_(event);
    });
    reply(std::move(container));
  }

  void Kill(const std::string& id, std::function<void(Status)> reply) override {
    std::lock_guard guard(mutex_);
    if (pids_.contains(id)) ::kill(pids_[id], SIGKILL);
    reply(OkStatus());
  }
  void Remove(const std::string& id, std::function<void(Status)> reply) override {
    {
      std::lock_guard guard(mutex_);
      pids_.erase(id);
    }
    reply(OkStatus());
  }

  void CreateInheriting(Job, std::vector<UniqueFd>, std::function<void(Result<spawner::Container>)> reply) override { reply(No()); }
  void Exec(ExecRequest, std::function<void(Result<spawner::Exec>)> reply) override { reply(No()); }
  void Signal(const std::string&, const std::string&, int, std::function<void(Status)> reply) override { reply(No()); }
  void List(std::function<void(Result<ContainerList>)> reply) override { reply(No()); }
  void Attach(const std::string&, std::function<void(Result<spawner::Container>)> reply) override { reply(No()); }
  void MakePlan(Job, std::function<void(Result<Plan>)> reply) override { reply(No()); }
  void DrainPools(std::function<void(Status)> reply) override { reply(No()); }

  int created = 0;

 private:
  static Status No() { return Unimplemented("not in tests"); }

  static std::vector<std::string> Argv(const Job& job) {
    std::string lowers;
    for (int i = job.rootfs().lowers_size() - 1; i >= 0; --i) lowers += (lowers.empty() ? "" : ":") + job.rootfs().lowers(i);
    const char* script = R"sh(
set -e
lowers=$1 dir=$2; shift 2
m=$(mktemp -d)
mount -t tmpfs tmpfs "$m"
mkdir "$m/root"
mount -t overlay overlay -o "lowerdir=$lowers,upperdir=$dir/upper,workdir=$dir/work" "$m/root"
r=$m/root
mkdir -p "$r/proc" "$r/dev" "$r/etc"
mount -t proc proc "$r/proc"
mount --rbind /dev "$r/dev"
[ -e "$r/etc/resolv.conf" ] || : > "$r/etc/resolv.conf"
mount --bind /etc/resolv.conf "$r/etc/resolv.conf"
while [ "$1" != -- ]; do
  mkdir -p "$(dirname "$r$2")"
  if [ -d "$1" ]; then mkdir -p "$r$2"; else : > "$r$2"; fi
  mount --bind "$1" "$r$2"
  shift 2
done
shift
owner=$1 cwd=$2; shift 2
exec chroot --userspec="$owner" "$r" env -i -C "$cwd" "$@"
)sh";
    std::vector<std::string> argv = {"unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", script, "chroot-spawner",
                                     lowers, job.rootfs().writable_dir()};
    for (const auto& mount : job.mounts()) {
      argv.push_back(mount.source());
      argv.push_back(mount.target());
    }
    argv.push_back("--");
    argv.push_back(std::to_string(job.process().uid()) + ":" + std::to_string(job.process().gid()));
    argv.push_back(job.process().cwd());
    for (const auto& entry : job.process().env()) argv.push_back(entry);
    for (const auto& word : job.process().argv()) argv.push_back(word);
    return argv;
  }

  std::function<void(const ExitEvent&)> on_exit_;
  std::mutex mutex_;  // guards pids_
  std::map<std::string, pid_t> pids_;
  std::vector<std::thread> threads_;
};

}  // namespace lydian::testing
