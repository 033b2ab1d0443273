// From a stream of the LogStore to a client that follows it: page by page, with back-pressure, until its end,
// the client's timeout or the client is gone. Private to api/. Thread-safety: everything on the objects
// strand; the store's callbacks are brought there.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api/turns.h"
#include "base/executor.h"
#include "control/log_store.h"
#include "rpc/router.h"

namespace lydian::api {

class LogPump : public std::enable_shared_from_this<LogPump> {
 public:
  struct Options {
    std::string stream;
    std::string workspace;  // whose turn it is to read
    uint64_t after = 0;
    control::LogFilter filter;
    double timeout_secs = 0;  // 0: what there is, then the end
    std::function<void(const std::vector<control::LogRecord>&)> write;
    std::function<void()> keep_alive;  // may be null
    // Last: `done` when the stream is closed and all of it was written; else the time is over.
    std::function<void(Result<bool> done)> end;
  };
  // `turns`: for whole pages, so that many who follow long logs don't have a page each in memory.
  static std::shared_ptr<LogPump> Start(Strand* strand, control::LogStore* logs, std::shared_ptr<Turns> turns,
                                        rpc::Ctx ctx, std::shared_ptr<rpc::RawStream> out, Options options);
  // Writes what there is, then ends as if the stream were done.
  void EndSoon();
  bool over() const { return over_; }

 private:
  LogPump(Strand* strand, control::LogStore* logs, std::shared_ptr<Turns> turns,
          std::shared_ptr<rpc::RawStream> out, Options options);
  void Next();
  void Read(size_t most, int64_t wait_ms);
  void OnPage(uint64_t asked, Result<control::LogStore::Page> page);
  void Stop(bool tell, Result<bool> how);

  Strand* strand_;
  control::LogStore* logs_;
  std::shared_ptr<Turns> turns_;
  std::shared_ptr<rpc::RawStream> out_;
  Options options_;
  SteadyTime until_;
  uint64_t asked_ = 0;  // answers of an earlier question are ignored
  bool over_ = false, end_soon_ = false;
  bool caught_up_ = false;  // nothing was there when it asked last
  std::shared_ptr<void> question_, turn_;
};

// Which pumps follow an app's log.
class LogStreams {
 public:
  void Add(const std::string& app_id, const std::shared_ptr<LogPump>& pump);
  void End(const std::string& app_id);
  // Somebody's connection follows it now.
  bool Followed(const std::string& app_id) const;

 private:
  std::map<std::string, std::vector<std::weak_ptr<LogPump>>> pumps_;
};

// "12-0" -> 12; "" and "0-0" -> 0. INVALID_ARGUMENT for anything else.
Result<uint64_t> ParseCursor(const std::string& entry_id);
std::string Cursor(uint64_t seq);

}  // namespace lydian::api
