// What runs between clone and exec: the helper that enters a container's namespaces, its init, and its
// processes.
//
// These functions run in copies of the spawner's memory, so nothing here allocates, takes a lock or calls a C
// library function that might: raw system calls on prepared arguments only. Errors go into a shared
// ChildReport. A process is not dumpable from before it enters a container until it has called exec: the
// container's root can neither trace it nor open its descriptors through /proc.
#pragma once

#include <linux/filter.h>
#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "os/process.h"

namespace lydian::runtime {

// Lies in a page that is shared with all children.
struct ChildReport {
  static constexpr int kMaxPhases = 16;
  static constexpr int kMaxMounts = 512;
  int error;         // errno; 0 = none
  const char* step;  // of the plan
  char detail[160];
  pid_t init_pid, pid;
  int init_pidfd, pidfd;
  int phase_count;
  struct {
    const char* name;
    uint64_t end_nanos;  // CLOCK_MONOTONIC
  } phases[kMaxPhases];
  bool made[kMaxMounts];  // the mount's target was missing and was made
};

struct RawMount {
  int kind;  // MountStep::Kind
  const char* source;
  const char* target;
  const char* const* options;  // key, value, key, value, ..., null
  uint64_t attributes;
  bool optional;
  int fd;       // kBind: the detached mount
  bool is_dir;  // kBind
};

struct InitArgs {
  int user_ns, net_ns;      // joined; the other namespaces are made
  uint64_t new_namespaces;  // CLONE_*
  int overlay, own_files;
  const char* overlay_anchor;  // host folders to attach these to, in the new mount namespace
  const char* own_anchor;
  const char* hostname;
  size_t hostname_size;
  const RawMount* mounts;
  int mount_count;
  bool read_only;
  int null_fd, init_fd;
};

struct ProcessArgs {
  int init_pidfd;  // of a running container; -1 = the one that has just been made
  pid_t set_tid;   // 2 for the main process, 0 = any
  int fds[4];      // stdin, stdout, stderr, control (-1 = none); none of them below 4
  const char* cwd;
  uint32_t uid, gid;
  const char* const* candidates;
  const char* const* argv;
  const char* const* envp;
};

// What a helper and the spawner share: one mapping, at the same address in both, which also holds what the
// pointers point to.
struct HelperShared {
  ChildReport report;
  // Set before the helper is made:
  int spawner_pidfd;
  int go_fd, done_fd;      // event descriptors
  int cgroup_fds[4];       // "0" is written to each; -1 = no more
  bool join_late;          // not by the helper at once, but by the process before exec
  const os::Stack* stack;  // for the processes that it clones
  const std::vector<sock_filter>* filter;
  // Set before "go":
  int oom_score_adj;
  uint64_t all_namespaces;  // CLONE_* that a container's init has
  const InitArgs* init;     // null: a process for a running container
  const ProcessArgs* process;
};

// The helper, for RawClone with CLONE_FILES (and memory of its own: the kernel lets no other process join a
// time namespace). It joins the control group and waits for "go"; then it enters the container's user and
// network namespace, clones init and the process as siblings of itself, says "done" and ends.
int RunHelper(void* shared);

}  // namespace lydian::runtime
