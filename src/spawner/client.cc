#include "spawner/client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "base/log.h"
#include "spawner/frames.h"

namespace lydian::spawner {
namespace {

constexpr int kHelloTimeoutMs = 10'000;

using Fds = std::vector<UniqueFd>;
using Answer = std::function<void(Result<SpawnerReply>, Fds)>;

Status FromWire(const SpawnError& error) {
  // The runtime's own text begins with the step already.
  bool named = error.step().empty() || error.message().starts_with(error.step() + ":");
  std::string text = named ? error.message() : error.step() + ": " + error.message();
  Code code = error.code() > 0 && error.code() <= 16 ? static_cast<Code>(error.code()) : Code::kInternal;
  return Status(code, std::move(text), error.error());
}

size_t NamedFds(const SpawnerReply& reply) {
  size_t count = 0;
  if (reply.has_container()) {
    count += reply.container().fds_size();
    for (const ExecInfo& exec : reply.container().execs()) count += exec.fds_size();
  }
  if (reply.has_exec()) count += reply.exec().fds_size();
  return count;
}

Container ToContainer(SpawnerReply reply, Fds fds) {
  Container container;
  container.info = std::move(*reply.mutable_container());
  size_t at = 0;
  for (const std::string& name : container.info.fds()) container.fds[name] = std::move(fds[at++]);
  for (const ExecInfo& exec : container.info.execs()) {
    for (const std::string& name : exec.fds())
      container.exec_fds[exec.exec_id()][name] = std::move(fds[at++]);
  }
  return container;
}

// What the reader thread and the client share: whoever goes last takes it along.
struct Connection {
  UniqueFd socket;
  ClientEvents events;
  std::mutex mutex;  // guards pending, next_id, broken
  std::map<uint64_t, Answer> pending;
  uint64_t next_id = 1;
  Status broken;
  std::mutex write_mutex;  // one frame after the other
  std::atomic<bool> closed{false};

  void Dispatch(SpawnerReply reply, Fds fds) {
    if (reply.id() == 0) {
      if (reply.has_exit() && events.on_exit && !closed) events.on_exit(reply.exit());
      return;
    }
    Answer answer;
    {
      std::lock_guard lock(mutex);
      auto found = pending.find(reply.id());
      if (found == pending.end()) return;
      answer = std::move(found->second);
      pending.erase(found);
    }
    if (reply.has_error()) {
      answer(FromWire(reply.error()), {});
    } else {
      answer(std::move(reply), std::move(fds));
    }
  }

  Status Handle(FrameReader& reader) {
    while (true) {
      ASSIGN_OR_RETURN(auto frame, reader.Next());
      if (!frame) return OkStatus();
      SpawnerReply reply;
      if (!reply.ParseFromString(*frame)) return InvalidArgument("the spawner sent bytes that are no reply");
      ASSIGN_OR_RETURN(Fds fds, reader.TakeFds(NamedFds(reply)));
      Dispatch(std::move(reply), std::move(fds));
    }
  }

  void ReadLoop(FrameReader reader) {
    Status status = Handle(reader);  // what came with the hello
    while (status.ok()) {
      auto outcome = reader.Read(socket.get());
      if (!outcome.ok()) {
        status = outcome.status();
      } else if (*outcome == FrameReader::Outcome::kEnd) {
        status = Unavailable("the connection to the spawner has ended");
      } else {
        status = Handle(reader);
      }
    }
    Fail(Unavailable(status.message()));
  }

  void Fail(Status status) {
    std::map<uint64_t, Answer> open;
    {
      std::lock_guard lock(mutex);
      broken = status;
      open.swap(pending);
    }
    ::shutdown(socket.get(), SHUT_RDWR);
    for (auto& [id, answer] : open) answer(status, {});
    if (!closed && events.on_disconnect) events.on_disconnect(status);
  }
};

class SocketClient : public Client {
 public:
  SocketClient(std::shared_ptr<Connection> connection, int pid, FrameReader reader)
      : connection_(std::move(connection)), pid_(pid) {
    reader_ = std::thread([connection = connection_, reader = std::move(reader)]() mutable {
      connection->ReadLoop(std::move(reader));
    });
  }

  ~SocketClient() override {
    connection_->closed = true;
    ::shutdown(connection_->socket.get(), SHUT_RDWR);
    if (std::this_thread::get_id() == reader_.get_id()) {
      reader_.detach();
    } else {
      reader_.join();
    }
  }

  int pid() const override { return pid_; }

  void Create(Job job, std::function<void(Result<Container>)> reply) override {
    CreateInheriting(std::move(job), {}, std::move(reply));
  }

  void CreateInheriting(Job job, Fds stdio, std::function<void(Result<Container>)> reply) override {
    SpawnerRequest request;
    *request.mutable_create() = std::move(job);
    Send(std::move(request), std::move(stdio), ContainerAnswer(std::move(reply)));
  }

  void Exec(ExecRequest exec, std::function<void(Result<spawner::Exec>)> reply) override {
    SpawnerRequest request;
    *request.mutable_exec() = std::move(exec);
    Send(std::move(request), {}, [reply = std::move(reply)](Result<SpawnerReply> answer, Fds fds) {
      if (!answer.ok()) return reply(answer.status());
      spawner::Exec exec;
      exec.info = std::move(*answer->mutable_exec());
      for (int i = 0; i < exec.info.fds_size(); ++i) exec.fds[exec.info.fds(i)] = std::move(fds[i]);
      reply(std::move(exec));
    });
  }

  void Signal(const std::string& container_id, const std::string& exec_id, int signal,
              std::function<void(Status)> reply) override {
    SpawnerRequest request;
    request.mutable_signal()->set_container_id(container_id);
    request.mutable_signal()->set_exec_id(exec_id);
    request.mutable_signal()->set_signal(signal);
    Send(std::move(request), {}, DoneAnswer(std::move(reply)));
  }

  void Kill(const std::string& container_id, std::function<void(Status)> reply) override {
    SpawnerRequest request;
    request.set_kill(container_id);
    Send(std::move(request), {}, DoneAnswer(std::move(reply)));
  }

  void Remove(const std::string& container_id, std::function<void(Status)> reply) override {
    SpawnerRequest request;
    request.set_remove(container_id);
    Send(std::move(request), {}, DoneAnswer(std::move(reply)));
  }

  void List(std::function<void(Result<ContainerList>)> reply) override {
    SpawnerRequest request;
    request.mutable_list();
    Send(std::move(request), {}, [reply = std::move(reply)](Result<SpawnerReply> answer, Fds) {
      if (!answer.ok()) return reply(answer.status());
      reply(std::move(*answer->mutable_list()));
    });
  }

  void Attach(const std::string& container_id, std::function<void(Result<Container>)> reply) override {
    SpawnerRequest request;
    request.set_attach(container_id);
    Send(std::move(request), {}, ContainerAnswer(std::move(reply)));
  }

  void CloseStdin(const std::string& container_id, const std::string& exec_id,
                  std::function<void(Status)> reply) override {
    SpawnerRequest request;
    request.mutable_close_stdin()->set_container_id(container_id);
    request.mutable_close_stdin()->set_exec_id(exec_id);
    Send(std::move(request), {}, DoneAnswer(std::move(reply)));
  }

  void MakePlan(Job job, std::function<void(Result<Plan>)> reply) override {
    SpawnerRequest request;
    *request.mutable_plan() = std::move(job);
    Send(std::move(request), {}, [reply = std::move(reply)](Result<SpawnerReply> answer, Fds) {
      if (!answer.ok()) return reply(answer.status());
      reply(std::move(*answer->mutable_plan()));
    });
  }

  void DrainPools(std::function<void(Status)> reply) override {
    SpawnerRequest request;
    request.mutable_drain_pools();
    Send(std::move(request), {}, DoneAnswer(std::move(reply)));
  }

 private:
  static Answer ContainerAnswer(std::function<void(Result<Container>)> reply) {
    return [reply = std::move(reply)](Result<SpawnerReply> answer, Fds fds) {
      if (!answer.ok()) return reply(answer.status());
      reply(ToContainer(std::move(*answer), std::move(fds)));
    };
  }

  static Answer DoneAnswer(std::function<void(Status)> reply) {
    return [reply = std::move(reply)](Result<SpawnerReply> answer, Fds) {
      if (reply) reply(answer.status());
    };
  }

  // The socket blocks: the spawner always reads on, whatever it has to send.
  void Send(SpawnerRequest request, Fds fds, Answer answer) {
    // Under this lock from id to socket, so that requests arrive in the order of their ids.
    std::lock_guard writing(connection_->write_mutex);
    Status broken;
    {
      std::lock_guard lock(connection_->mutex);
      broken = connection_->broken;
      request.set_id(connection_->next_id++);
      if (broken.ok() && request.ByteSizeLong() > kMaxFrameBytes) {
        broken = InvalidArgument("a request of " + std::to_string(request.ByteSizeLong()) +
                                 " bytes is too large for the spawner");
      }
      if (broken.ok()) connection_->pending[request.id()] = std::move(answer);
    }
    if (!broken.ok()) return answer(broken, {});  // NOLINT(bugprone-use-after-move): moved only if not
    FrameWriter writer;
    writer.Push(request.SerializeAsString(), std::move(fds));
    auto sent = writer.Write(connection_->socket.get());
    // The reader sees the end of it, and fails this request with the others.
    if (!sent.ok()) ::shutdown(connection_->socket.get(), SHUT_RDWR);
  }

  std::shared_ptr<Connection> connection_;
  int pid_;
  std::thread reader_;
};

Result<SpawnerReply> ReadHello(int socket, FrameReader& reader) {
  while (true) {
    ASSIGN_OR_RETURN(auto frame, reader.Next());
    if (frame) {
      SpawnerReply reply;
      if (!reply.ParseFromString(*frame) || !reply.has_hello()) {
        return InvalidArgument("what listens there does not speak the spawner's protocol");
      }
      return reply;
    }
    pollfd wait{socket, POLLIN, 0};
    int ready = ::poll(&wait, 1, kHelloTimeoutMs);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return ErrnoStatus("waiting for the spawner");
    if (ready == 0) return Unavailable("the spawner does not answer");
    ASSIGN_OR_RETURN(auto outcome, reader.Read(socket));
    if (outcome == FrameReader::Outcome::kEnd) return Unavailable("the spawner has closed the connection");
  }
}

}  // namespace

void Client::CloseStdin(const std::string&, const std::string&, std::function<void(Status)> reply) {
  reply(Unimplemented("closing the stdin of a process"));
}

Result<std::unique_ptr<Client>> Client::Connect(const std::string& socket_path, ClientEvents events) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof address.sun_path)
    return InvalidArgument("the path is too long for a socket: " + socket_path);
  std::memcpy(address.sun_path, socket_path.data(), socket_path.size());
  auto connection = std::make_shared<Connection>();
  connection->socket.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!connection->socket.valid()) return ErrnoStatus("making a socket");
  if (::connect(connection->socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return Unavailable(ErrnoStatus("connecting to the spawner at " + socket_path).message());
  }
  connection->events = std::move(events);
  FrameReader reader;
  auto hello = ReadHello(connection->socket.get(), reader);
  if (!hello.ok()) return std::move(hello).With("connecting to the spawner at " + socket_path).status();
  int pid = hello->hello().pid();
  return std::unique_ptr<Client>(
      std::make_unique<SocketClient>(std::move(connection), pid, std::move(reader)));
}

}  // namespace lydian::spawner
