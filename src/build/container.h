// Runs one command in a container of its own to its end, its output live: a build step.
// Thread-safety: every method from any thread; Run blocks.
// Errors: UNAVAILABLE when the spawner went away under it, or a container that writes into a layer has not
// ended (another try may work); a command that fails is no error but a result.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/status.h"
#include "build/cancel.h"
#include "build/log_text.h"
#include "lydian/job.pb.h"
#include "spawner/client.h"

namespace lydian::build {

struct RunResult {
  int status = 0;  // as from waitpid
  bool oom = false;
  std::string tail;  // the end of its output
  bool ok() const { return status == 0 && !oom; }
  std::string How() const;  // "exit code 1", "killed by signal 9 (SIGKILL)", "out of memory"
};

class ContainerRunner {
 public:
  using SpawnerRef = std::function<std::shared_ptr<spawner::Client>()>;
  explicit ContainerRunner(SpawnerRef spawner) : spawner_(std::move(spawner)) {}

  // `job.container_id` is set here. The container is gone when this returns. `talk` is given its control
  // socket once it runs (`log` may be called meanwhile, from another thread), and the layer that it hands
  // over, if it does, goes to `writable`.
  using Talk = std::function<void(UniqueFd control)>;
  Result<RunResult> Run(Job job, const LogSink& log, CancelToken* cancel, const Talk& talk = nullptr,
                        UniqueFd* writable = nullptr);
  void OnExit(const std::string& container_id, int status, bool oom);

 private:
  struct Waiter;
  static Status Pump(spawner::Container& container, const LogSink& log, Tail& tail);
  static Status AwaitExit(const spawner::Container& container, Waiter& waiter);

  SpawnerRef spawner_;
  std::mutex mutex_;  // guards waiters_
  std::map<std::string, std::shared_ptr<Waiter>> waiters_;
};

}  // namespace lydian::build
