// Stands in for what the builder works with. For this module's tests alone.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "spawner/client.h"

namespace lydian::build {

// A spawner that writes something and ends as it is told.
class FakeSpawner : public spawner::Client {
 public:
  int pid() const override { return 1; }
  void Create(Job job, std::function<void(Result<spawner::Container>)> reply) override {
    int out[2], err[2];
    ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
    ASSERT_EQ(::pipe2(err, O_CLOEXEC), 0);
    out_ = UniqueFd(out[1]);
    err_ = UniqueFd(err[1]);
    id_ = job.container_id();
    spawner::Container container;
    container.fds["stdout"] = UniqueFd(out[0]);
    container.fds["stderr"] = UniqueFd(err[0]);
    if (writable.valid()) container.fds["writable"] = std::move(writable);
    if (on_create) on_create();
    reply(std::move(container));
  }
  void Kill(const std::string&, std::function<void(Status)> reply) override {
    End(9);
    reply(OkStatus());
  }
  void Remove(const std::string&, std::function<void(Status)> reply) override {
    ++removed;
    reply(remove_status);
  }
  void End(int status) {
    out_.reset();
    err_.reset();
    on_exit(id_, status);
  }
  void CreateInheriting(Job, std::vector<UniqueFd>,
                        std::function<void(Result<spawner::Container>)>) override {}
  void Exec(ExecRequest, std::function<void(Result<spawner::Exec>)>) override {}
  void Signal(const std::string&, const std::string&, int, std::function<void(Status)>) override {}
  void List(std::function<void(Result<ContainerList>)>) override {}
  void Attach(const std::string&, std::function<void(Result<spawner::Container>)>) override {}
  void MakePlan(Job, std::function<void(Result<Plan>)>) override {}
  void DrainPools(std::function<void(Status)>) override {}

  std::function<void()> on_create;
  std::function<void(const std::string&, int)> on_exit;
  UniqueFd out_, err_;
  std::string id_;
  int removed = 0;
  Status remove_status;
  UniqueFd writable;  // handed over with the container
};

}  // namespace lydian::build
