// DNS for containers: 169.254.77.53, UDP and TCP, on this instance's bridge; passed on to the host's
// resolvers, wherever they are (also on the host's loopback, which containers can't reach). Caches nothing; a
// question that no resolver answers in time gets SERVFAIL.
//
// One thread. Bounded: beyond the limit of questions in flight the oldest is given up. Thread-safety: all
// methods.
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
// A SERVFAIL answer to a question; empty if it is not one.
std::string ServFail(std::string_view question);

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
  void Ask(Question& question);
  void ReadAnswer(uint64_t id);
  void Answer(Question& question, std::string_view answer);
  void AcceptStream();
  void ServeStream(uint64_t id, uint32_t events);
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
  std::thread thread_;
};

}  // namespace lydian::worker
