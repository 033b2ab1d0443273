// The worker's (and a build's) connection to the spawner: requests out, replies and exit events in, with file
// descriptors. Thread-safety: every method from any thread; callbacks come on a thread of the client's own,
// one after the other, and must not block. Ownership: descriptors that arrive belong to whom the callback
// gives them. Errors: a failed step is a Status whose text names step and errno. When the connection breaks,
// every open request fails with UNAVAILABLE and on_disconnect runs once; the client is then of no more use.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "lydian/job.pb.h"
#include "lydian/spawner.pb.h"

namespace lydian::spawner {

struct Container {
  ContainerInfo info;
  std::map<std::string, UniqueFd> fds;                              // by the names in ContainerInfo.fds
  std::map<std::string, std::map<std::string, UniqueFd>> exec_fds;  // to Attach: by exec id and name
};

struct Exec {
  ExecInfo info;
  std::map<std::string, UniqueFd> fds;  // "pidfd", "stdin", "stdout", "stderr"
};

struct ClientEvents {
  std::function<void(const ExitEvent&)> on_exit;
  std::function<void(Status)> on_disconnect;
};

class Client {
 public:
  virtual ~Client() = default;
  static Result<std::unique_ptr<Client>> Connect(const std::string& socket_path, ClientEvents events);

  virtual int pid() const = 0;  // the spawner's
  virtual void Create(Job job, std::function<void(Result<Container>)> reply) = 0;
  // With three fds for Stdio INHERIT.
  virtual void CreateInheriting(Job job, std::vector<UniqueFd> stdio,
                                std::function<void(Result<Container>)> reply) = 0;
  virtual void Exec(ExecRequest request, std::function<void(Result<spawner::Exec>)> reply) = 0;
  virtual void Signal(const std::string& container_id, const std::string& exec_id, int signal,
                      std::function<void(Status)> reply) = 0;
  virtual void Kill(const std::string& container_id, std::function<void(Status)> reply) = 0;
  virtual void Remove(const std::string& container_id, std::function<void(Status)> reply) = 0;
  virtual void List(std::function<void(Result<ContainerList>)> reply) = 0;
  virtual void Attach(const std::string& container_id, std::function<void(Result<Container>)> reply) = 0;
  // The spawner keeps a copy of each pipe's end: a process whose stdin was closed sees the end only after
  // this.
  virtual void CloseStdin(const std::string& container_id, const std::string& exec_id,
                          std::function<void(Status)> reply);
  virtual void MakePlan(Job job, std::function<void(Result<Plan>)> reply) = 0;
  virtual void DrainPools(std::function<void(Status)> reply) = 0;
};

}  // namespace lydian::spawner
