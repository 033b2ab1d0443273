#include "control/log_store.h"

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <unordered_map>

#include "base/clock.h"
#include "base/executor.h"
#include "base/log.h"
#include "base/patient_clock.h"
#include "base/text.h"
#include "control/log_rows.h"
#include "control/log_store_state.h"
#include "store/database.h"

namespace lydian::control {
namespace {

constexpr size_t kTailBytes = 128 << 10;  // kept in memory a stream, for readers that follow
constexpr auto kRetry = std::chrono::milliseconds(500);
constexpr size_t kReaders = 3;
constexpr double kKeepStreamSecs = 30 * 86'400;  // of what has ended, however short its lines may live
constexpr auto kSweepEvery = std::chrono::hours(1);
constexpr size_t kAgedRows = 2000;  // of one commit
// What is over a quota goes with this part of the quota beside, so that it isn't done for each line.
constexpr uint64_t kTrimShare = 32;
constexpr size_t kTrimRows = 5000;
constexpr int kMostTrimmed = 8;  // streams, in one commit

Result<uint64_t> TotalBytes(store::Session& session) {
  ASSIGN_OR_RETURN(auto rows, session.Query("SELECT COALESCE(SUM(bytes), 0) FROM stream"));
  return static_cast<uint64_t>(rows[0].Int(0));
}

// What passes by itself: a full disk, a database that another holds.
bool Passes(const Status& status) {
  return status.code() == Code::kResourceExhausted || status.code() == Code::kUnavailable;
}

// A strand owns everything: it commits what has gathered as one transaction and then wakes the readers. Old
// pages are read by threads of their own.
class SqliteLogStore : public LogStore {
 public:
  SqliteLogStore(std::unique_ptr<store::Database> database, LogQuota quota, uint64_t total, Clock& clock)
      : database_(std::move(database)),
        quota_(quota),
        ages_(clock, database_->path() + "-clock"),
        total_bytes_(total),
        readers_("logs-read", kReaders),
        strand_("logs") {
    strand_.Post([this] { Sweep(ages_.Look()); });
  }
  ~SqliteLogStore() override {
    readers_.Stop();
    strand_.Stop();
    // What was appended and not taken up yet is still written; those who wait for it may be gone already.
    streams_.clear();
    for (Change& change : waiting_) change.stored = nullptr;
    for (Change& change : gathered_) change.stored = nullptr;
    retry_ = false;
    Flush();
  }

  void Append(const std::string& stream, std::vector<LogRecord> records,
              std::function<void()> stored) override {
    Change change{Change::kAppend, stream, std::move(records), std::move(stored)};
    Add(std::move(change));
  }
  void AppendFromTask(const std::string& stream, std::vector<LogRecord> records, const std::string& task_id,
                      uint64_t stdout_offset, uint64_t stderr_offset, std::function<void()> stored) override {
    Change change{Change::kAppend, stream, std::move(records), std::move(stored)};
    change.task_id = task_id;
    change.stdout_offset = stdout_offset;
    change.stderr_offset = stderr_offset;
    Add(std::move(change));
  }
  void MarkDone(const std::string& stream) override { Add({Change::kDone, stream, {}, nullptr}); }
  void Reopen(const std::string& stream) override { Add({Change::kReopen, stream, {}, nullptr}); }

  void TaskOffsets(const std::string& task_id, std::function<void(uint64_t, uint64_t)> reply) override {
    strand_.Post([this, task_id, reply = std::move(reply)] {
      Flush();
      auto rows =
          database_->Query("SELECT stdout_offset, stderr_offset FROM spool WHERE task_id = ?", {task_id});
      if (!rows.ok())
        LOG_ERROR("how far a task's logs are stored can't be read",
                  {{"task_id", task_id}, {"error", rows.status()}});
      if (!rows.ok() || rows->empty()) return reply(0, 0);
      reply(static_cast<uint64_t>((*rows)[0].Int(0)), static_cast<uint64_t>((*rows)[0].Int(1)));
    });
  }

  std::shared_ptr<void> Read(const std::string& stream, uint64_t after_seq, const LogFilter& filter,
                             size_t most, int64_t wait_millis,
                             std::function<void(Result<Page>)> reply) override {
    auto question = std::make_shared<Question>();
    question->stream = stream;
    question->after = after_seq;
    question->filter = filter;
    question->most = most == 0 ? 1 : most;
    question->reply = std::move(reply);
    question->deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_millis);
    std::weak_ptr<Question> weak = question;
    strand_.Post([this, weak] {
      if (auto asked = weak.lock()) Serve(asked);
    });
    return question;
  }

  std::shared_ptr<void> ReadNewest(const std::string& stream, size_t most,
                                   std::function<void(Result<Page>)> reply) override {
    auto asked = std::make_shared<std::function<void(Result<Page>)>>(std::move(reply));
    strand_.Post([this, stream, most, weak = std::weak_ptr(asked)] {
      auto found = Find(stream);
      const int64_t number = found.ok() ? (*found)->number : 0;
      readers_.Post([this, number, most, weak, status = found.status()] {
        auto reply = weak.lock();
        if (reply == nullptr) return;
        (*reply)(status.ok()
                     ? ReadNewestLogs(*database_, number, {}, "", most, kLogPageBytes, [] { return true; })
                     : status);
      });
    });
    return asked;
  }

  std::shared_ptr<void> ReadLast(const std::string& stream, const LogFilter& filter, const std::string& text,
                                 size_t most, uint64_t bytes,
                                 std::function<void(Result<Page>)> reply) override {
    auto asked = std::make_shared<std::function<void(Result<Page>)>>(std::move(reply));
    strand_.Post([this, stream, filter, text, most, bytes, weak = std::weak_ptr(asked)] {
      Flush();
      auto found = Find(stream);
      const int64_t number = found.ok() ? (*found)->number : 0;
      readers_.Post([this, number, filter, text, most, bytes, weak, status = found.status()] {
        if (weak.expired()) return;
        Result<Page> page = status.ok() ? ReadNewestLogs(*database_, number, filter, text, most, bytes,
                                                         [&weak] { return !weak.expired(); })
                                        : status;
        if (auto reply = weak.lock()) (*reply)(std::move(page));
      });
    });
    return asked;
  }

  Result<std::vector<StreamSize>> Sizes() override {
    std::vector<StreamSize> all;
    RETURN_IF_ERROR(database_->ForEach("SELECT name, bytes FROM stream", {}, [&](store::Row& row) -> Status {
      all.push_back({row.TakeText(0), static_cast<uint64_t>(row.Int(1))});
      return {};
    }));
    return all;
  }

 private:
  using Change = LogChange;
  using Question = LogQuestion;
  using StreamState = LogStreamState;

  void Add(Change change) {
    {
      std::lock_guard lock(mutex_);
      gathered_.push_back(std::move(change));
      if (flush_posted_) return;
      flush_posted_ = true;
    }
    strand_.Post([this] { Flush(); });
  }

  Result<StreamState*> Find(const std::string& name) {
    auto it = streams_.find(name);
    if (it != streams_.end()) return &it->second;
    StreamState state;
    ASSIGN_OR_RETURN(
        auto rows,
        database_->Query("SELECT number, done, bytes, dropped FROM stream WHERE name = ?", {name}));
    if (!rows.empty()) {
      state.number = rows[0].Int(0);
      state.done = rows[0].Int(1) != 0;
      state.bytes = static_cast<uint64_t>(rows[0].Int(2));
      state.dropped = static_cast<uint64_t>(rows[0].Int(3));
      ASSIGN_OR_RETURN(
          auto last, database_->Query("SELECT id FROM log WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
                                      {LogRowId(state.number, 0), LogRowId(state.number, UINT32_MAX)}));
      if (!last.empty()) state.last = static_cast<uint64_t>(last[0].Int(0)) & UINT32_MAX;
    }
    return &streams_.emplace(name, std::move(state)).first->second;
  }

  // Writes one change; `fresh` becomes false when it was stored before.
  Status Apply(store::Session& session, Change& change, StreamState& state, bool& fresh) {
    int64_t now = SystemClock().UnixNanos();
    fresh = true;
    if (state.number == 0) {
      ASSIGN_OR_RETURN(auto rows, session.Query("SELECT COALESCE(MAX(number), 0) + 1 FROM stream"));
      state.number = rows[0].Int(0);
      RETURN_IF_ERROR(
          session.Execute("INSERT INTO stream (number, name, done, changed_at) VALUES (?, ?, 0, ?)",
                          {state.number, change.stream, now}));
    }
    if (change.kind != Change::kAppend) {
      return session.Execute("UPDATE stream SET done = ?, changed_at = ? WHERE number = ?",
                             {change.kind == Change::kDone ? 1 : 0, now, state.number});
    }
    if (!change.task_id.empty()) {
      ASSIGN_OR_RETURN(
          int64_t moved,
          session.Change(
              "INSERT INTO spool (task_id, stdout_offset, stderr_offset, at) VALUES (?, ?, ?, ?) ON CONFLICT "
              "(task_id) DO UPDATE SET stdout_offset = excluded.stdout_offset, stderr_offset = "
              "excluded.stderr_offset, at = excluded.at WHERE excluded.stdout_offset > spool.stdout_offset "
              "OR "
              "excluded.stderr_offset > spool.stderr_offset",
              {change.task_id, change.stdout_offset, change.stderr_offset, now}));
      if (moved == 0) {
        fresh = false;
        return {};
      }
    }
    for (size_t i = 0; i < change.records.size(); ++i) {
      LogRecord& record = change.records[i];
      record.seq = state.last + i + 1;
      if (record.unix_nanos == 0) record.unix_nanos = now;
      RETURN_IF_ERROR(Insert(session, state, record));
    }
    return {};
  }

  Status Insert(store::Session& session, StreamState& state, const LogRecord& record) {
    RETURN_IF_ERROR(session.Execute(
        "INSERT INTO log (id, unix_nanos, fd, task_state, task_id, function_id, root_function_id, input_id, "
        "function_call_id, container_id, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        {LogRowId(state.number, record.seq), record.unix_nanos, record.file_descriptor, record.task_state,
         record.task_id, record.function_id, record.root_function_id, record.input_id,
         record.function_call_id, record.container_id, record.data}));
    state.bytes += LogBytes(record);
    total_bytes_ += LogBytes(record);
    return {};
  }

  // The oldest lines go, at least this much of them but never the newest; one line in their place says so.
  Status Trim(store::Session& session, StreamState& state, uint64_t excess, const std::string& why) {
    LogRecord note;
    uint64_t freed = 0, lines = 0;
    bool all = false;
    while (freed < excess && !all) {
      ASSIGN_OR_RETURN(auto rows, session.Query("SELECT id, LENGTH(CAST(data AS BLOB)), unix_nanos FROM log "
                                                "WHERE id > ? AND id < ? ORDER BY id LIMIT ?",
                                                {LogRowId(state.number, note.seq),
                                                 LogRowId(state.number, state.last), kTrimRows}));
      all = rows.size() < kTrimRows;
      for (store::Row& row : rows) {
        if (freed >= excess) break;
        note.seq = static_cast<uint64_t>(row.Int(0)) & UINT32_MAX;
        note.unix_nanos = row.Int(2);
        freed += static_cast<uint64_t>(row.Int(1)) + kLogRowBytes;
        ++lines;
      }
    }
    if (lines == 0) return {};
    RETURN_IF_ERROR(session.Execute("DELETE FROM log WHERE id BETWEEN ? AND ?",
                                    {LogRowId(state.number, 0), LogRowId(state.number, note.seq)}));
    state.dropped += lines - (state.dropped > 0 ? 1 : 0);  // the line of last time isn't one of theirs
    state.bytes -= std::min(state.bytes, freed);
    total_bytes_ -= std::min(total_bytes_, freed);
    state.trimmed = note.seq;
    note.file_descriptor = 3;
    note.data =
        "[" + std::to_string(state.dropped) + " earlier lines of this log were dropped: " + why + "]\n";
    return Insert(session, state, note);
  }

  Status KeepToQuota(store::Session& session, std::map<std::string, StreamState>& touched) {
    auto over = [](uint64_t bytes, uint64_t quota) {
      return bytes > quota ? bytes - quota + quota / kTrimShare : 0;
    };
    auto mib = [](uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; };
    auto save = [&](const StreamState& state) {
      return session.Execute("UPDATE stream SET bytes = ?, dropped = ? WHERE number = ?",
                             {state.bytes, state.dropped, state.number});
    };
    for (auto& [name, before] : touched) {
      StreamState& state = streams_[name];
      if (uint64_t excess = over(state.bytes, quota_.stream_bytes); excess > 0) {
        RETURN_IF_ERROR(Trim(session, state, excess, "it may have " + mib(quota_.stream_bytes)));
      }
      if (state.bytes != before.bytes) RETURN_IF_ERROR(save(state));
    }
    for (int i = 0; i < kMostTrimmed && total_bytes_ > quota_.total_bytes; ++i) {
      ASSIGN_OR_RETURN(auto largest, session.Query("SELECT name FROM stream ORDER BY bytes DESC LIMIT 1"));
      if (largest.empty()) break;
      ASSIGN_OR_RETURN(StreamState * state, Find(largest[0].Text(0)));
      touched.emplace(largest[0].Text(0), Scalars(*state));
      RETURN_IF_ERROR(
          Trim(session, *state, std::min(over(total_bytes_, quota_.total_bytes), state->bytes / 2),
               "all logs together may have " + mib(quota_.total_bytes) + ", and it was the largest"));
      RETURN_IF_ERROR(save(*state));
    }
    return {};
  }

  // What has gathered, unless it waits for its next try.
  void Flush() {
    {
      std::lock_guard lock(mutex_);
      flush_posted_ = false;
      std::move(gathered_.begin(), gathered_.end(), std::back_inserter(waiting_));
      gathered_.clear();
    }
    if (!waiting_.empty() && !retry_) WriteWaiting();
  }

  // All in one transaction; if that fails each on its own, so that one change's trouble isn't another's.
  void WriteWaiting() {
    std::vector<Change> changes;
    changes.swap(waiting_);
    Status status = Write(changes);
    if (!status.ok() && !Passes(status) && changes.size() > 1) {
      LOG_WARN("logs could not be stored together; each is tried alone", {{"error", status}});
      std::vector<Change> all;
      all.swap(changes);
      size_t done = 0;
      for (status = {}; done < all.size(); ++done) {
        changes.clear();
        changes.push_back(std::move(all[done]));
        status = Write(changes);
        if (Passes(status)) break;
        if (!status.ok()) Drop(changes[0], status);
      }
      if (!Passes(status)) status = {};
      if (done < all.size())
        std::move(all.begin() + static_cast<ptrdiff_t>(done) + 1, all.end(), std::back_inserter(changes));
    } else if (!status.ok() && !Passes(status)) {
      Drop(changes[0], status);
      status = {};
    }
    if (status.ok()) {
      if (std::exchange(stuck_, false)) LOG_INFO("logs are stored again");
      return;
    }
    waiting_ = std::move(changes);
    if (!std::exchange(stuck_, true))
      LOG_ERROR("logs can't be stored; they are kept and tried again until they can", {{"error", status}});
    retry_ = true;
    strand_.PostAfter(kRetry, [this] {
      retry_ = false;
      Flush();
    });
  }

  // It will fail as often as it is tried. Who waits for it goes on.
  void Drop(Change& change, const Status& status) {
    LOG_ERROR("lines of a log are dropped, since they can't be stored", {{"stream", change.stream},
                                                                         {"lines", change.records.size()},
                                                                         {"task_id", change.task_id},
                                                                         {"error", status}});
    if (change.stored) change.stored();
  }

  // Either all of it, and then those who wait are told, or nothing.
  Status Write(std::vector<Change>& changes) {
    // The state that a failed transaction must not leave behind is set after the commit.
    std::map<std::string, StreamState> before;
    const uint64_t total_before = total_bytes_;
    std::vector<bool> fresh(changes.size(), true);
    Status status = database_->Transaction([&](store::Session& session) -> Status {
      for (size_t i = 0; i < changes.size(); ++i) {
        ASSIGN_OR_RETURN(StreamState * state, Find(changes[i].stream));
        if (!before.contains(changes[i].stream)) before[changes[i].stream] = Scalars(*state);
        bool is_fresh = true;
        RETURN_IF_ERROR(Apply(session, changes[i], *state, is_fresh));
        fresh[i] = is_fresh;
        if (is_fresh) state->last += changes[i].records.size();
        if (changes[i].kind != Change::kAppend) state->done = changes[i].kind == Change::kDone;
      }
      return KeepToQuota(session, before);
    });
    if (!status.ok()) {
      for (auto& [name, old] : before) {
        StreamState& state = streams_[name];
        state.number = old.number, state.last = old.last, state.done = old.done;
        state.bytes = old.bytes, state.dropped = old.dropped, state.trimmed = old.trimmed;
      }
      total_bytes_ = total_before;
      return status;
    }
    for (size_t i = 0; i < changes.size(); ++i) {
      StreamState& state = streams_[changes[i].stream];
      if (fresh[i]) Remember(state, std::move(changes[i].records));
      if (changes[i].stored) changes[i].stored();
    }
    for (auto& [name, unused] : before) {
      ForgetTrimmed(streams_[name]);
      Wake(name);
    }
    return {};
  }

  // Whoever wants these reads the line that stands for them, from the disk.
  static void ForgetTrimmed(StreamState& state) {
    while (!state.tail.empty() && state.tail.front().seq <= state.trimmed) {
      state.tail_bytes -= LogBytes(state.tail.front());
      state.tail.pop_front();
    }
  }

  void Remember(StreamState& state, std::vector<LogRecord> records) {
    for (LogRecord& record : records) {
      state.tail_bytes += LogBytes(record);
      state.tail.push_back(std::move(record));
    }
    while (state.tail_bytes > kTailBytes && state.tail.size() > 1) {
      state.tail_bytes -= LogBytes(state.tail.front());
      state.tail.pop_front();
    }
  }

  void Wake(const std::string& name) {
    StreamState& state = streams_[name];
    std::vector<std::weak_ptr<Question>> waiting;
    waiting.swap(state.waiting);
    for (auto& weak : waiting) {
      if (auto question = weak.lock()) Serve(question);
    }
    if (state.done && state.waiting.empty()) {  // whoever still comes reads it from the disk
      state.tail.clear();
      state.tail_bytes = 0;
    }
  }

  void Serve(const std::shared_ptr<Question>& question) {
    auto found = Find(question->stream);
    if (!found.ok()) return Answer(*question, found.status());
    StreamState& state = **found;
    if (question->after < state.last) {
      if (!state.tail.empty() && state.tail.front().seq <= question->after + 1) {
        LogPageFill filling{{}, 0, question->most};
        for (const LogRecord& record : state.tail) {
          if (record.seq > question->after && !filling.full()) filling.Offer(question->filter, record);
        }
        return Deliver(question, std::move(filling));
      }
      return ReadOld(question, state.number, state.last);
    }
    if (state.done) return Answer(*question, Page{{}, true});
    Wait(question, state);
  }

  void Deliver(const std::shared_ptr<Question>& question, LogPageFill filling) {
    auto found = Find(question->stream);
    if (!found.ok()) return Answer(*question, found.status());
    StreamState& state = **found;
    question->after = std::max(question->after, filling.last);
    filling.page.done = state.done && question->after >= state.last;
    if (!filling.page.records.empty() || filling.page.done) return Answer(*question, std::move(filling.page));
    Serve(question);  // nothing matched so far: on
  }

  void ReadOld(const std::shared_ptr<Question>& question, int64_t number, uint64_t last) {
    std::weak_ptr<Question> weak = question;
    readers_.Post([this, weak, number, last, after = question->after, filter = question->filter,
                   most = question->most] {
      auto filling = std::make_shared<Result<LogPageFill>>(
          ReadLogPage(*database_, number, after, last, filter, most, [&weak] { return !weak.expired(); }));
      strand_.Post([this, weak, filling] {
        auto question = weak.lock();
        if (question == nullptr) return;
        if (!filling->ok()) return Answer(*question, filling->status());
        Deliver(question, std::move(**filling));
      });
    });
  }

  void Wait(const std::shared_ptr<Question>& question, StreamState& state) {
    if (question->deadline <= std::chrono::steady_clock::now()) return Answer(*question, Page{});
    std::erase_if(state.waiting, [](const auto& weak) { return weak.expired(); });
    state.waiting.push_back(question);
    if (question->timer_set) return;
    question->timer_set = true;
    std::weak_ptr<Question> weak = question;
    strand_.PostAt(question->deadline, [this, weak] {
      if (auto late = weak.lock()) Answer(*late, Page{});
    });
  }

  void Answer(Question& question, Result<Page> page) {
    if (!question.reply) return;  // answered before
    auto reply = std::move(question.reply);
    question.reply = nullptr;
    reply(std::move(page));
  }

  // What is too old, a slice at a time: others' logs are written between.
  void Sweep(double now) {
    auto before = [&](double secs) { return static_cast<int64_t>((now - secs) * 1e9); };
    bool more = false;
    Status status = SweepEnded(before(std::max(kKeepStreamSecs, quota_.age_secs)), &more);
    if (status.ok()) status = SweepLines(before(quota_.age_secs), &more);
    if (!status.ok()) LOG_WARN("old logs could not be removed", {{"error", status}});
    if (more && status.ok()) return strand_.Post([this, now] { Sweep(now); });
    if (auto left = TotalBytes(*database_); left.ok()) total_bytes_ = *left;
    // Who reads a stream again has its state made again.
    std::erase_if(streams_, [](const auto& entry) {
      return entry.second.done && entry.second.waiting.empty() && entry.second.tail.empty();
    });
    aged_after_ = 0;
    strand_.PostAfter(kSweepEvery, [this] { Sweep(ages_.Look()); });
  }

  Status SweepEnded(int64_t before, bool* more) {
    return database_->Transaction([&](store::Session& session) -> Status {
      ASSIGN_OR_RETURN(auto rows,
                       session.Query("SELECT number, name FROM stream WHERE done = 1 AND changed_at "
                                     "< ? LIMIT 1",
                                     {before}));
      for (const store::Row& row : rows) {
        ASSIGN_OR_RETURN(
            int64_t gone,
            session.Change("DELETE FROM log WHERE id IN (SELECT id FROM log WHERE id BETWEEN ? AND "
                           "? ORDER BY id LIMIT ?)",
                           {LogRowId(row.Int(0), 0), LogRowId(row.Int(0), UINT32_MAX), kAgedRows}));
        *more = true;
        if (gone == static_cast<int64_t>(kAgedRows)) return {};
        RETURN_IF_ERROR(session.Execute("DELETE FROM stream WHERE number = ?", {row.Int(0)}));
        streams_.erase(row.Text(1));
      }
      return session.Execute(
          "DELETE FROM spool WHERE task_id IN (SELECT task_id FROM spool WHERE at < ? LIMIT ?)",
          {before, kAgedRows});
    });
  }

  // Lines of streams that go on, one stream a turn.
  Status SweepLines(int64_t before, bool* more) {
    ASSIGN_OR_RETURN(auto streams,
                     database_->Query("SELECT number, name FROM stream WHERE number > ? ORDER BY "
                                      "number LIMIT 1",
                                      {aged_after_}));
    if (streams.empty()) return {};
    *more = true;
    const int64_t number = streams[0].Int(0);
    const std::string& name = streams[0].Text(1);
    ASSIGN_OR_RETURN(StreamState * state, Find(name));
    StreamState old = Scalars(*state);
    const uint64_t total_before = total_bytes_;
    bool full = false;
    Status status = database_->Transaction([&](store::Session& session) -> Status {
      // The line that stands for those before it is as old as the last of them: it doesn't count.
      ASSIGN_OR_RETURN(auto rows,
                       session.Query("SELECT LENGTH(CAST(data AS BLOB)), unix_nanos FROM log "
                                     "WHERE id > ? AND id < ? ORDER BY id LIMIT ?",
                                     {LogRowId(number, 0), LogRowId(number, state->last), kAgedRows}));
      uint64_t excess = 0;
      size_t lines = 0;
      for (store::Row& row : rows) {
        if (row.Int(1) >= before) break;
        excess += static_cast<uint64_t>(row.Int(0)) + kLogRowBytes;
        ++lines;
      }
      const bool only_note = lines == 1 && state->dropped > 0;
      if (lines == 0 || only_note) return {};
      full = lines == kAgedRows;
      RETURN_IF_ERROR(Trim(session, *state, excess, "lines are kept for " + AgeText(quota_.age_secs)));
      return session.Execute("UPDATE stream SET bytes = ?, dropped = ? WHERE number = ?",
                             {state->bytes, state->dropped, number});
    });
    if (!status.ok()) {
      state->bytes = old.bytes, state->dropped = old.dropped, state->trimmed = old.trimmed;
      total_bytes_ = total_before;
      return status;
    }
    ForgetTrimmed(*state);
    if (!full) aged_after_ = number;
    return {};
  }

  std::unique_ptr<store::Database> database_;
  const LogQuota quota_;
  PatientClock ages_;     // on the strand
  uint64_t total_bytes_;  // on the strand
  std::mutex mutex_;      // guards the two below
  std::vector<Change> gathered_;
  bool flush_posted_ = false;
  // On the strand.
  std::vector<Change> waiting_;
  bool retry_ = false;  // waiting_ has its timer
  bool stuck_ = false;  // the last try failed
  std::unordered_map<std::string, StreamState> streams_;
  int64_t aged_after_ = 0;  // the stream whose old lines went last
  Pool readers_;
  Strand strand_;
};

}  // namespace

Result<std::unique_ptr<LogStore>> OpenLogStore(const std::string& path, LogQuota quota, Clock& clock) {
  ASSIGN_OR_RETURN(auto database, store::Database::Open(path, LogMigrations()));
  ASSIGN_OR_RETURN(uint64_t total, TotalBytes(*database));
  return std::unique_ptr<LogStore>(
      std::make_unique<SqliteLogStore>(std::move(database), quota, total, clock));
}

}  // namespace lydian::control
