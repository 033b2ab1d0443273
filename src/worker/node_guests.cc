// What containers ask of the node.
#include "worker/node.h"

namespace lydian::worker {

void Node::GuestHello(const std::string& task_id) {
  strand_->Post([this, task_id] {
    if (TaskPtr task = Find(task_id)) task->Hello();
  });
}

void Node::GuestHeartbeat(const std::string& task_id, rpc::Ctx ctx,
                          std::function<void(Result<std::vector<std::string>>)> reply) {
  strand_->Post([this, task_id, ctx = std::move(ctx), reply = std::move(reply)]() mutable {
    TaskPtr task = Find(task_id);
    if (!task) return reply(NotFound("this container's task has ended"));
    task->Heartbeat(std::move(ctx), std::move(reply));
  });
}

void Node::GuestAsks(const std::string& task_id, std::shared_ptr<InputQuestion> question) {
  strand_->Run([this, task_id, question = std::move(question)]() mutable {
    TaskPtr task = Find(task_id);
    if (!task) return question->reply(NotFound("this container's task has ended"));
    task->Ask(std::move(question));
  });
}

void Node::GuestWithdraws(const std::string& task_id, std::shared_ptr<InputQuestion> question) {
  strand_->Run([this, task_id, question = std::move(question)] {
    if (TaskPtr task = Find(task_id)) task->Withdraw(question);
  });
}

void Node::GuestPuts(const std::string& task_id, std::vector<Output> outputs, std::function<void()> done) {
  strand_->Run([this, task_id, outputs = std::move(outputs), done = std::move(done)]() mutable {
    TaskPtr task = Find(task_id);
    if (!task) return done();
    task->Put(std::move(outputs), std::move(done));
  });
}

void Node::GuestResult(const std::string& task_id, std::string result, std::function<void()> done) {
  strand_->Post([this, task_id, result = std::move(result), done = std::move(done)]() mutable {
    TaskPtr task = Find(task_id);
    if (!task) return done();
    task->Failed(std::move(result), std::move(done));
  });
}

void Node::GuestStopsItself(const std::string& task_id, std::function<void()> done) {
  strand_->Post([this, task_id, done = std::move(done)]() mutable {
    TaskPtr task = Find(task_id);
    if (!task) return done();
    task->StopItself(std::move(done));
  });
}

}  // namespace lydian::worker
