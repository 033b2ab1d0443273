#include "control/journal.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>

#include "base/log.h"
#include "control/journal_schema.h"

namespace lydian::control {
namespace {

// A full or busy disk is tried again this often while something must be written.
constexpr auto kRetry = std::chrono::milliseconds(500);
// What was committed and need not be on the disk at once gets there this long after the journal has come to
// rest.
constexpr auto kSyncDelay = std::chrono::milliseconds(200);
// ... and this long after it was committed when the journal doesn't come to rest.
constexpr auto kOldestUnsynced = std::chrono::seconds(1);

// Whether a record will fail as often as it is tried.
bool IsOfItsContent(const Status& status) {
  return status.code() == Code::kInvalidArgument || status.code() == Code::kAlreadyExists;
}

}  // namespace

Result<std::unique_ptr<Journal>> Journal::Open(const std::string& path, std::function<void(Task)> post) {
  ASSIGN_OR_RETURN(auto database,
                   store::Database::Open(path, JournalMigrations(), store::Database::Sharing::kAlone));
  RETURN_IF_ERROR(ReadOldBlobIds(*database));
  return std::unique_ptr<Journal>(new Journal(std::move(database), std::move(post)));
}

Journal::Journal(std::unique_ptr<store::Database> database, std::function<void(Task)> post)
    : database_(std::move(database)), post_(std::move(post)), thread_([this] { Loop(); }) {}

Journal::~Journal() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Journal::Append(Record record, bool alone) {
  std::vector<Record> group;
  group.push_back(std::move(record));
  Append(std::move(group), alone);
}

void Journal::Append(std::vector<Record> group, bool alone) {
  if (group.empty()) return;
  {
    std::lock_guard lock(mutex_);
    const bool durable = std::any_of(group.begin(), group.end(), [](const Record& r) { return r.durable; });
    if (!alone || committing_ || durable || !gathered_.empty() || !waiting_.empty()) {
      const bool awake = !gathered_.empty() || committing_;  // or looks when the commit is done
      std::move(group.begin(), group.end(), std::back_inserter(gathered_));
      if (awake) return;
      alone = false;
    } else {
      committing_ = true;
    }
  }
  if (!alone) return changed_.notify_one();
  CommitGroup(group);
  bool wake;
  {
    std::lock_guard lock(mutex_);
    committing_ = false;
    // The thread sees to it that what was committed gets to the disk.
    wake = !gathered_.empty() || !waiting_.empty() || stopping_ || !sync_armed_;
    sync_armed_ = true;
  }
  if (wake) changed_.notify_one();
}

void Journal::Loop() {
  pthread_setname_np(pthread_self(), "journal");
  std::vector<Record> group;
  std::unique_lock lock(mutex_);
  while (true) {
    if (committing_) {
      sync_armed_ = false;  // who commits wakes this thread
      changed_.wait(lock);
      continue;
    }
    if (SyncIsDue()) Sync(lock);
    if (gathered_.empty()) {
      if (stopping_) break;
      if (!waiting_.empty()) {
        changed_.wait_for(lock, kRetry);
        if (committing_) continue;
      } else if (unsynced_since_) {
        sync_armed_ = true;
        const bool rested = changed_.wait_for(lock, kSyncDelay) == std::cv_status::timeout;
        if (rested && gathered_.empty() && !committing_) Sync(lock);
        continue;
      } else {
        sync_armed_ = false;
        changed_.wait(lock);
        continue;
      }
    }
    group.swap(gathered_);
    committing_ = true;
    lock.unlock();
    CommitGroup(group);
    group.clear();
    lock.lock();
    committing_ = false;
  }
  lock.unlock();
  if (!waiting_.empty()) CommitGroup(group);
}

bool Journal::SyncIsDue() const {
  return unsynced_since_ && std::chrono::steady_clock::now() - *unsynced_since_ >= kOldestUnsynced;
}

void Journal::Sync(std::unique_lock<std::mutex>& lock) {
  committing_ = true;  // nobody commits into it: that would have to wait for the disk
  lock.unlock();
  const bool synced = database_->Sync().ok();  // else this process is about to end
  lock.lock();
  committing_ = false;
  if (synced) unsynced_since_.reset();
}

Status Journal::Write(std::vector<Record>& group) {
  return database_->Transaction([&](store::Session& session) -> Status {
    for (Record& record : group) RETURN_IF_ERROR(record.apply(session));
    return {};
  });
}

// All in one transaction; if that fails each on its own, so that one record's trouble isn't another's.
void Journal::CommitGroup(std::vector<Record>& group) {
  std::vector<Record> records = std::move(waiting_);
  waiting_.clear();
  for (Record& record : group) records.push_back(std::move(record));
  if (records.empty()) return;
  std::vector<std::pair<std::function<void(Status)>, Status>> done;
  bool durable = false;
  Status status = Write(records);
  if (status.ok()) {
    for (Record& record : records) {
      durable |= record.durable;
      if (record.done) done.emplace_back(std::move(record.done), Status());
    }
  } else {
    if (status.code() != Code::kResourceExhausted)
      LOG_WARN("a group of records failed; each is tried alone", {{"error", status}});
    for (Record& record : records) {
      // A later `must` record never overtakes an earlier one: their order is the order of events.
      Status one = ResourceExhausted("behind records that wait for room");
      if (!record.must || waiting_.empty()) {
        one = database_->Transaction([&](store::Session& session) { return record.apply(session); });
      }
      if (!one.ok() && record.must && !IsOfItsContent(one)) {
        waiting_.push_back(std::move(record));
        continue;
      }
      if (!one.ok()) LOG_ERROR("the journal could not write a record", {{"error", one}});
      durable |= record.durable && one.ok();
      if (record.done) done.emplace_back(std::move(record.done), std::move(one));
    }
  }
  if (!unsynced_since_) unsynced_since_ = std::chrono::steady_clock::now();
  if (durable) {
    // Of what may have been lost nobody is told, neither way: this process is about to end.
    if (!database_->Sync().ok()) return;
    unsynced_since_.reset();
  }
  if (done.empty()) return;
  post_([done = std::move(done)] {
    for (const auto& [callback, result] : done) callback(result);
  });
}

Result<TaskRow> Journal::TaskById(const std::string& task_id) {
  Result<TaskRow> found = NotFound("no task " + task_id);
  RETURN_IF_ERROR(database_->ForEach(kSelectTaskById, {task_id}, [&](store::Row& row) -> Status {
    found = ReadTask(row);
    return {};
  }));
  return found;
}

}  // namespace lydian::control
