// DNS for containers: 169.254.77.53, UDP and TCP, on this instance's bridge; passed on to the host's
// resolvers, wherever they are (also on the host's loopback, which containers can't reach). Caches nothing; a
// question that no resolver answers in time gets SERVFAIL.
//
// Passes on plain questions alone: one question of the operation QUERY, no zone transfers; the rest is
// answered NOTIMP, REFUSED or FORMERR here, since a resolver may trust this host with more.
//
// One thread. Bounded, in all and by asker: a container that asks too much loses its own oldest question or
// connection, and when there are too many in all, who has most loses one. Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/executor.h"
#include "base/fd.h"
#include "base/status.h"

namespace lydian::worker {

// The nameservers of a resolv.conf, at most three ("127.0.0.1" when it names none, as for the host).
std::vector<std::string> ParseResolvConf(std::string_view text);
// An answer to a question that says no more than the code (RFC 1035: 2 is SERVFAIL); empty if it is not a
// question.
std::string ErrorAnswer(std::string_view question, int code);
// 0 for a question that may be passed on, else the code of the answer to it; -1 for what gets none.
int Judge(std::string_view question);

// The mark without which the machine sends nothing to containers: runtime/ruleset.h (kPacketMark).
inline constexpr uint32_t kAnswerMark = 0x10000000;

class DnsRelay {
 public:
  struct Options {
    std::string bridge;  // bound to this interface; "" = to none
    std::string address = "169.254.77.53";
    uint16_t port = 53;
    std::string resolv_conf = "/etc/resolv.conf";
    uint16_t upstream_port = 53;
    int timeout_ms = 2000;  // of one resolver; then the next is asked
    size_t most_in_flight = 512;
    size_t most_in_flight_each = 64;  // of one container
    size_t most_streams = 128;
    size_t most_streams_each = 8;
    uint32_t mark = 0;  // of the packets that answer (SO_MARK)
  };
  explicit DnsRelay(Options options);
  ~DnsRelay();
  // Binds as soon as the bridge is there (it is made with the first container), and again when it is made
  // anew.
  void Open();
  // For tests: the port it got; 0 while unbound.
  uint16_t BoundPort();

 private:
  struct Question;
  struct Stream;
  void Run();
  void Post(Task task);
  Status Bind();
  void LookForBridge();
  void ReadQuestions();
  // Its place among the questions in flight, made by giving up another if need be.
  Question& Add(std::unique_ptr<Question> question);
  void Ask(Question& question);
  void ReadAnswer(uint64_t id);
  void Answer(Question& question, std::string_view answer);
  void AcceptStream();
  void ServeStream(uint64_t id, uint32_t events);
  void ReadStream(Stream& stream);
  void DropStream(uint64_t id);
  // A stream that has been answered goes on with its next question, in the loop and not from within the
  // answer.
  void ServeAnswered();
  int Sweep();

  const Options options_;
  UniqueFd epoll_, wake_, links_, udp_, tcp_;
  std::mutex mutex_;  // guards the next two
  std::deque<Task> posted_;
  bool stopping_ = false;
  // The rest belongs to the thread.
  unsigned int bound_index_ = 0;  // of the bridge
  uint64_t next_id_ = 16;
  std::map<uint64_t, std::unique_ptr<Question>> questions_;
  std::map<uint64_t, std::unique_ptr<Stream>> streams_;
  std::vector<uint64_t> answered_;  // streams
  std::thread thread_;
};

}  // namespace lydian::worker
