// A helper process: made ahead of its use or at once, it makes one container's processes and ends. child.h
// says what it does. Thread-safety: none; the spawner's one thread. Ownership: the process and the mapping go
// with the object (a helper that was not used is killed). Errors: a Status; step() then names the step.
#pragma once

#include <linux/filter.h>

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "os/cgroup.h"
#include "os/process.h"
#include "runtime/child.h"

namespace lydian::runtime {

class Helper {
 public:
  // When the processes that it makes come into the control group: with the helper, which then does all its
  // work there; or one by itself just before exec, for a group in which others may leave a helper no
  // processor time.
  enum class Join { kEarly, kLate };
  // It joins `group` by itself, without the caller waiting for it. `stack`, `filter` and `spawner_pidfd`
  // outlive it.
  static Result<std::unique_ptr<Helper>> Make(const os::Cgroup& group, const os::Stack& stack,
                                              const os::Stack& child_stack,
                                              const std::vector<sock_filter>& filter, int spawner_pidfd,
                                              Join join = Join::kEarly);
  ~Helper();
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  // What the helper is to read has to lie in memory that it sees.
  template <typename T>
  T* New(size_t count = 1) {
    return static_cast<T*>(Allocate(sizeof(T) * count));
  }
  const char* Copy(const std::string& text);
  const char* const* CopyList(const std::vector<std::string>& words);  // ends with null
  HelperShared* shared() { return shared_; }

  // "go", and waits for "done", 5 s at most (ETIMEDOUT). What it has made before it failed is ended and
  // reaped, except init.
  Status Run();
  const ChildReport& report() const { return shared_->report; }
  const char* step() const { return shared_->report.step != nullptr ? shared_->report.step : "exec"; }
  const UniqueFd& pidfd() const { return pidfd_; }

 private:
  Helper() = default;
  void* Allocate(size_t size);

  HelperShared* shared_ = nullptr;
  size_t used_ = 0;
  bool full_ = false;
  UniqueFd pidfd_, go_, done_;
};

}  // namespace lydian::runtime
