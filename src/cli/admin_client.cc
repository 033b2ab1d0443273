#include "cli/admin_client.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "base/fd.h"

namespace lydian::cli {
namespace {

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

// Whether somebody listens there: a channel would try again and again, and say nothing of why.
Status TryConnect(const std::string& path, const std::string& role) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return InvalidArgument("the path is too long for a socket: " + path);
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return ErrnoStatus("making a socket");
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return OkStatus();
  if (errno == EACCES || errno == EPERM)
    return PermissionDenied("this needs to be run as root (" + path + ")");
  if (errno == ENOENT || errno == ECONNREFUSED)
    return Unavailable((role == "control" ? "" : "the ") + role + " is not up (`lydian up` starts it)");
  return ErrnoStatus("connecting to " + path);
}

// What callbacks bring, for the thread that waits.
struct Inbox {
  std::mutex mutex;  // guards the rest
  std::condition_variable changed;
  std::deque<std::string> messages;
  std::optional<Status> done;
};

// Cancels a call when a stop signal comes, while it lives.
class SignalWatch {
 public:
  explicit SignalWatch(std::shared_ptr<rpc::ClientCall> call) : call_(std::move(call)) {
    thread_ = std::thread([this] {
      sigset_t signals = StopSignals();
      sigaddset(&signals, SIGUSR1);
      int signal = 0;
      while (true) {
        if (::sigwait(&signals, &signal) != 0) continue;
        if (over_) return;
        if (signal != SIGUSR1) call_->Cancel();
      }
    });
  }
  ~SignalWatch() {
    over_ = true;
    ::pthread_kill(thread_.native_handle(), SIGUSR1);
    thread_.join();
  }

 private:
  std::shared_ptr<rpc::ClientCall> call_;
  std::atomic<bool> over_{false};
  std::thread thread_;
};

}  // namespace

void BlockStopSignals() {
  sigset_t signals = StopSignals();
  sigaddset(&signals, SIGUSR1);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

Result<AdminClient> AdminClient::Connect(const StatePaths& paths, const std::string& service) {
  AdminClient client;
  client.service_ = service;
  bool control = service == kControlAdmin;
  client.role_ = control ? "control" : "worker";
  std::string path = control ? paths.control_admin() : paths.worker_admin();
  RETURN_IF_ERROR(TryConnect(path, client.role_));
  ::setenv("GRPC_VERBOSITY", "NONE", 0);  // what it would print is no news for a person
  client.channel_ = rpc::Channel::Create("unix:" + path);
  return client;
}

Result<std::string> AdminClient::CallRaw(const std::string& method, const std::string& request,
                                         Millis timeout) {
  auto answer = channel_->CallBlocking("/" + service_ + "/" + method, request, {}, timeout);
  if (answer.status().code() == Code::kDeadlineExceeded) return Unavailable(role_ + " does not answer");
  return answer;
}

Status AdminClient::Stream(const std::string& method, const std::string& request,
                           const std::function<Status(const std::string&)>& on_message) {
  auto inbox = std::make_shared<Inbox>();
  rpc::ClientCallbacks callbacks;
  callbacks.on_message = [inbox](std::string message) {
    std::lock_guard lock(inbox->mutex);
    inbox->messages.push_back(std::move(message));
    inbox->changed.notify_one();
  };
  callbacks.on_done = [inbox](Status status, rpc::Metadata) {
    std::lock_guard lock(inbox->mutex);
    inbox->done = std::move(status);
    inbox->changed.notify_one();
  };
  auto call = channel_->Start("/" + service_ + "/" + method, {}, std::move(callbacks));
  SignalWatch watch(call);
  call->Write(request);
  call->WritesDone();
  Status failed;
  while (true) {
    std::unique_lock lock(inbox->mutex);
    inbox->changed.wait(lock, [&] { return !inbox->messages.empty() || inbox->done; });
    if (inbox->messages.empty()) return failed.ok() ? *inbox->done : failed;
    std::string message = std::move(inbox->messages.front());
    inbox->messages.pop_front();
    lock.unlock();
    if (!failed.ok()) continue;
    failed = on_message(message);
    if (!failed.ok()) call->Cancel();
  }
}

}  // namespace lydian::cli
