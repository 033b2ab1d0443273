// The worker's connection to control: one bidirectional stream of lydian.WorkerLink/Attach, made again
// whenever it breaks, and calls beside it that are held while control is away.
//
// Thread-safety: all methods. Callbacks come on the strand. Ownership: the channel is the link's.
// Errors: Send drops a message while the stream is down. What counts is said again in on_welcome, which runs
// on the strand in the turn in which the link comes up: what is held and what is said after it fit together.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "base/executor.h"
#include "base/status.h"
#include "lydian/worker.pb.h"
#include "rpc/channel.h"

namespace lydian::worker {

class Link {
 public:
  struct Hooks {
    std::function<WorkerHello()> make_hello;
    std::function<void(const Welcome&)> on_welcome;
    std::function<void()> on_down;
    std::function<void(ToWorker)> on_message;  // all but the welcome
  };
  // `channel` is used for the stream and for calls.
  Link(std::unique_ptr<rpc::Channel> channel, Strand* strand, Hooks hooks);
  ~Link();

  void Start();
  void Stop();  // cancels all; not from the strand
  void Send(FromWorker message);
  // With `soon` it may wait a few milliseconds for others: a message each costs both ends more than the
  // output itself. Whatever is sent after it arrives after it.
  void SendOutput(const Output& output, bool soon);
  bool up() const { return up_; }
  rpc::Channel& channel() { return *channel_; }

  // Runs `task` on the strand when the link is up: at once if it is, else after the next welcome.
  void WhenUp(Task task);
  // The same, a moment later: for a call that control refused though the stream stands.
  void WhenUpAfterPause(Task task);
  // A unary call, repeated with the same idempotency key while control is away. Reply on any thread.
  void Call(const std::string& full_method, std::string request, rpc::Metadata metadata,
            std::function<void(Result<std::string>)> reply);

 private:
  void Connect();
  void Closed(uint64_t generation, const Status& status);
  void Received(uint64_t generation, ToWorker message);
  void SendGathered();  // mutex_ held

  std::unique_ptr<rpc::Channel> channel_;
  Strand* strand_;
  Hooks hooks_;
  std::atomic<bool> up_{false};
  std::mutex mutex_;  // guards the four below
  std::shared_ptr<rpc::ClientCall> call_;
  Outputs gathered_;
  size_t gathered_bytes_ = 0;
  bool gathering_ = false;  // a timer will send them
  // On the strand:
  uint64_t generation_ = 0;
  int failures_ = 0;
  bool stopped_ = false;
  std::list<Task> waiting_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace lydian::worker
