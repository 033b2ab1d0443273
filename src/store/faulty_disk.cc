#include "store/faulty_disk.h"

#include <fcntl.h>
#include <sqlite3.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <vector>

#include "base/fd.h"
#include "store/sqlite_connection.h"

namespace lydian::store {
namespace {

constexpr int64_t kSector = 512;

// A write, or a cut when `bytes` is empty.
struct Change {
  int64_t offset = 0;
  std::string bytes;
};

struct FileState {
  bool there = false;
  std::string durable;
  std::vector<Change> unsynced;
  uint64_t counts[3] = {};
};

void ApplyTo(std::string* image, const Change& change) {
  const auto offset = static_cast<size_t>(change.offset);
  if (change.bytes.empty()) {
    image->resize(std::min(image->size(), offset));
    return;
  }
  image->resize(std::max(image->size(), offset + change.bytes.size()));
  image->replace(offset, change.bytes.size(), change.bytes);
}

}  // namespace

struct FaultyDisk::Impl {
  struct Fault {
    Op op;
    std::string suffix;
    int times;
  };

  explicit Impl(uint64_t seed) : random(seed) {}
  // Whether this one fails.
  bool Ask(Op op, const std::string& path, FileState* file);
  uint64_t Count(Op op, const std::string& suffix) const;

  mutable std::mutex mutex;  // guards all below
  mutable std::condition_variable changed;
  std::mt19937_64 random;
  bool full = false;
  uint64_t refused = 0;
  std::vector<Fault> faults;
  std::map<std::string, FileState> files;  // entries stay where they are
};

bool FaultyDisk::Impl::Ask(Op op, const std::string& path, FileState* file) {
  ++file->counts[static_cast<size_t>(op)];
  changed.notify_all();
  for (Fault& fault : faults) {
    if (fault.op != op || fault.times == 0 || !path.ends_with(fault.suffix)) continue;
    --fault.times;
    errno = EIO;
    return true;
  }
  return false;
}

namespace {

using Op = FaultyDisk::Op;

// One layer over a file system of SQLite's.
struct Layer {
  sqlite3_vfs vfs = {};
  sqlite3_vfs* below = nullptr;
  FaultyDisk::Impl* disk = nullptr;
};

struct OpenFile {
  sqlite3_file base;
  FaultyDisk::Impl* disk;
  FileState* state;  // null: a temporary file
  const std::string* path;
  sqlite3_file* below() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

OpenFile* Of(sqlite3_file* file) { return reinterpret_cast<OpenFile*>(file); }
sqlite3_file* Below(sqlite3_file* file) { return Of(file)->below(); }
Layer* LayerOf(sqlite3_vfs* vfs) { return static_cast<Layer*>(vfs->pAppData); }

int Close(sqlite3_file* file) { return Below(file)->pMethods->xClose(Below(file)); }

int Read(sqlite3_file* file, void* into, int size, sqlite3_int64 offset) {
  OpenFile* open = Of(file);
  if (open->state != nullptr) {
    std::lock_guard lock(open->disk->mutex);
    if (open->disk->Ask(Op::kRead, *open->path, open->state)) return SQLITE_IOERR_READ;
  }
  return Below(file)->pMethods->xRead(Below(file), into, size, offset);
}

int Write(sqlite3_file* file, const void* from, int size, sqlite3_int64 offset) {
  OpenFile* open = Of(file);
  if (open->state == nullptr) return Below(file)->pMethods->xWrite(Below(file), from, size, offset);
  std::lock_guard lock(open->disk->mutex);
  if (open->disk->Ask(Op::kWrite, *open->path, open->state)) return SQLITE_IOERR_WRITE;
  sqlite3_int64 has = 0;
  Below(file)->pMethods->xFileSize(Below(file), &has);
  if (open->disk->full && offset + size > has) {
    ++open->disk->refused;
    open->disk->changed.notify_all();
    errno = ENOSPC;
    return SQLITE_FULL;
  }
  const int code = Below(file)->pMethods->xWrite(Below(file), from, size, offset);
  if (code == SQLITE_OK)
    open->state->unsynced.push_back(
        {offset, std::string(static_cast<const char*>(from), static_cast<size_t>(size))});
  return code;
}

int Truncate(sqlite3_file* file, sqlite3_int64 size) {
  OpenFile* open = Of(file);
  if (open->state != nullptr) {
    std::lock_guard lock(open->disk->mutex);
    open->state->unsynced.push_back({size, ""});
  }
  return Below(file)->pMethods->xTruncate(Below(file), size);
}

int Sync(sqlite3_file* file, int flags) {
  OpenFile* open = Of(file);
  if (open->state == nullptr) return Below(file)->pMethods->xSync(Below(file), flags);
  std::lock_guard lock(open->disk->mutex);
  const bool fails = open->disk->Ask(Op::kSync, *open->path, open->state);
  if (!fails) {
    for (const Change& change : open->state->unsynced) ApplyTo(&open->state->durable, change);
  }
  open->state->unsynced.clear();  // the kernel forgets what it could not write
  return fails ? SQLITE_IOERR_FSYNC : SQLITE_OK;
}

int FileSize(sqlite3_file* file, sqlite3_int64* size) {
  return Below(file)->pMethods->xFileSize(Below(file), size);
}
int Lock(sqlite3_file* file, int level) { return Below(file)->pMethods->xLock(Below(file), level); }
int Unlock(sqlite3_file* file, int level) { return Below(file)->pMethods->xUnlock(Below(file), level); }
int CheckLock(sqlite3_file* file, int* out) {
  return Below(file)->pMethods->xCheckReservedLock(Below(file), out);
}
int Control(sqlite3_file* file, int op, void* arg) {
  return Below(file)->pMethods->xFileControl(Below(file), op, arg);
}
int SectorSize(sqlite3_file* file) { return Below(file)->pMethods->xSectorSize(Below(file)); }
int Device(sqlite3_file* file) { return Below(file)->pMethods->xDeviceCharacteristics(Below(file)); }
int ShmMap(sqlite3_file* file, int page, int size, int extend, void volatile** out) {
  return Below(file)->pMethods->xShmMap(Below(file), page, size, extend, out);
}
int ShmLock(sqlite3_file* file, int offset, int n, int flags) {
  return Below(file)->pMethods->xShmLock(Below(file), offset, n, flags);
}
void ShmBarrier(sqlite3_file* file) { Below(file)->pMethods->xShmBarrier(Below(file)); }
int ShmUnmap(sqlite3_file* file, int remove) { return Below(file)->pMethods->xShmUnmap(Below(file), remove); }

constexpr sqlite3_io_methods kMethods = {
    .iVersion = 2,
    .xClose = Close,
    .xRead = Read,
    .xWrite = Write,
    .xTruncate = Truncate,
    .xSync = Sync,
    .xFileSize = FileSize,
    .xLock = Lock,
    .xUnlock = Unlock,
    .xCheckReservedLock = CheckLock,
    .xFileControl = Control,
    .xSectorSize = SectorSize,
    .xDeviceCharacteristics = Device,
    .xShmMap = ShmMap,
    .xShmLock = ShmLock,
    .xShmBarrier = ShmBarrier,
    .xShmUnmap = ShmUnmap,
};

int Open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  Layer* layer = LayerOf(vfs);
  OpenFile* open = Of(file);
  open->base.pMethods = nullptr;
  open->disk = layer->disk;
  open->state = nullptr;
  const int code = layer->below->xOpen(layer->below, name, open->below(), flags, out_flags);
  if (open->below()->pMethods != nullptr) open->base.pMethods = &kMethods;
  if (code != SQLITE_OK || name == nullptr) return code;
  std::lock_guard lock(layer->disk->mutex);
  auto& [path, state] = *layer->disk->files.try_emplace(name).first;
  open->path = &path;
  open->state = &state;
  if (!std::exchange(state.there, true)) {
    // What lay there before this disk did is on it.
    if (auto bytes = ReadFile(path); bytes.ok()) state.durable = std::move(bytes).value();
  }
  return code;
}

int Delete(sqlite3_vfs* vfs, const char* name, int sync) {
  Layer* layer = LayerOf(vfs);
  {
    std::lock_guard lock(layer->disk->mutex);
    if (auto it = layer->disk->files.find(name); it != layer->disk->files.end()) {
      it->second.there = false;
      it->second.durable.clear();
      it->second.unsynced.clear();
    }
  }
  return layer->below->xDelete(layer->below, name, sync);
}

int Access(sqlite3_vfs* vfs, const char* name, int flags, int* out) {
  return LayerOf(vfs)->below->xAccess(LayerOf(vfs)->below, name, flags, out);
}
int FullPathname(sqlite3_vfs* vfs, const char* name, int size, char* out) {
  return LayerOf(vfs)->below->xFullPathname(LayerOf(vfs)->below, name, size, out);
}
int LastError(sqlite3_vfs*, int, char*) { return errno; }

// The two layers have the lives of the process: SQLite keeps pointers to them. Their disk changes.
Layer* MakeLayer(const char* name, const char* below) {
  auto* layer = new Layer;
  layer->below = sqlite3_vfs_find(below);
  layer->vfs = *layer->below;
  layer->vfs.iVersion = 2;
  layer->vfs.szOsFile = static_cast<int>(sizeof(OpenFile)) + layer->below->szOsFile;
  layer->vfs.pNext = nullptr;
  layer->vfs.zName = name;
  layer->vfs.pAppData = layer;
  layer->vfs.xOpen = Open;
  layer->vfs.xDelete = Delete;
  layer->vfs.xAccess = Access;
  layer->vfs.xFullPathname = FullPathname;
  layer->vfs.xGetLastError = LastError;
  sqlite3_vfs_register(&layer->vfs, 0);
  return layer;
}

Layer* SharedLayer() {
  static Layer* layer = MakeLayer("faulty", nullptr);
  return layer;
}
Layer* AloneLayer() {
  static Layer* layer = MakeLayer("faulty-excl", kAloneSystem);
  return layer;
}

}  // namespace

FaultyDisk::FaultyDisk(uint64_t seed) : impl_(std::make_unique<Impl>(seed)) {
  sqlite3_initialize();
  SharedLayer()->disk = AloneLayer()->disk = impl_.get();
  SetFileSystems(SharedLayer()->vfs.zName, AloneLayer()->vfs.zName);
}

FaultyDisk::~FaultyDisk() { SetFileSystems(nullptr, kAloneSystem); }

void FaultyDisk::Fill() {
  std::lock_guard lock(impl_->mutex);
  impl_->full = true;
}

void FaultyDisk::MakeRoom() {
  std::lock_guard lock(impl_->mutex);
  impl_->full = false;
}

void FaultyDisk::Fail(Op op, const std::string& suffix, int times) {
  std::lock_guard lock(impl_->mutex);
  impl_->faults.push_back({op, suffix, times});
}

uint64_t FaultyDisk::Impl::Count(Op op, const std::string& suffix) const {
  uint64_t count = 0;
  for (const auto& [path, file] : files) {
    if (path.ends_with(suffix)) count += file.counts[static_cast<size_t>(op)];
  }
  return count;
}

uint64_t FaultyDisk::Count(Op op, const std::string& suffix) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->Count(op, suffix);
}

bool FaultyDisk::WaitFor(Op op, const std::string& suffix, uint64_t count,
                         std::chrono::milliseconds most) const {
  std::unique_lock lock(impl_->mutex);
  return impl_->changed.wait_for(lock, most, [&] { return impl_->Count(op, suffix) >= count; });
}

uint64_t FaultyDisk::Refused() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->refused;
}

bool FaultyDisk::WaitForRefused(uint64_t count, std::chrono::milliseconds most) const {
  std::unique_lock lock(impl_->mutex);
  return impl_->changed.wait_for(lock, most, [&] { return impl_->refused >= count; });
}

Status FaultyDisk::PowerCut(const std::string& from, const std::string& to) {
  std::lock_guard lock(impl_->mutex);
  for (const auto& [path, file] : impl_->files) {
    if (!file.there || !path.starts_with(from + "/")) continue;
    std::string image = file.durable;
    for (const Change& change : file.unsynced) {
      if (change.bytes.empty()) {
        if (impl_->random() % 2 == 0) ApplyTo(&image, change);
        continue;
      }
      const auto end = change.offset + static_cast<int64_t>(change.bytes.size());
      for (int64_t at = change.offset; at < end;) {
        const int64_t next = std::min(end, (at / kSector + 1) * kSector);
        const auto skip = static_cast<size_t>(at - change.offset);
        if (impl_->random() % 2 == 0)
          ApplyTo(&image, {at, change.bytes.substr(skip, static_cast<size_t>(next - at))});
        at = next;
      }
    }
    RETURN_IF_ERROR(WriteFileAtomic(to + path.substr(from.size()), image, 0600));
  }
  return {};
}

}  // namespace lydian::store
