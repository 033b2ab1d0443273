#include "runtime/helper.h"

#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace lydian::runtime {
namespace {

// Arguments and environment of a program can be megabytes; only what is touched takes memory.
constexpr size_t kArena = 12 << 20;
constexpr int kEndTimeoutMs = 10'000;
// A start takes milliseconds. What takes so long waits for something that a container has used up, and the
// spawner has other containers to look after.
constexpr int kRunTimeoutMs = 5000;

// No signal is handled in the helper between clone and its own first steps.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockSignals() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

Result<std::unique_ptr<Helper>> Helper::Make(const os::Cgroup& group, const os::Stack& stack,
                                             const os::Stack& child_stack,
                                             const std::vector<sock_filter>& filter, int spawner_pidfd,
                                             Join join) {
  std::unique_ptr<Helper> helper(new Helper);
  void* memory =
      ::mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return ErrnoStatus("mapping memory for a helper");
  helper->shared_ = new (memory) HelperShared{};
  helper->used_ = sizeof(HelperShared);
  helper->go_.reset(::eventfd(0, EFD_CLOEXEC));
  helper->done_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!helper->go_.valid() || !helper->done_.valid()) return ErrnoStatus("making an event descriptor");
  HelperShared& shared = *helper->shared_;
  shared.report.init_pid = shared.report.pid = shared.report.init_pidfd = shared.report.pidfd = -1;
  shared.spawner_pidfd = spawner_pidfd;
  shared.go_fd = helper->go_.get();
  shared.done_fd = helper->done_.get();
  size_t count = 0;
  for (int& fd : shared.cgroup_fds) fd = -1;
  const bool made_inside = join == Join::kEarly && group.into_fd() >= 0;
  for (const auto& fd : group.join_fds()) {
    if (made_inside) break;
    CHECK(count < std::size(shared.cgroup_fds));
    shared.cgroup_fds[count++] = fd.get();
  }
  shared.join_late = join == Join::kLate;
  shared.stack = &child_stack;
  shared.filter = &filter;
  int raw = -1;
  os::CloneSpec spec{.flags = CLONE_FILES | CLONE_CLEAR_SIGHAND,
                     .pidfd = &raw,
                     .cgroup_fd = made_inside ? group.into_fd() : -1,
                     .stack = &stack,
                     .run = RunHelper,
                     .argument = helper->shared_};
  BlockSignals block;
  if (os::RawClone(spec) < 0) return ErrnoStatus("making a helper process");
  helper->pidfd_.reset(raw);
  return helper;
}

Helper::~Helper() {
  if (pidfd_.valid()) {
    (void)os::SignalPidfd(pidfd_.get(), SIGKILL);
    (void)os::WaitPidfd(pidfd_.get(), kEndTimeoutMs);
  }
  if (shared_ != nullptr) ::munmap(shared_, kArena);
}

void* Helper::Allocate(size_t size) {
  used_ = (used_ + alignof(std::max_align_t) - 1) & ~(alignof(std::max_align_t) - 1);
  // Too much is noticed by Run; until then the writes go where they do no harm.
  if (size > kArena - used_) {
    full_ = true;
    used_ = sizeof(HelperShared);
    CHECK(size <= kArena - used_ - 64);
    return Allocate(size);
  }
  void* at = reinterpret_cast<char*>(shared_) + used_;
  used_ += size;
  return at;
}

const char* Helper::Copy(const std::string& text) {
  if (text.size() + 1 > kArena / 2) {
    full_ = true;
    return "";
  }
  char* at = static_cast<char*>(Allocate(text.size() + 1));
  std::memcpy(at, text.c_str(), text.size() + 1);
  return at;
}

const char* const* Helper::CopyList(const std::vector<std::string>& words) {
  if ((words.size() + 1) * sizeof(char*) > kArena / 2) {
    full_ = true;
    static const char* const kNone[] = {nullptr};
    return kNone;
  }
  auto** list = New<const char*>(words.size() + 1);
  for (size_t i = 0; i < words.size(); ++i) list[i] = Copy(words[i]);
  list[words.size()] = nullptr;
  return list;
}

Status Helper::Run() {
  ChildReport& report = shared_->report;
  if (full_) {
    report.step = "exec";
    return ErrnoStatus("arguments and environment", E2BIG);
  }
  uint64_t one = 1;
  if (::write(go_.get(), &one, sizeof one) < 0) return ErrnoStatus("waking the helper");
  struct pollfd events[2] = {{done_.get(), POLLIN, 0}, {pidfd_.get(), POLLIN, 0}};
  int ready;
  while ((ready = ::poll(events, 2, kRunTimeoutMs)) < 0 && errno == EINTR) {
  }
  if (ready == 0) {
    (void)os::SignalPidfd(pidfd_.get(), SIGKILL);
    (void)os::WaitPidfd(pidfd_.get(), kEndTimeoutMs);  // what it has made is known only then
    report.error = ETIMEDOUT;
    if (report.step == nullptr)
      report.step = report.init_pid < 0 && shared_->init != nullptr ? "namespaces" : "exec";
    std::strcpy(report.detail,
                "the container has used up the processor time that its process needs to start");
  } else if ((events[0].revents & POLLIN) == 0 && report.error == 0) {
    report.error = ECHILD;
    report.step = "namespaces";
    std::strcpy(report.detail, "the helper process was killed");
  }
  if (report.error == 0) return OkStatus();
  Status status = ErrnoStatus(report.detail, report.error);
  if (report.pidfd >= 0) {
    // Made, and failed before exec: nobody else knows it.
    UniqueFd child(report.pidfd);
    (void)os::SignalPidfd(child.get(), SIGKILL);
    (void)os::WaitPidfd(child.get(), kEndTimeoutMs);
  }
  return status;
}

}  // namespace lydian::runtime
