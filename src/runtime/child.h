// What runs between clone and exec: the helper that enters a container's namespaces, its init, and its processes.
//
// These functions run in children of the spawner that share its memory or a copy of it, so nothing here allocates, takes a lock or
// calls a C library function that might: raw system calls on prepared arguments only. Errors go into a shared ChildReport.
// A process is not dumpable from before it enters a container until it has called exec: the container's root can neither trace
// it nor open its descriptors through /proc.
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
  int error;             // errno; 0 = none
  const char* step;      // of the plan
  char detail[160];
  pid_t pid;
  int pidfd;
  int phase_count;
  struct {
    const char* name;
    uint64_t end_nanos;  // CLOCK_MONOTONIC
  } phases[kMaxPhases];
  bool made[kMaxMounts];  // the mount's target was missing and was made
};

struct RawMount {
  int kind;                    // MountStep::Kind
  const char* source;
  const char* target;
  const char* const* options;  // key, value, key, value, ..., null
  uint64_t attributes;
  bool optional;
  int fd;                      // kBind: the detached mount
  bool is_dir;                 // kBind
};

// Who joins which control group, as which root, before anything of a container runs.
struct JoinArgs {
  const int* cgroup_fds;
  int cgroup_count;
  int oom_score_adj;
  int user_ns, net_ns;         // for a new container
  int init_pidfd;              // or: all namespaces of this process
  uint64_t all_namespaces;     // CLONE_* that init has
};

struct InitArgs {
  JoinArgs join;
  ChildReport* report;
  const os::Stack* stack;
  uint64_t new_namespaces;     // CLONE_*
  int spawner_pidfd;
  int overlay, own_files;
  const char* overlay_anchor;  // host folders to attach these to, in the new mount namespace
  const char* own_anchor;
  const char* hostname;
  size_t hostname_size;
  const RawMount* mounts;
  int mount_count;
  bool read_only;
  int null_fd, init_fd;
  const std::vector<sock_filter>* filter;
};

struct ProcessArgs {
  JoinArgs join;
  ChildReport* report;
  const os::Stack* stack;
  pid_t set_tid;               // 2 for the main process, 0 = any
  int fds[4];                  // stdin, stdout, stderr, control (-1 = none); none of them below 4
  const char* cwd;
  uint32_t uid, gid;
  const char* const* candidates;
  char* const* argv;
  char* const* envp;
  const std::vector<sock_filter>* filter;
};

// For RawClone with CLONE_VM | CLONE_VFORK | CLONE_FILES: joins, then clones init as a sibling of itself.
int RunInitHelper(void* init_args);
// For RawClone with CLONE_VFORK | CLONE_FILES (a copy of memory: joining a time namespace needs one): the same for a process.
int RunProcessHelper(void* process_args);

}  // namespace lydian::runtime
