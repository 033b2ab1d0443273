// From a container's stdout and stderr to control: pipe -> spool file (splice: what was read is in the file
// at once, and the file's size says how far the pipe was read, so a killed worker loses nothing) -> LogBatch
// messages with offsets, until acknowledged.
//
// One thread for all containers. Bounded: a container whose output waits for control beyond a limit is not
// read from (it blocks, as at a full pipe). Batches keep their borders over a reconnect and a restart, so
// that control can drop what it has. Thread-safety: all methods. Callbacks run on the pump's thread and must
// not block; Sent and Acked of a task never after Remove returned.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/executor.h"
#include "base/fd.h"
#include "base/status.h"
#include "lydian/worker.pb.h"
#include "worker/input_desk.h"
#include "worker/lease_table.h"

namespace lydian::worker {

struct LogSource {
  std::string task_id;
  std::string dir;                    // spools: stdout.log, stderr.log
  UniqueFd stdout_pipe, stderr_pipe;  // invalid: what the spools hold is sent, nothing is read
  std::shared_ptr<LeaseTable> table;
  std::shared_ptr<RunningInput> running;
  std::function<void()>
      on_sent;  // finished and all sent over the present connection; again after each new one
  std::function<void()> on_acked;  // finished and all acknowledged; once
};

class LogPump {
 public:
  struct Options {
    uint64_t most_unacked = uint64_t{64} << 20;   // a stream
    uint64_t most_in_flight = uint64_t{4} << 20;  // bytes sent and not acknowledged, a task
    // How long a begun line waits for its '\n' or '\r'. Clients keep one begun line for all containers, so
    // what is sent before its end is mixed with others' lines. The end of the input that printed it ends it
    // too.
    Millis partial_line{1500};
    std::function<void(FromWorker)> send;
  };
  explicit LogPump(Options options);
  ~LogPump();

  Status Add(LogSource source);
  // The process has ended: takes what the pipes still hold, then tells on_sent and on_acked.
  void Finish(const std::string& task_id);
  void Acked(const LogAck& ack);
  void SetLinkUp(bool up);  // up: everything unacknowledged is sent again
  void Remove(const std::string& task_id);

 private:
  struct Segment {
    int stream;           // 0 stdout, 1 stderr
    uint64_t start, end;  // in the spool
    int64_t unix_nanos;
    std::string input_id, call_id;
  };
  struct Batch {
    std::vector<Segment> segments;
    LeaseTable::Offsets end;
    uint64_t bytes = 0;
  };
  struct Stream {
    UniqueFd pipe, spool;
    uint64_t size = 0;     // spooled
    uint64_t decided = 0;  // in segments
    uint64_t punched = 0;
    bool polled = false, by_hand = false;  // by_hand: splice doesn't work here
    bool full_disk = false;
    SteadyTime partial_since = SteadyTime::max();
    std::string partial_input, partial_call;  // whose it is
  };
  struct Source {
    LogSource config;
    Stream streams[2];
    std::deque<Segment> unsent;
    std::deque<Batch> in_flight;
    uint64_t in_flight_bytes = 0;
    LeaseTable::Offsets acked, cut;  // cut: end of the newest batch
    bool finished = false, sent = false, told_acked = false;
    SteadyTime give_up = SteadyTime::max();
  };

  void Run();
  void Post(Task task);
  void Poll(Source& source, int index, bool on);
  void Read(Source& source, int index);
  // False when the pipe has no more for now.
  bool ReadSome(Source& source, int index);
  void Decide(Source& source, int index, bool all, SteadyTime now);
  void BeginPartial(Source& source, int index, SteadyTime now);
  void EndPartials(const std::string& task_id);
  void AddSegments(Source& source, int index, uint64_t end);
  void Pump(Source& source);
  void Send(Source& source, const Batch& batch);
  void Adopt(Source& source);
  void FinishNow(Source& source);
  void Tell(Source& source);
  int Timeout(SteadyTime now);
  void OnTime(SteadyTime now);

  Options options_;
  UniqueFd epoll_, wake_;
  std::mutex mutex_;  // guards the next two
  std::deque<Task> posted_;
  bool stopping_ = false;
  // The rest belongs to the thread.
  std::map<std::string, std::unique_ptr<Source>> sources_;
  std::map<uint64_t, std::pair<Source*, int>> polled_;
  uint64_t next_poll_ = 1;
  std::map<Source*, uint64_t> poll_ids_[2];
  bool link_up_ = false;
  std::thread thread_;
};

}  // namespace lydian::worker
