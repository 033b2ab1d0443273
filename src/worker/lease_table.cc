#include "worker/lease_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/fd.h"

namespace lydian::worker {
namespace {
constexpr char kMagic[8] = {'L', 'Y', 'L', 'E', 'A', 'S', 'E', '2'};
constexpr size_t kHeaderBytes = 4096;
constexpr size_t kIdBytes = 48;

bool FitsId(std::string_view id) {
  return !id.empty() && id.size() < kIdBytes && id.find('\0') == std::string_view::npos;
}
}  // namespace

// The file is only read by the machine that wrote it: native byte order.
struct LeaseTable::Answer {
  uint64_t checksum;  // of the rest
  uint64_t number;    // grows by one with each
  uint64_t batch;
  char key[104];
  uint64_t Checksum() const { return XXH3_64bits(&number, sizeof *this - sizeof checksum); }
};

struct LeaseTable::Header {
  char magic[8];
  uint32_t capacity;
  std::atomic<uint32_t> flags;
  Answer answers[2];  // a writer that dies in the middle of one leaves the other
  uint64_t acked[2];
  std::atomic<uint32_t> cut_count;
  uint32_t unused;
  uint64_t cuts[kMostCuts][2];
};

struct LeaseTable::Record {
  std::atomic<uint32_t> used;  // set last, cleared first
  uint32_t attempt;
  uint64_t epoch;
  uint64_t batch;
  char input_id[kIdBytes];
  char function_call_id[kIdBytes];
  uint64_t checksum;  // of what is between `used` and this
  uint64_t Checksum() const {
    return XXH3_64bits(&attempt, static_cast<size_t>(reinterpret_cast<const char*>(&checksum) -
                                                     reinterpret_cast<const char*>(&attempt)));
  }
};

LeaseTable::LeaseTable(void* memory, size_t bytes) : memory_(memory), bytes_(bytes) {
  static_assert(sizeof(Header) <= kHeaderBytes);
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
}
LeaseTable::~LeaseTable() { munmap(memory_, bytes_); }

LeaseTable::Header& LeaseTable::header() const { return *static_cast<Header*>(memory_); }
LeaseTable::Record* LeaseTable::records() const {
  return reinterpret_cast<Record*>(static_cast<char*>(memory_) + kHeaderBytes);
}

Result<std::unique_ptr<LeaseTable>> LeaseTable::Open(const std::string& path, uint64_t capacity) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus("opening " + path);
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus("reading the size of " + path);
  const bool fresh = info.st_size == 0;
  size_t bytes = kHeaderBytes + capacity * sizeof(Record);
  if (fresh) {
    if (capacity == 0 || capacity > kMostPlaces) {
      return InvalidArgument("a container that holds " + std::to_string(capacity) + " inputs; it may hold " +
                             std::to_string(kMostPlaces));
    }
    // Allocated, so that a full disk is an error here and not a SIGBUS at a store.
    if (int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(bytes)); error != 0) {
      return ErrnoStatus("making room for " + path, error);
    }
  } else {
    bytes = static_cast<size_t>(info.st_size);
    if (bytes < kHeaderBytes) return DataLoss(path + " is too short for a lease table");
  }
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return ErrnoStatus("mapping " + path);
  std::unique_ptr<LeaseTable> table(new LeaseTable(memory, bytes));
  Header& header = table->header();
  if (fresh) {
    header.capacity = static_cast<uint32_t>(capacity);
    std::memcpy(header.magic, kMagic, sizeof kMagic);
  } else if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 ||
             kHeaderBytes + size_t{header.capacity} * sizeof(Record) != bytes ||
             header.cut_count > kMostCuts) {
    return DataLoss(path + " is not a lease table of this version");
  }
  table->capacity_ = header.capacity;
  for (uint32_t i = 0; i < header.capacity; ++i) {
    const Record& record = table->records()[i];
    if (record.used.load() != 0 && record.checksum != record.Checksum())
      return DataLoss("a record of " + path + " is damaged");
  }
  table->used_ = static_cast<uint32_t>(table->Held().size());
  return table;
}

Status LeaseTable::Put(const HeldLease& lease) {
  if (!FitsId(lease.input_id)) return InvalidArgument("an input id has 1 to 47 bytes");
  for (uint32_t i = 0; i < header().capacity; ++i) {
    Record& record = records()[i];
    if (record.used.load(std::memory_order_relaxed) != 0) continue;
    record.attempt = lease.attempt;
    record.epoch = lease.epoch;
    record.batch = lease.batch;
    std::memset(record.input_id, 0, kIdBytes);
    std::memset(record.function_call_id, 0, kIdBytes);
    lease.input_id.copy(record.input_id, kIdBytes - 1);
    lease.function_call_id.copy(record.function_call_id, kIdBytes - 1);
    record.checksum = record.Checksum();
    record.used.store(1, std::memory_order_release);
    ++used_;
    return {};
  }
  return ResourceExhausted("the container holds as many inputs as its lease table has room for");
}

bool LeaseTable::Remove(std::string_view input_id, uint32_t attempt) {
  for (uint32_t i = 0; i < header().capacity; ++i) {
    Record& record = records()[i];
    if (record.used.load(std::memory_order_relaxed) == 0 || record.attempt != attempt) continue;
    if (input_id != record.input_id) continue;
    record.used.store(0, std::memory_order_release);
    --used_;
    return true;
  }
  return false;
}

std::vector<HeldLease> LeaseTable::Held() const {
  std::vector<HeldLease> held;
  for (uint32_t i = 0; i < header().capacity; ++i) {
    const Record& record = records()[i];
    if (record.used.load(std::memory_order_acquire) == 0) continue;
    held.push_back({std::string(record.input_id, strnlen(record.input_id, kIdBytes)),
                    std::string(record.function_call_id, strnlen(record.function_call_id, kIdBytes)),
                    record.attempt, record.epoch, record.batch});
  }
  return held;
}

void LeaseTable::SetLastAnswer(std::string_view key, uint64_t batch) {
  const Answer* last = last_answer();
  Answer& answer = header().answers[last == &header().answers[0] ? 1 : 0];
  answer.checksum = ~answer.Checksum();  // invalid until it is whole
  std::atomic_signal_fence(std::memory_order_seq_cst);
  answer.number = last == nullptr ? 1 : last->number + 1;
  answer.batch = batch;
  std::memset(answer.key, 0, sizeof answer.key);
  if (key.size() < sizeof answer.key) key.copy(answer.key, key.size());
  std::atomic_signal_fence(std::memory_order_seq_cst);
  answer.checksum = answer.Checksum();
}
const LeaseTable::Answer* LeaseTable::last_answer() const {
  const Answer* last = nullptr;
  for (const Answer& answer : header().answers) {
    if (answer.number == 0 || answer.checksum != answer.Checksum()) continue;
    if (last == nullptr || answer.number > last->number) last = &answer;
  }
  return last;
}
std::string LeaseTable::last_key() const {
  const Answer* last = last_answer();
  return last == nullptr ? "" : std::string(last->key, strnlen(last->key, sizeof last->key));
}
uint64_t LeaseTable::last_batch() const {
  const Answer* last = last_answer();
  return last == nullptr ? 0 : last->batch;
}

void LeaseTable::SetFlag(Flag flag) { header().flags.fetch_or(flag); }
bool LeaseTable::flag(Flag flag) const { return (header().flags.load() & flag) != 0; }

LeaseTable::Offsets LeaseTable::log_acked() const { return {header().acked[0], header().acked[1]}; }

void LeaseTable::SetLogAcked(Offsets acked) {
  Header& h = header();
  std::vector<Offsets> left;
  for (const Offsets& cut : log_cuts()) {
    if (cut.first > acked.first || cut.second > acked.second) left.push_back(cut);
  }
  h.acked[0] = acked.first;
  h.acked[1] = acked.second;
  for (size_t i = 0; i < left.size(); ++i) {
    h.cuts[i][0] = left[i].first;
    h.cuts[i][1] = left[i].second;
  }
  h.cut_count.store(static_cast<uint32_t>(left.size()), std::memory_order_release);
}

bool LeaseTable::AddLogCut(Offsets end) {
  Header& h = header();
  const uint32_t count = h.cut_count.load();
  if (count >= kMostCuts) return false;
  h.cuts[count][0] = end.first;
  h.cuts[count][1] = end.second;
  h.cut_count.store(count + 1, std::memory_order_release);
  return true;
}

std::vector<LeaseTable::Offsets> LeaseTable::log_cuts() const {
  const Header& h = header();
  std::vector<Offsets> cuts;
  for (uint32_t i = 0; i < std::min(h.cut_count.load(), kMostCuts); ++i)
    cuts.emplace_back(h.cuts[i][0], h.cuts[i][1]);
  return cuts;
}

}  // namespace lydian::worker
