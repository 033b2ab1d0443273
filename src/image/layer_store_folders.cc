// The layer store as plain folders (docs/formats/layer.md):
//
//   <root>/format            "1"
//   <root>/layers/<id>/fs    the tree; stacked as it stands
//   <root>/layers/<id>/info  JSON: note, bytes
//   <root>/tx/<name>         an open transaction (upper, work, links) or a layer on its way out
//   <root>/tx/<name>.lock    locked while its owner lives; Open removes what nobody locks
//   <root>/records/<sha256>  "key\nvalue"
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"
#include "image/layer_store.h"

namespace lydian::image {
namespace {

namespace fs = std::filesystem;
constexpr const char* kFormat = "1\n";

bool ValidId(const std::string& id) {
  if (IdPrefix(id) != "ly" || id.size() > 100) return false;
  for (char c : id)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_') return false;
  return true;
}

// Deeper than any program's own files are; what lies deeper can't be named by a path any more.
constexpr uint64_t kMostDepth = 1024;
// Each takes an inode of the store's file system. A large image has some 500,000 in all its layers.
constexpr uint64_t kMostEntries = 5'000'000;
constexpr uint64_t kMostShared = 1'000'000;

Status SyncFileSystem(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("opening " + path);
  if (::syncfs(fd.get()) != 0) return ErrnoStatus("writing layers to disk below " + path);
  return OkStatus();
}

Status SyncFolder(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || ::fsync(fd.get()) != 0) return ErrnoStatus("syncing " + path);
  return OkStatus();
}

// A locked file that says "somebody is at work here".
Result<UniqueFd> TakeLock(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus("creating " + path);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return ErrnoStatus("locking " + path);
  return fd;
}

// Held, across processes, while a lock file is made and while leftovers are looked for: a lock that was just
// made but is not locked yet must not be taken for an orphan.
Result<UniqueFd> EnterDoor(const std::string& tx) {
  UniqueFd fd(::open((tx + "/../door").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus("creating " + tx + "/../door");
  while (::flock(fd.get(), LOCK_EX) != 0)
    if (errno != EINTR) return ErrnoStatus("locking " + tx + "/../door");
  return fd;
}

Result<UniqueFd> NewLock(const std::string& tx, const std::string& dir) {
  ASSIGN_OR_RETURN(UniqueFd door, EnterDoor(tx));
  return TakeLock(dir + ".lock");
}

// A tree that resists is no reason not to start: it waits beside the store for somebody who looks at it.
void SetAside(const std::string& path, const Status& why) {
  const std::string aside = fs::path(path).parent_path().parent_path().string() + "/aside";
  Status moved = MakeDirs(aside, 0700);
  const std::string place = aside + "/" + fs::path(path).filename().string();
  if (moved.ok() && ::rename(path.c_str(), place.c_str()) != 0) moved = ErrnoStatus("moving it");
  LOG_ERROR("a half-made layer could not be removed",
            {{"path", moved.ok() ? place : path}, {"error", why}, {"moved", moved}});
}

// What killed processes left. Of a process that lives, nothing is touched.
Status RemoveLeftovers(const std::string& tx) {
  ASSIGN_OR_RETURN(UniqueFd door, EnterDoor(tx));
  std::error_code error;
  for (auto it = fs::directory_iterator(tx, error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    std::string path = it->path().string();
    if (path.ends_with(".lock")) continue;
    auto lock = TakeLock(path + ".lock");
    if (!lock.ok()) continue;
    LOG_INFO("removing a layer that was left half-made", {{"path", path}});
    if (Status removed = RemoveTree(path); !removed.ok()) SetAside(path, removed);
    ::unlink((path + ".lock").c_str());
  }
  for (auto it = fs::directory_iterator(tx, error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    std::string path = it->path().string();
    if (!path.ends_with(".lock") || Exists(path.substr(0, path.size() - 5))) continue;
    if (auto lock = TakeLock(path); lock.ok()) ::unlink(path.c_str());
  }
  return OkStatus();
}

class FolderStore;

class FolderTransaction : public LayerTransaction {
 public:
  FolderTransaction(FolderStore* store, std::string dir, UniqueFd lock)
      : store_(store), dir_(std::move(dir)), lock_(std::move(lock)) {}
  ~FolderTransaction() override;
  const std::string& dir() const override { return dir_; }
  Status Take(int writable, const std::function<Status()>& check) override;
  Result<Tree> Upper() const override { return Tree::Open(dir_ + "/upper"); }
  Result<LayerInfo> Commit(const std::string& id, const std::string& note) override;

 private:
  FolderStore* store_;
  std::string dir_;
  UniqueFd lock_;
};

class FolderStore : public LayerStore {
 public:
  explicit FolderStore(std::string root) : root_(std::move(root)) {}

  Status Prepare() {
    for (const char* part : {"layers", "tx", "records"})
      if (auto made = MakeDirs(root_ + "/" + part, 0700); !made.ok())
        return std::move(made).With("layer store");
    std::string format = root_ + "/format";
    if (!Exists(format)) RETURN_IF_ERROR(WriteFileAtomic(format, kFormat, 0644, true));
    ASSIGN_OR_RETURN(std::string found, ReadFile(format, 64));
    if (found != kFormat)
      return FailedPrecondition("layer store " + root_ + " has a format that this version does not know");
    return RemoveLeftovers(TxRoot());
  }

  Result<LayerInfo> Find(const std::string& id) override {
    auto info = ReadInfo(id);
    if (info.ok()) Used(id);
    return info;
  }

  Result<LayerInfo> ReadInfo(const std::string& id) {
    if (!ValidId(id)) return InvalidArgument("not a layer id: " + id);
    LayerInfo info{.id = id, .path = LayerDir(id) + "/fs"};
    auto text = ReadFile(LayerDir(id) + "/info", size_t{1} << 20);
    if (!text.ok()) {
      if (text.status().code() == Code::kNotFound) return NotFound("no layer " + id);
      return text.status();
    }
    auto json = nlohmann::json::parse(*text, nullptr, false);
    if (!json.is_object()) return DataLoss("layer " + id + " has a damaged info file");
    info.bytes = json.value("bytes", uint64_t{0});
    info.note = json.value("note", "");
    return info;
  }

  Result<Tree> Open(const std::string& id) override {
    if (!ValidId(id)) return InvalidArgument("not a layer id: " + id);
    auto tree = Tree::Open(LayerDir(id) + "/fs");
    if (!tree.ok() && tree.status().error() == ENOENT) return NotFound("no layer " + id);
    if (tree.ok()) Used(id);
    return tree;
  }

  Result<struct stat> Stat(const std::vector<std::string>& ids, const std::string& path) override {
    for (size_t i = ids.size(); i-- > 0;) {
      ASSIGN_OR_RETURN(Tree tree, Open(ids[i]));
      auto info = tree.Stat(path);
      if (!info.ok()) continue;
      if (S_ISCHR(info->st_mode) && info->st_rdev == 0) break;  // a whiteout
      return info;
    }
    return NotFound("no " + path + " in these layers");
  }

  Result<std::unique_ptr<LayerTransaction>> Begin() override {
    std::string dir = TxRoot() + "/" + RandomHex(8);
    ASSIGN_OR_RETURN(UniqueFd lock, NewLock(TxRoot(), dir));
    auto transaction = std::make_unique<FolderTransaction>(this, dir, std::move(lock));
    RETURN_IF_ERROR(MakeDirs(dir + "/upper"));
    RETURN_IF_ERROR(MakeDirs(dir + "/work"));
    return std::unique_ptr<LayerTransaction>(std::move(transaction));
  }

  Status Remove(const std::string& id, double min_idle_secs) override {
    if (!ValidId(id)) return InvalidArgument("not a layer id: " + id);
    std::string gone = TxRoot() + "/" + RandomHex(8);
    ASSIGN_OR_RETURN(UniqueFd lock, NewLock(TxRoot(), gone));
    {
      std::lock_guard guard(mutex_);
      if (auto pins = pins_.find(id); pins != pins_.end()) {
        ::unlink((gone + ".lock").c_str());
        return FailedPrecondition("layer " + id + " is in use");
      }
      if (IdleSecs(id) < min_idle_secs) {
        ::unlink((gone + ".lock").c_str());
        return FailedPrecondition("layer " + id + " was used lately");
      }
      if (::rename(LayerDir(id).c_str(), gone.c_str()) != 0) {
        int error = errno;
        ::unlink((gone + ".lock").c_str());
        return error == ENOENT ? NotFound("no layer " + id) : ErrnoStatus("removing layer " + id, error);
      }
      used_.erase(id);
    }
    Status removed = RemoveTree(gone);
    ::unlink((gone + ".lock").c_str());
    return removed;
  }

  std::vector<StoredLayer> List() override {
    std::vector<StoredLayer> found;
    std::error_code error;
    for (auto it = fs::directory_iterator(root_ + "/layers", error); !error && it != fs::directory_iterator();
         it.increment(error)) {
      StoredLayer layer;
      layer.info.id = it->path().filename().string();
      if (!ValidId(layer.info.id)) continue;
      if (auto info = ReadInfo(layer.info.id); info.ok()) {
        layer.info = *info;
        if (!Exists(info->path)) layer.damage = "its tree is missing";
      } else {
        layer.damage = info.status().message();
      }
      std::lock_guard guard(mutex_);
      layer.pinned = pins_.contains(layer.info.id);
      layer.idle_secs = IdleSecs(layer.info.id);
      found.push_back(std::move(layer));
    }
    return found;
  }

  Result<std::shared_ptr<void>> Pin(const std::vector<std::string>& ids) override {
    std::lock_guard guard(mutex_);
    for (const auto& id : ids)
      if (!ValidId(id) || !Exists(LayerDir(id))) return NotFound("no layer " + id);
    for (const auto& id : ids) {
      ++pins_[id];
      UsedLocked(id);
    }
    return std::shared_ptr<void>(nullptr, [this, ids](void*) {
      std::lock_guard inner(mutex_);
      for (const auto& id : ids) {
        if (--pins_[id] == 0) pins_.erase(id);
        UsedLocked(id);  // its rest begins now
      }
    });
  }

  Status PutRecord(const std::string& key, const std::string& value) override {
    if (key.find('\n') != std::string::npos) return InvalidArgument("a record's key holds a line break");
    return WriteFileAtomic(RecordPath(key), key + "\n" + value, 0600, true);
  }

  Result<std::string> GetRecord(const std::string& key) override {
    auto text = ReadFile(RecordPath(key));
    if (!text.ok() && text.status().code() == Code::kNotFound) return NotFound("no record " + key);
    if (!text.ok()) return text.status();
    if (!text->starts_with(key + "\n")) return DataLoss("the record " + key + " is damaged");
    return text->substr(key.size() + 1);
  }

  Status SweepRecords(
      const std::function<bool(const std::string& key, const std::string& value)>& keep) override {
    std::error_code error;
    for (auto it = fs::directory_iterator(root_ + "/records", error);
         !error && it != fs::directory_iterator(); it.increment(error)) {
      auto text = ReadFile(it->path().string());
      if (!text.ok()) continue;  // one that is being written
      const size_t line = text->find('\n');
      if (line == std::string::npos || keep(text->substr(0, line), text->substr(line + 1))) continue;
      if (::unlink(it->path().c_str()) != 0 && errno != ENOENT)
        return ErrnoStatus("removing " + it->path().string());
    }
    return error ? ErrnoStatus("listing records", error.value()) : OkStatus();
  }

  std::string TxRoot() const { return root_ + "/tx"; }
  std::string LayerDir(const std::string& id) const { return root_ + "/layers/" + id; }
  std::string RecordPath(const std::string& key) const { return root_ + "/records/" + Sha256Hex(key); }
  const std::string& root() const { return root_; }

 private:
  struct Use {
    SteadyTime at, written;
  };

  void Used(const std::string& id) {
    std::lock_guard guard(mutex_);
    UsedLocked(id);
  }
  // Under mutex_. The time of `info` is what a restarted worker knows of it.
  void UsedLocked(const std::string& id) {
    constexpr auto kWriteEvery = std::chrono::hours(1);
    const SteadyTime now = std::chrono::steady_clock::now();
    auto [use, first] = used_.try_emplace(id);
    use->second.at = now;
    if (!first && now - use->second.written < kWriteEvery) return;
    use->second.written = now;
    ::utimensat(AT_FDCWD, (LayerDir(id) + "/info").c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
  }
  // Under mutex_.
  double IdleSecs(const std::string& id) const {
    if (auto use = used_.find(id); use != used_.end())
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - use->second.at).count();
    struct stat info {};
    const std::string dir = LayerDir(id);
    if (::stat((dir + "/info").c_str(), &info) != 0 && ::stat(dir.c_str(), &info) != 0) return 0;
    return std::max(0.0, SystemClock().UnixSeconds() - static_cast<double>(info.st_mtime));
  }

  std::string root_;
  std::mutex mutex_;  // guards the two below, and a removal against a use
  std::map<std::string, int> pins_;
  std::map<std::string, Use> used_;
};

FolderTransaction::~FolderTransaction() {
  if (dir_.empty()) return;
  if (Status removed = RemoveTree(dir_); !removed.ok())
    LOG_WARN("a transaction's folder could not be removed", {{"path", dir_}, {"error", removed}});
  else
    ::unlink((dir_ + ".lock").c_str());
}

Status FolderTransaction::Take(int writable, const std::function<Status()>& check) {
  ASSIGN_OR_RETURN(Tree from, Tree::At(writable, "upper"));
  ASSIGN_OR_RETURN(Tree to, Upper());
  // What the container wrote fits into its file system, which is as large as its quota: so does a copy.
  struct statvfs info {};
  if (::fstatvfs(writable, &info) != 0) return ErrnoStatus("looking at a layer's file system");
  const std::string links = dir_ + "/links";
  RETURN_IF_ERROR(MakeDirs(links, 0700));
  ASSIGN_OR_RETURN(Tree names, Tree::Open(links));
  Status copied = CopyUpper(from, to, names.root(),
                            {.walk = {.depth = kMostDepth, .entries = kMostEntries, .check = check},
                             .bytes = uint64_t{info.f_blocks} * info.f_frsize,
                             .shared = kMostShared});
  // One of our limits, not the machine's: another try would meet it again.
  if (copied.code() == Code::kResourceExhausted && copied.error() == 0)
    return FailedPrecondition(copied.message());
  RETURN_IF_ERROR(copied);
  return RemoveTree(links);
}

Result<LayerInfo> FolderTransaction::Commit(const std::string& id, const std::string& note) {
  if (!ValidId(id)) return InvalidArgument("not a layer id: " + id);
  ASSIGN_OR_RETURN(Tree upper, Upper());
  ASSIGN_OR_RETURN(TreeSize size, MeasureTree(upper.root(), {.depth = kMostDepth}));
  LayerInfo info{.id = id, .path = store_->LayerDir(id) + "/fs", .bytes = size.bytes, .note = note};
  std::string out = dir_ + "/out";
  RETURN_IF_ERROR(MakeDirs(out, 0755));
  if (::rename((dir_ + "/upper").c_str(), (out + "/fs").c_str()) != 0)
    return ErrnoStatus("committing layer " + id);
  std::string text = nlohmann::json{{"bytes", info.bytes}, {"note", note}}.dump(
      -1, ' ', false, nlohmann::json::error_handler_t::replace);
  RETURN_IF_ERROR(WriteFileAtomic(out + "/info", text));
  RETURN_IF_ERROR(SyncFileSystem(out));
  if (::syscall(SYS_renameat2, AT_FDCWD, out.c_str(), AT_FDCWD, store_->LayerDir(id).c_str(),
                RENAME_NOREPLACE) != 0) {
    if (errno != EEXIST) return ErrnoStatus("committing layer " + id);
    return store_->Find(id);
  }
  RETURN_IF_ERROR(SyncFolder(store_->root() + "/layers"));
  return info;
}

}  // namespace

std::string MountLayerId(const std::string& mount_id) { return DigestId("ly", "mount " + mount_id); }

Result<std::unique_ptr<LayerStore>> LayerStore::OpenFolders(const std::string& root) {
  auto store = std::make_unique<FolderStore>(root);
  RETURN_IF_ERROR(store->Prepare());
  return std::unique_ptr<LayerStore>(std::move(store));
}

}  // namespace lydian::image
