#include "worker/log_pump.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <future>

#include "base/log.h"
#include "worker/log_text.h"

namespace lydian::worker {
namespace {
constexpr size_t kEntryBytes = 64 << 10;
constexpr size_t kBatchBytes = 256 << 10;
constexpr uint64_t kPunchBytes = 16 << 20;
constexpr Millis kDiskRetry{500};

std::string ReadSpool(int fd, uint64_t from, size_t bytes) {
  std::string data(bytes, '\0');
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = pread(fd, data.data() + done, bytes - done, static_cast<off_t>(from + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  data.resize(done);
  return data;
}

uint64_t& At(LeaseTable::Offsets& offsets, int index) { return index == 0 ? offsets.first : offsets.second; }
}  // namespace

LogPump::LogPump(Options options) : options_(std::move(options)) {
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  CHECK(epoll_.valid() && wake_.valid());
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) == 0);
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "logs");
    Run();
  });
}

LogPump::~LogPump() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
  thread_.join();
  for (auto& [id, source] : sources_) {
    if (source->config.running) source->config.running->OnNextSet(nullptr);
  }
}

void LogPump::Post(Task task) {
  {
    std::lock_guard lock(mutex_);
    posted_.push_back(std::move(task));
  }
  uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
}

Status LogPump::Add(LogSource config) {
  auto source = std::make_shared<std::unique_ptr<Source>>(std::make_unique<Source>());
  Source& made = **source;
  for (int i = 0; i < 2; ++i) {
    Stream& stream = made.streams[i];
    const std::string path = config.dir + (i == 0 ? "/stdout.log" : "/stderr.log");
    stream.spool.reset(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!stream.spool.valid()) return ErrnoStatus("opening " + path);
    struct stat info {};
    if (fstat(stream.spool.get(), &info) != 0) return ErrnoStatus("reading the size of " + path);
    stream.size = static_cast<uint64_t>(info.st_size);
    if (lseek(stream.spool.get(), 0, SEEK_END) < 0) return ErrnoStatus("seeking in " + path);
    stream.pipe = std::move(i == 0 ? config.stdout_pipe : config.stderr_pipe);
    if (stream.pipe.valid())
      fcntl(stream.pipe.get(), F_SETFL, fcntl(stream.pipe.get(), F_GETFL) | O_NONBLOCK);
  }
  made.config = std::move(config);
  Post([this, source] {
    Source* added = source->get();
    sources_[added->config.task_id] = std::move(*source);
    Adopt(*added);
    for (int i = 0; i < 2; ++i) {
      if (added->streams[i].pipe.valid()) Poll(*added, i, true);
    }
    Pump(*added);
  });
  return {};
}

// What an earlier worker had spooled: its batches with their borders, and what followed.
void LogPump::Adopt(Source& source) {
  source.acked = source.config.table->log_acked();
  source.cut = source.acked;
  for (int i = 0; i < 2; ++i) {
    source.streams[i].decided = At(source.acked, i);
    source.streams[i].punched = At(source.acked, i);
  }
  for (LeaseTable::Offsets cut : source.config.table->log_cuts()) {
    for (int i = 0; i < 2; ++i) {
      At(cut, i) = std::min(At(cut, i), source.streams[i].size);
      AddSegments(source, i, At(cut, i));
    }
    Batch batch;
    batch.end = cut;
    batch.segments.assign(source.unsent.begin(), source.unsent.end());
    source.unsent.clear();
    for (const Segment& segment : batch.segments) batch.bytes += segment.end - segment.start;
    source.in_flight_bytes += batch.bytes;
    source.cut = cut;
    if (link_up_) Send(source, batch);
    source.in_flight.push_back(std::move(batch));
  }
  const SteadyTime now = std::chrono::steady_clock::now();
  for (int i = 0; i < 2; ++i) Decide(source, i, false, now);
}

void LogPump::Finish(const std::string& task_id) {
  Post([this, task_id] {
    auto it = sources_.find(task_id);
    if (it != sources_.end()) FinishNow(*it->second);
  });
}

void LogPump::FinishNow(Source& source) {
  const SteadyTime now = std::chrono::steady_clock::now();
  bool blocked = false;
  for (int i = 0; i < 2; ++i) {
    Stream& stream = source.streams[i];
    if (stream.pipe.valid()) {
      while (ReadSome(source, i)) {
      }
    }
    blocked |= stream.full_disk;
  }
  if (blocked && source.give_up == SteadyTime::max()) source.give_up = now + std::chrono::seconds(10);
  if (blocked && now < source.give_up) return;  // OnTime tries again
  if (blocked) LOG_ERROR("output is lost: no space left for its spool", {{"task_id", source.config.task_id}});
  source.give_up = SteadyTime::max();
  for (int i = 0; i < 2; ++i) {
    if (source.streams[i].pipe.valid()) Poll(source, i, false);
    source.streams[i].pipe.reset();
    Decide(source, i, true, now);
  }
  source.finished = true;
  Pump(source);
}

void LogPump::Acked(const LogAck& ack) {
  Post([this, ack] {
    auto it = sources_.find(ack.task_id());
    if (it == sources_.end()) return;
    Source& source = *it->second;
    LeaseTable::Offsets acked{
        std::max(source.acked.first, std::min(ack.stdout_offset(), source.streams[0].size)),
        std::max(source.acked.second, std::min(ack.stderr_offset(), source.streams[1].size))};
    while (!source.in_flight.empty() && source.in_flight.front().end.first <= acked.first &&
           source.in_flight.front().end.second <= acked.second) {
      source.in_flight_bytes -= source.in_flight.front().bytes;
      source.in_flight.pop_front();
    }
    source.acked = acked;
    source.config.table->SetLogAcked(acked);
    for (int i = 0; i < 2; ++i) {
      Stream& stream = source.streams[i];
      const uint64_t upto = At(acked, i) & ~uint64_t{4095};
      if (upto >= stream.punched + kPunchBytes) {
        // Only to save space: where the file system can't, the file stays long until the task ends.
        (void)fallocate(stream.spool.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                        static_cast<off_t>(upto));
        stream.punched = upto;
      }
      if (stream.pipe.valid() && !stream.polled && !stream.full_disk &&
          stream.size - At(acked, i) < options_.most_unacked / 2) {
        Poll(source, i, true);
      }
    }
    Pump(source);
  });
}

void LogPump::SetLinkUp(bool up) {
  Post([this, up] {
    link_up_ = up;
    for (auto& [id, source] : sources_) {
      source->sent = false;
      if (!up) continue;
      for (const Batch& batch : source->in_flight) Send(*source, batch);
      Pump(*source);
    }
  });
}

void LogPump::Remove(const std::string& task_id) {
  std::promise<void> gone;
  Post([this, &task_id, &gone] {
    auto it = sources_.find(task_id);
    if (it != sources_.end()) {
      for (int i = 0; i < 2; ++i) Poll(*it->second, i, false);
      if (it->second->config.running) it->second->config.running->OnNextSet(nullptr);
      sources_.erase(it);
    }
    gone.set_value();
  });
  if (std::this_thread::get_id() != thread_.get_id()) gone.get_future().wait();
}

void LogPump::Poll(Source& source, int index, bool on) {
  Stream& stream = source.streams[index];
  if (stream.polled == on) return;
  stream.polled = on;
  if (on) {
    const uint64_t id = next_poll_++;
    poll_ids_[index][&source] = id;
    polled_[id] = {&source, index};
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = id;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stream.pipe.get(), &event) != 0) {
      LOG_ERROR("a log pipe can't be watched",
                {{"task_id", source.config.task_id}, {"error", ErrnoStatus("epoll")}});
    }
  } else {
    polled_.erase(poll_ids_[index][&source]);
    poll_ids_[index].erase(&source);
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, stream.pipe.get(), nullptr);
  }
}

bool LogPump::ReadSome(Source& source, int index) {
  Stream& stream = source.streams[index];
  ssize_t n = -1;
  if (!stream.by_hand) {
    n = splice(stream.pipe.get(), nullptr, stream.spool.get(), nullptr, kBatchBytes,
               SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    if (n < 0 && errno == EINVAL) stream.by_hand = true;
  }
  if (stream.by_hand) {
    std::array<char, 64 << 10> buffer;
    n = read(stream.pipe.get(), buffer.data(), buffer.size());
    if (n > 0) {
      if (Status status = WriteAll(stream.spool.get(), {buffer.data(), static_cast<size_t>(n)});
          !status.ok()) {
        LOG_ERROR("output is lost", {{"task_id", source.config.task_id}, {"error", status}});
        (void)!ftruncate(stream.spool.get(), static_cast<off_t>(stream.size));
        (void)lseek(stream.spool.get(), 0, SEEK_END);
        return true;
      }
    }
  }
  if (n > 0) {
    stream.size += static_cast<uint64_t>(n);
    stream.full_disk = false;
    return true;
  }
  if (n < 0 && errno == EINTR) return true;
  if (n < 0 && errno == EAGAIN) return false;
  if (n < 0 && (errno == ENOSPC || errno == EDQUOT)) {
    if (!stream.full_disk)
      LOG_ERROR("no space left for logs; the container waits", {{"task_id", source.config.task_id}});
    stream.full_disk = true;
    Poll(source, index, false);
    return false;
  }
  if (n < 0)
    LOG_ERROR("reading a log pipe", {{"task_id", source.config.task_id}, {"error", ErrnoStatus("splice")}});
  Poll(source, index, false);  // its end
  stream.pipe.reset();
  return false;
}

void LogPump::Read(Source& source, int index) {
  Stream& stream = source.streams[index];
  const uint64_t before = stream.size;
  // A noisy container must not keep others waiting.
  while (stream.pipe.valid() && stream.size - before < 4 * kBatchBytes) {
    if (!ReadSome(source, index)) break;
    if (stream.size - At(source.acked, index) >= options_.most_unacked) {
      Poll(source, index, false);
      break;
    }
  }
  Decide(source, index, !stream.pipe.valid(), std::chrono::steady_clock::now());
  Pump(source);
}

void LogPump::Decide(Source& source, int index, bool all, SteadyTime now) {
  Stream& stream = source.streams[index];
  while (stream.decided < stream.size) {
    const size_t bytes = std::min<uint64_t>(stream.size - stream.decided, kBatchBytes);
    const std::string data = ReadSpool(stream.spool.get(), stream.decided, bytes);
    if (data.empty()) {
      LOG_ERROR("a log spool can't be read",
                {{"task_id", source.config.task_id}, {"error", ErrnoStatus("pread")}});
      stream.decided = stream.size;
      return;
    }
    size_t take = WholeLines(data);
    if (take == 0) {
      const bool late =
          stream.partial_since != SteadyTime::max() && now >= stream.partial_since + options_.partial_line;
      if (data.size() >= kEntryBytes || late) take = data.size() - IncompleteTail(data);
      if (all) take = data.size();
    }
    if (take == 0) {
      if (stream.partial_since == SteadyTime::max()) BeginPartial(source, index, now);
      return;
    }
    AddSegments(source, index, stream.decided + take);
    // Of what was late, the beginning of a character may be left: it has waited already.
    if (data[take - 1] == '\n' || data[take - 1] == '\r' || stream.decided == stream.size)
      stream.partial_since = SteadyTime::max();
  }
}

void LogPump::BeginPartial(Source& source, int index, SteadyTime now) {
  Stream& stream = source.streams[index];
  stream.partial_since = now;
  stream.partial_input.clear();
  stream.partial_call.clear();
  if (source.config.running) source.config.running->Get(&stream.partial_input, &stream.partial_call);
  if (stream.partial_input.empty()) return;  // nobody's alone: nobody's end ends it
  source.config.running->OnNextSet(
      [this, task_id = source.config.task_id] { Post([this, task_id] { EndPartials(task_id); }); });
}

// Their input has ended, and what it printed is in the pipes.
void LogPump::EndPartials(const std::string& task_id) {
  auto it = sources_.find(task_id);
  if (it == sources_.end()) return;
  Source& source = *it->second;
  std::string input_id, call_id;
  source.config.running->Get(&input_id, &call_id);
  for (int i = 0; i < 2; ++i) {
    Stream& stream = source.streams[i];
    if (stream.partial_since == SteadyTime::max() || stream.partial_input.empty() ||
        stream.partial_input == input_id)
      continue;
    if (stream.pipe.valid() && stream.polled) Read(source, i);
    if (stream.partial_since != SteadyTime::max())
      Decide(source, i, false, stream.partial_since + options_.partial_line);
  }
  Pump(source);
}

void LogPump::AddSegments(Source& source, int index, uint64_t end) {
  Stream& stream = source.streams[index];
  if (end <= stream.decided) return;
  std::string input_id, call_id;
  if (stream.partial_since != SteadyTime::max()) {
    input_id = stream.partial_input;
    call_id = stream.partial_call;
  } else if (source.config.running) {
    source.config.running->Get(&input_id, &call_id);
  }
  const int64_t nanos = SystemClock().UnixNanos();
  while (stream.decided < end) {
    uint64_t to = end;
    if (end - stream.decided > kEntryBytes) {
      const std::string data = ReadSpool(stream.spool.get(), stream.decided, kEntryBytes + 4);
      to = stream.decided + std::max<uint64_t>(1, CutForEntry(data, kEntryBytes));
      if (data.empty()) to = end;
    }
    source.unsent.push_back({index, stream.decided, to, nanos, input_id, call_id});
    stream.decided = to;
  }
}

void LogPump::Pump(Source& source) {
  while (link_up_ && !source.unsent.empty() && source.in_flight_bytes < options_.most_in_flight &&
         source.in_flight.size() < LeaseTable::kMostCuts) {
    Batch batch;
    batch.end = source.cut;
    while (!source.unsent.empty() && batch.bytes < kBatchBytes) {
      Segment& segment = source.unsent.front();
      At(batch.end, segment.stream) = segment.end;
      batch.bytes += segment.end - segment.start;
      batch.segments.push_back(std::move(segment));
      source.unsent.pop_front();
    }
    source.cut = batch.end;
    source.config.table->AddLogCut(batch.end);
    source.in_flight_bytes += batch.bytes;
    Send(source, batch);
    source.in_flight.push_back(std::move(batch));
  }
  Tell(source);
}

void LogPump::Tell(Source& source) {
  if (!source.finished || !source.unsent.empty()) return;
  if (link_up_ && !source.sent) {
    source.sent = true;
    if (source.config.on_sent) source.config.on_sent();
  }
  if (source.in_flight.empty() && !source.told_acked) {
    source.told_acked = true;
    if (source.config.on_acked) source.config.on_acked();
  }
}

void LogPump::Send(Source& source, const Batch& batch) {
  FromWorker message;
  LogBatch* log = message.mutable_log();
  log->set_task_id(source.config.task_id);
  for (const Segment& segment : batch.segments) {
    LogEntry* entry = log->add_entries();
    entry->set_file_descriptor(segment.stream + 1);
    entry->set_data(ToValidUtf8(
        ReadSpool(source.streams[segment.stream].spool.get(), segment.start, segment.end - segment.start)));
    entry->set_unix_nanos(segment.unix_nanos);
    entry->set_input_id(segment.input_id);
    entry->set_function_call_id(segment.call_id);
  }
  log->set_stdout_offset(batch.end.first);
  log->set_stderr_offset(batch.end.second);
  options_.send(std::move(message));
}

int LogPump::Timeout(SteadyTime now) {
  SteadyTime first = SteadyTime::max();
  for (const auto& [id, source] : sources_) {
    for (const Stream& stream : source->streams) {
      if (stream.partial_since != SteadyTime::max() && stream.decided < stream.size) {
        // Only the beginning of a character may be left: then there is nothing to do until more comes.
        if (now >= stream.partial_since + options_.partial_line && stream.size - stream.decided <= 3)
          continue;
        first = std::min(first, stream.partial_since + options_.partial_line);
      }
      if (stream.full_disk) first = std::min(first, now + kDiskRetry);
    }
  }
  if (first == SteadyTime::max()) return -1;
  if (first <= now) return 0;
  return static_cast<int>(std::chrono::duration_cast<Millis>(first - now).count()) + 1;
}

void LogPump::OnTime(SteadyTime now) {
  for (auto& [id, source] : sources_) {
    for (int i = 0; i < 2; ++i) {
      Stream& stream = source->streams[i];
      if (stream.full_disk && stream.pipe.valid()) {
        if (source->give_up != SteadyTime::max()) {
          FinishNow(*source);
          break;
        }
        Read(*source, i);
        if (!stream.full_disk && stream.pipe.valid()) Poll(*source, i, true);
      } else if (stream.partial_since != SteadyTime::max() &&
                 now >= stream.partial_since + options_.partial_line) {
        const uint64_t before = stream.decided;
        Decide(*source, i, false, now);
        if (stream.decided != before) Pump(*source);
      }
    }
  }
}

void LogPump::Run() {
  std::array<epoll_event, 64> events;
  while (true) {
    const int count =
        epoll_wait(epoll_.get(), events.data(), events.size(), Timeout(std::chrono::steady_clock::now()));
    for (int i = 0; i < count; ++i) {
      if (events[i].data.u64 == 0) {
        uint64_t ticks = 0;
        (void)!read(wake_.get(), &ticks, sizeof ticks);
        continue;
      }
      auto it = polled_.find(events[i].data.u64);
      if (it != polled_.end()) Read(*it->second.first, it->second.second);
    }
    OnTime(std::chrono::steady_clock::now());
    std::deque<Task> tasks;
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      tasks.swap(posted_);
    }
    for (Task& task : tasks) task();
  }
}

}  // namespace lydian::worker
