// The spawner's table of containers: what it does for each kind of request, without the sockets.
//
// Not thread-safe. Ownership: containers and their descriptors; what goes out are duplicates. Errors: as
// replies.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "lydian/spawner.pb.h"
#include "runtime/runtime.h"

namespace lydian::spawner {

class Keeper {
 public:
  using Fds = std::vector<UniqueFd>;

  Keeper(std::unique_ptr<runtime::Runtime> runtime, std::function<void(const ExitEvent&)> on_exit);

  // How many descriptors this request brings along.
  static size_t NamedFds(const SpawnerRequest& request);
  // Does what is asked. `out` gets the descriptors that the reply names.
  SpawnerReply Handle(const SpawnerRequest& request, Fds in, Fds* out);
  // A child was reaped; strangers are fine.
  void OnReaped(int pid, int status);
  // One unit of pool filling; false when there is nothing to do.
  bool Refill();

  // As the runtime's.
  int event_fd() const { return runtime_->event_fd(); }
  void OnEvent() { runtime_->OnEvent(); }

  // For the end: kills every container; then, when they are reaped or time is up, frees them.
  void KillAll();
  bool AllEnded() const;
  void RemoveAll();

 private:
  struct Exec {
    runtime::Process process;
    std::optional<ExitEvent> exit;
  };
  struct Entry {
    std::unique_ptr<runtime::Container> container;
    std::optional<ExitEvent> exit;
    std::map<std::string, Exec> execs;
    std::deque<std::string> ended_execs;  // oldest first
  };
  struct Owner {
    std::string container_id, exec_id;
  };

  Status Create(const Job& job, Fds stdio, SpawnerReply* reply, Fds* out, std::string* step);
  Status StartExec(const ExecRequest& request, Fds stdio, SpawnerReply* reply, Fds* out, std::string* step);
  Status Signal(const SignalRequest& request);
  Status CloseStdin(const lydian::CloseStdin& request);
  Status Kill(const std::string& id);
  Status Remove(const std::string& id);
  Status Attach(const std::string& id, SpawnerReply* reply, Fds* out);
  void List(ContainerList* list);

  Result<Entry*> Find(const std::string& id);
  Result<runtime::Process*> FindProcess(const std::string& container_id, const std::string& exec_id,
                                        bool* ended);
  static void Describe(const Entry& entry, ContainerInfo* info);
  static Status AddFds(const Entry& entry, ContainerInfo* info, Fds* out);
  void ExecEnded(Entry& entry, const std::string& exec_id, ExitEvent exit);

  std::unique_ptr<runtime::Runtime> runtime_;
  std::function<void(const ExitEvent&)> on_exit_;
  std::map<std::string, Entry> entries_;
  std::unordered_map<int, Owner> by_pid_;
  bool refill_ = true;
};

}  // namespace lydian::spawner
