#include "build/container.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>

#include "base/ids.h"
#include "base/log.h"

namespace lydian::build {

// Owned by Run, and by the callbacks that may outlive it.
struct ContainerRunner::Waiter {
  std::mutex mutex;  // guards all below
  std::condition_variable changed;
  std::optional<std::pair<int, bool>> exit;
  UniqueFd ended{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};  // readable once `exit` is there

  void SetExit(int status, bool oom) {
    std::lock_guard guard(mutex);
    if (exit) return;
    exit = {status, oom};
    uint64_t one = 1;
    (void)!::write(ended.get(), &one, sizeof one);
    changed.notify_all();
  }
};

namespace {

// Longest wait for the spawner's word on a process that has ended: it comes at once unless the spawner is
// gone.
constexpr auto kExitWord = std::chrono::seconds(5);

// Whether what it writes goes into a layer.
bool Kept(const Job& job) {
  if (job.rootfs().hand_over() || !job.rootfs().writable_dir().empty()) return true;
  return std::any_of(job.mounts().begin(), job.mounts().end(),
                     [](const Mount& mount) { return !mount.writable_dir().empty(); });
}

template <typename T>
Result<T> Await(const std::function<void(std::function<void(Result<T>)>)>& ask) {
  auto promise = std::make_shared<std::promise<Result<T>>>();
  auto answer = promise->get_future();
  ask([promise](Result<T> result) { promise->set_value(std::move(result)); });
  return answer.get();
}

}  // namespace

std::string RunResult::How() const {
  if (oom) return "out of memory";
  if (WIFSIGNALED(status)) {
    const char* name = ::sigabbrev_np(WTERMSIG(status));
    return "killed by signal " + std::to_string(WTERMSIG(status)) +
           (name ? " (SIG" + std::string(name) + ")" : "");
  }
  return "exit code " + std::to_string(WEXITSTATUS(status));
}

void ContainerRunner::OnExit(const std::string& container_id, int status, bool oom) {
  std::shared_ptr<Waiter> waiter;
  {
    std::lock_guard guard(mutex_);
    if (auto found = waiters_.find(container_id); found != waiters_.end()) waiter = found->second;
  }
  if (waiter) waiter->SetExit(status, oom);
}

Result<RunResult> ContainerRunner::Run(Job job, const LogSink& log, CancelToken* cancel, const Talk& talk,
                                       UniqueFd* writable) {
  if (cancel) RETURN_IF_ERROR(cancel->Check());
  auto client = spawner_();
  if (!client) return Unavailable("the spawner is not connected");
  std::string id = NewId("ct");
  const bool kept = Kept(job);
  job.set_version(1);
  job.set_container_id(id);
  auto waiter = std::make_shared<Waiter>();
  {
    std::lock_guard guard(mutex_);
    waiters_[id] = waiter;
  }
  std::shared_ptr<void> forget(nullptr, [this, id](void*) {
    std::lock_guard guard(mutex_);
    waiters_.erase(id);
  });
  ASSIGN_OR_RETURN(spawner::Container container,
                   Await<spawner::Container>([&](auto reply) { client->Create(job, std::move(reply)); }));
  std::weak_ptr<spawner::Client> weak = client;
  auto stop = cancel ? cancel->OnCancel([weak, id] {
    if (auto alive = weak.lock()) alive->Kill(id, [](Status) {});
  })
                     : nullptr;
  if (writable != nullptr) *writable = std::move(container.fds["writable"]);
  RunResult result;
  Tail tail(2500);
  UniqueFd control = std::move(container.fds["control"]);
  auto pump = [&] { return Pump(container, log, tail); };
  // Also during the talk: what says more than a pipe holds would stand still, and the talk with it.
  std::future<Status> pumping = talk ? std::async(std::launch::async, pump) : std::future<Status>();
  if (talk) talk(std::move(control));
  Status pumped = talk ? pumping.get() : pump();
  Status ended = AwaitExit(container, *waiter);
  if (ended.ok()) {
    std::lock_guard guard(waiter->mutex);
    result.status = waiter->exit->first;
    result.oom = waiter->exit->second;
  }
  auto removed = Await<bool>([&](auto reply) {
    client->Remove(id, [reply](Status status) {
      if (status.ok())
        reply(true);
      else
        reply(status);
    });
  });
  if (cancel) RETURN_IF_ERROR(cancel->Check());
  RETURN_IF_ERROR(pumped);
  RETURN_IF_ERROR(ended);
  // Who still writes would leave half of it in the layer. One that is gone already is NOT_FOUND.
  if (kept && result.ok() && !removed.ok() && removed.status().code() != Code::kNotFound)
    return Unavailable("a step's container has not ended: " + removed.status().message());
  if (!removed.ok())
    LOG_WARN("a build's container was not removed", {{"container_id", id}, {"error", removed.status()}});
  result.tail = tail.text();
  return result;
}

// Both outputs until they end: they do when the container does, since all of its processes go then.
Status ContainerRunner::Pump(spawner::Container& container, const LogSink& log, Tail& tail) {
  struct Stream {
    UniqueFd fd;
    int number;
    Utf8Stream text;
  } streams[2] = {{std::move(container.fds["stdout"]), 1, {}}, {std::move(container.fds["stderr"]), 2, {}}};
  auto emit = [&](int number, const std::string& text) {
    if (text.empty()) return;
    tail.Add(text);
    if (log) log(number, text);
  };
  for (;;) {
    pollfd polls[2];
    for (int i = 0; i < 2; ++i) polls[i] = {streams[i].fd.get(), POLLIN, 0};
    if (!streams[0].fd.valid() && !streams[1].fd.valid()) return OkStatus();
    if (::poll(polls, 2, -1) < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus("waiting for a step's output");
    }
    for (int i = 0; i < 2; ++i) {
      if (polls[i].revents == 0) continue;
      char buffer[16384];
      ssize_t got = ::read(streams[i].fd.get(), buffer, sizeof buffer);
      if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (got > 0) {
        emit(streams[i].number, streams[i].text.Feed({buffer, static_cast<size_t>(got)}));
      } else {
        emit(streams[i].number, streams[i].text.Flush());
        streams[i].fd.reset();
      }
    }
  }
}

Status ContainerRunner::AwaitExit(const spawner::Container& container, Waiter& waiter) {
  auto pidfd = container.fds.find("pidfd");
  pollfd polls[2] = {{waiter.ended.get(), POLLIN, 0},
                     {pidfd == container.fds.end() ? -1 : pidfd->second.get(), POLLIN, 0}};
  while (::poll(polls, 2, -1) < 0)
    if (errno != EINTR) return ErrnoStatus("waiting for a step's end");
  std::unique_lock lock(waiter.mutex);
  if (waiter.changed.wait_for(lock, kExitWord, [&] { return waiter.exit.has_value(); })) return OkStatus();
  return Unavailable("the spawner ended under a build step");
}

}  // namespace lydian::build
