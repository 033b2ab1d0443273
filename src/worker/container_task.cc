#include "worker/container_task.h"

#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/paths.h"
#include "os/loop.h"
#include "worker/exit_text.h"
#include "worker/guest_api.h"
#include "worker/task_note.h"

namespace lydian::worker {
namespace {
constexpr uint32_t kGraceMs = 30'000;
constexpr Millis kLongestHeartbeat{14'000};
constexpr Millis kRemovePause{200};
}  // namespace

// ---- The life of the process. How it starts is in container_start.cc.

ContainerTask::~ContainerTask() {
  for (auto& timer : {grace_timer_, heartbeat_timer_}) {
    if (timer) ground_->strand->CancelTimer(*timer);
  }
}

std::string ContainerTask::StateName() const {
  switch (state_) {
    case State::kPreparing:
    case State::kStarting:
      return "creating";
    case State::kRunning:
      return stopping_ ? "stopping" : desk_ && desk_->ready() ? "ready" : "started";
    case State::kEnded:
      return "ended";
  }
  return "";
}

RunningTask ContainerTask::Describe() const {
  RunningTask task;
  task.set_task_id(spec_.task_id());
  task.set_function_id(spec_.function_id());
  task.set_app_id(spec_.app_id());
  task.set_container_id(container_id_);
  task.set_stopping(stopping_ || state_ == State::kEnded);
  if (desk_) {
    for (const LeaseRef& ref : desk_->Held()) *task.add_held() = ref;
  }
  return task;
}

void ContainerTask::Update(TaskUpdate::State state, const std::function<void(TaskUpdate*)>& fill) {
  if (dropped_) return;
  FromWorker message;
  TaskUpdate* update = message.mutable_task();
  update->set_task_id(spec_.task_id());
  update->set_state(state);
  update->set_container_id(container_id_);
  update->set_pid(pid_);
  update->set_ip(ip_);
  update->set_at(SystemClock().UnixSeconds());
  if (fill) fill(update);
  if (state == TaskUpdate::EXITED || state == TaskUpdate::REFUSED) ground_->ended(*update);
  ground_->send(std::move(message));
}

void ContainerTask::OnWelcome() {
  switch (state_) {
    case State::kPreparing:
    case State::kStarting:
      return Update(TaskUpdate::CREATING);
    case State::kRunning:
      Update(TaskUpdate::STARTED);
      if (desk_->ready()) Update(TaskUpdate::READY);
      break;
    case State::kEnded:
      break;
  }
  if (!init_result_.empty()) {
    Update(TaskUpdate::INIT_FAILED, [this](TaskUpdate* update) { update->set_result(init_result_); });
  }
  if (desk_) desk_->Resend();
  if (state_ == State::kEnded) SayProcessEnded();  // EXITED comes behind the logs: on_sent says when
}

void ContainerTask::Drop() {
  dropped_ = true;
  StopCommit();
  if (state_ == State::kEnded) return TryLeave();
  Stop(StopTask::KILL, 0, "control doesn't know this task");
}

// ---- Stopping.

void ContainerTask::Stop(StopTask::Mode mode, uint32_t grace_ms, const std::string& reason) {
  if (state_ == State::kEnded) return;
  LOG_INFO("task is to stop",
           {{"task_id", spec_.task_id()}, {"mode", StopTask::Mode_Name(mode)}, {"reason", reason}});
  if (table_) table_->SetFlag(LeaseTable::kStopping);
  stopping_ = true;
  if (state_ != State::kRunning) return;  // Created sees it
  // Before ContainerHello nothing of the user's has run.
  if (mode == StopTask::KILL || (!hello_ && !desk_->ready())) return KillNow();
  const bool at_question = desk_->asking();
  desk_->Close();  // a waiting question gets the kill switch, which is all that an idle container needs
  if (mode == StopTask::DRAIN && desk_->ready()) return;
  if (!at_question && !stop_signalled_ && !table_->flag(LeaseTable::kKillSwitch)) {
    stop_signalled_ = true;
    Signal(SIGINT);
  }
  ArmGrace(grace_ms);
}

void ContainerTask::StopItself(std::function<void()> done) {
  // "Fetch no more inputs": what runs goes on, the next question ends it.
  if (state_ == State::kRunning) {
    stopping_ = true;
    table_->SetFlag(LeaseTable::kStopping);
    Update(TaskUpdate::CLOSED);  // before what it gives back, which would come again
    desk_->Close();
  }
  done();
}

void ContainerTask::ArmGrace(uint32_t grace_ms) {
  if (grace_timer_) return;
  grace_timer_ =
      ground_->strand->PostAfter(Millis(grace_ms == 0 ? kGraceMs : grace_ms), [weak = weak_from_this()] {
        auto self = weak.lock();
        if (!self || self->state_ != State::kRunning) return;
        LOG_WARN("a container did not end in its time and is killed", {{"task_id", self->spec_.task_id()}});
        self->KillNow();
      });
}

void ContainerTask::Signal(int signal) {
  auto spawner = ground_->spawner();
  if (!spawner) return;  // its containers are gone, and we are about to hear of it
  spawner->Signal(container_id_, "", signal, [id = spec_.task_id()](Status status) {
    if (!status.ok()) LOG_WARN("a signal did not reach its container", {{"task_id", id}, {"error", status}});
  });
}

void ContainerTask::KillNow() {
  auto spawner = ground_->spawner();
  if (!spawner) return;
  spawner->Kill(container_id_, [id = spec_.task_id()](Status status) {
    if (!status.ok()) LOG_WARN("a container could not be killed", {{"task_id", id}, {"error", status}});
  });
}

// ---- What the container asks.

void ContainerTask::AddLease(const Lease& lease) {
  if (desk_ && state_ == State::kRunning) return desk_->Add(lease);
  FromWorker message;
  message.mutable_give_back()->set_task_id(spec_.task_id());
  LeaseRef* ref = message.mutable_give_back()->add_leases();
  ref->set_input_id(lease.input_id());
  ref->set_attempt(lease.attempt());
  ref->set_epoch(lease.epoch());
  ground_->send(std::move(message));
}

void ContainerTask::Acked(const LeaseRef& lease) {
  if (desk_) desk_->Acked(lease);
  TryLeave();
}

void ContainerTask::Cancel(const CancelInputs& cancel) {
  if (!desk_ || state_ != State::kRunning) return;
  for (std::string& id : desk_->Cancel({cancel.input_ids().begin(), cancel.input_ids().end()}))
    cancelled_.push_back(std::move(id));
  AnswerHeartbeat();
}

void ContainerTask::Recall(const RecallInputs& recall) {
  if (desk_) desk_->Cancel({recall.input_ids().begin(), recall.input_ids().end()});
}

void ContainerTask::Heartbeat(rpc::Ctx ctx, std::function<void(Result<std::vector<std::string>>)> reply) {
  if (heartbeat_) {
    auto older = std::move(heartbeat_);
    heartbeat_ = nullptr;
    older(std::vector<std::string>());
  }
  if (heartbeat_timer_) ground_->strand->CancelTimer(*heartbeat_timer_);
  hello_ = true;
  heartbeat_ = std::move(reply);
  const uint64_t number = ++heartbeat_number_;
  ctx->OnCancel([weak = weak_from_this(), strand = ground_->strand, number] {
    strand->Post([weak, number] {
      auto self = weak.lock();
      if (self && self->heartbeat_number_ == number) self->heartbeat_ = nullptr;
    });
  });
  if (!cancelled_.empty()) return AnswerHeartbeat();
  // The container gives up after 15 s; an answer that comes in time is a heartbeat, one that is late is none.
  SteadyTime until = std::chrono::steady_clock::now() + kLongestHeartbeat;
  if (ctx->deadline() != SteadyTime::max()) until = std::min(until, ctx->deadline() - Millis(500));
  heartbeat_timer_ = ground_->strand->PostAt(until, [weak = weak_from_this()] {
    auto self = weak.lock();
    if (!self || !self->heartbeat_) return;
    self->heartbeat_timer_.reset();
    auto reply = std::move(self->heartbeat_);
    self->heartbeat_ = nullptr;
    reply(std::vector<std::string>());
  });
}

void ContainerTask::AnswerHeartbeat() {
  if (!heartbeat_ || cancelled_.empty()) return;
  if (heartbeat_timer_) ground_->strand->CancelTimer(*heartbeat_timer_);
  heartbeat_timer_.reset();
  auto reply = std::move(heartbeat_);
  heartbeat_ = nullptr;
  reply(std::move(cancelled_));
  cancelled_.clear();
}

void ContainerTask::Ask(std::shared_ptr<InputQuestion> question) {
  if (state_ != State::kRunning || !desk_) return question->reply(Cancelled("the container has ended"));
  desk_->Ask(std::move(question));
}

void ContainerTask::Withdraw(const std::shared_ptr<InputQuestion>& question) {
  if (desk_) desk_->Withdraw(question);
}

void ContainerTask::Put(std::vector<Output> outputs, std::function<void()> done) {
  if (!desk_ || outputs.empty()) return done();
  auto left = std::make_shared<size_t>(outputs.size());
  for (Output& output : outputs) {
    desk_->Put(std::move(output), [left, done] {
      if (--*left == 0) done();
    });
  }
}

void ContainerTask::Failed(std::string result, std::function<void()> done) {
  init_result_ = std::move(result);
  Update(TaskUpdate::INIT_FAILED, [this](TaskUpdate* update) { update->set_result(init_result_); });
  done();
}

void ContainerTask::OnReady() { Update(TaskUpdate::READY); }

// ---- The end.

void ContainerTask::OnExit(const ExitEvent& event) {
  if (state_ != State::kRunning) return;
  const TaskExit exit = DescribeExit(event, stopping_);
  const bool ended_well =
      exit.signal() == 0 && exit.exit_code() == 0 && init_result_.empty() && desk_->last_output_status() == 1;
  LOG_INFO("task has ended", {{"task_id", spec_.task_id()}, {"exit", exit.text()}});
  End(exit, spec_.commit_layer() && ended_well);
}

void ContainerTask::OnSpawnerLost() {
  if (state_ == State::kEnded) return;
  if (state_ == State::kPreparing) return;  // it will ask the next one
  if (state_ == State::kStarting) return;   // the reply fails
  End(LostExit("the process that held its container died"), false);
}

void ContainerTask::End(const TaskExit& exit, bool commit) {
  state_ = State::kEnded;
  exit_ = exit;
  if (grace_timer_) ground_->strand->CancelTimer(*grace_timer_);
  grace_timer_.reset();
  // Until its layer is there, a task that is to leave one has not ended well: without a note, the worker that
  // comes after this one takes it for lost, and it is tried again.
  if (!commit) NoteExit();
  Update(TaskUpdate::CLOSED);
  desk_->Abandon();
  exit_known_ = !commit;
  SayProcessEnded();
  if (heartbeat_) std::exchange(heartbeat_, nullptr)(Cancelled("the container has ended"));
  StopServing();
  if (!commit) DropWritable();
  Finalize();
}

// Its outputs are on their way before this, so that what is left of its inputs was lost with it.
void ContainerTask::SayProcessEnded() {
  if (!exit_known_) return;
  Update(TaskUpdate::PROCESS_ENDED, [this](TaskUpdate* update) { *update->mutable_exit() = exit_; });
}

void ContainerTask::Vanish(const std::string& why) {
  state_ = State::kEnded;
  Update(TaskUpdate::EXITED, [&](TaskUpdate* update) { *update->mutable_exit() = LostExit(why); });
  dropped_ = true;
  TryLeave();
}

// For the worker that comes after this one.
void ContainerTask::NoteExit() {
  Status status;
  if (!layer_id_.empty()) status = WriteFileAtomic(Dir() + "/layer", layer_id_, 0600);
  if (status.ok()) status = WriteNote(Dir() + "/exit.pb", exit_, /*durable=*/true);
  if (!status.ok())
    LOG_WARN("the end of a task could not be noted", {{"task_id", spec_.task_id()}, {"error", status}});
}

void ContainerTask::StopServing() {
  ground_->http->Remove(spec_.task_id());
  if (!server_) return;
  ground_->pool->Post([server = std::shared_ptr<rpc::Server>(std::move(server_))] { server->Stop(200); });
}

// The spawner has killed what the main process left behind, so the pipes have no writer: what they hold is
// all.
void ContainerTask::Finalize() {
  ground_->logs->Finish(spec_.task_id());
  auto self = shared_from_this();
  auto removed = [self](const Status& status) {
    if (!status.ok() && status.code() != Code::kNotFound && status.code() != Code::kUnavailable) {
      LOG_WARN("a container could not be removed", {{"task_id", self->spec_.task_id()}, {"error", status}});
    }
    // Who still writes would leave half of it in the layer. One that is gone already is NOT_FOUND.
    const bool ended = status.ok() || status.code() == Code::kNotFound;
    self->ground_->strand->Post([self, ended] {
      if (self->writable_.valid()) return ended ? self->CommitLayer() : self->LoseLayer();
      self->pin_.reset();
    });
  };
  if (!writable_.valid()) {
    // What control waits for is the end of the process; freeing the machine's side takes its time.
    finalized_ = true;
    TrySendExit();
  }
  auto remove = [self, removed] {
    auto spawner = self->ground_->spawner();
    if (self->exit_.lost()) return removed({});
    if (!spawner) return removed(Unavailable("the spawner is not connected"));
    spawner->Remove(self->container_id_, removed);
  };
  // An app's containers end together: all their ends are told before the spawner spends time on freeing any
  // of them.
  if (writable_.valid()) return remove();
  ground_->strand->PostAfter(kRemovePause, remove);
}

// What the function wrote lies in a file system of its own, which only this descriptor keeps.
void ContainerTask::DropWritable() {
  if (!writable_.valid()) return;
  ground_->pool->Post([writable = std::make_shared<UniqueFd>(std::move(writable_))] {
    os::AbandonWrites(writable->get());
    writable->reset();
  });
}

Result<std::string> ContainerTask::TakeLayer() {
  ASSIGN_OR_RETURN(const auto transaction, ground_->layers->Begin());
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(ground_->commit_seconds);
  auto check = [this, until]() -> Status {
    if (commit_stopped_) return Cancelled("the task is no longer wanted");
    if (std::chrono::steady_clock::now() < until) return OkStatus();
    return DeadlineExceeded("copying took longer than " + std::to_string(ground_->commit_seconds) +
                            " s, the limit on this machine (lydian up --step-timeout)");
  };
  RETURN_IF_ERROR(transaction->Take(writable_.get(), check));
  ASSIGN_OR_RETURN(const image::Tree upper, transaction->Upper());
  // What the runtime put in the way of mounts is not the user's.
  for (const std::string& path : {ParentPath(kArgumentsPath), std::string(kGuestSocket)}) {
    if (Status status = upper.Remove(path); !status.ok()) {
      LOG_WARN("a mount point stays in a layer", {{"task_id", spec_.task_id()}, {"error", status}});
    }
  }
  ASSIGN_OR_RETURN(const image::LayerInfo layer,
                   transaction->Commit(NewId("ly"), "run_function " + spec_.function_name()));
  return layer.id;
}

void ContainerTask::LoseLayer() {
  exit_ = LostExit("its container has not ended, so what it wrote could not be kept");
  end_error_ = exit_.text();
  DropWritable();
  pin_.reset();
  NoteExit();
  finalized_ = true;
  TrySendExit();
}

void ContainerTask::CommitLayer() {
  ground_->commits->Post([self = shared_from_this()] {
    Result<std::string> layer = self->TakeLayer();
    self->ground_->strand->Post([self, layer = std::move(layer)] {
      self->DropWritable();
      self->pin_.reset();
      if (layer.ok()) {
        self->layer_id_ = *layer;
        self->NoteExit();
      } else {
        self->end_error_ =
            layer.status().With("keeping what " + self->spec_.function_name() + " wrote").ToString();
        LOG_ERROR("a layer could not be committed",
                  {{"task_id", self->spec_.task_id()}, {"error", layer.status()}});
      }
      if (self->commit_stopped_ && !self->dropped_) return;  // the next worker tells of it
      self->finalized_ = true;
      self->TrySendExit();
    });
  });
}

void ContainerTask::TrySendExit() {
  if (!finalized_ || !logs_sent_) return;
  Update(TaskUpdate::EXITED, [this](TaskUpdate* update) {
    *update->mutable_exit() = exit_;
    update->set_layer_id(layer_id_);
    update->set_error(end_error_);
  });
  exit_sent_ = true;
  TryLeave();
}

// However long control is away: what it has not acknowledged is nowhere else.
void ContainerTask::TryLeave() {
  if (state_ != State::kEnded || removing_) return;
  if (!dropped_ && !(exit_sent_ && logs_acked_ && (!desk_ || desk_->all_acked()))) return;
  removing_ = true;
  ground_->logs->Remove(spec_.task_id());
  ground_->pool->Post([self = shared_from_this()] {
    if (Status status = RemoveTree(self->Dir()); !status.ok()) {
      LOG_WARN("a task's folder stays", {{"task_id", self->spec_.task_id()}, {"error", status}});
    }
    self->ground_->strand->Post([self] { self->ground_->gone(self->spec_.task_id()); });
  });
}

}  // namespace lydian::worker
