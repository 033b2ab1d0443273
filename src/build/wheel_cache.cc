#include "build/wheel_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <sstream>
#include <vector>

#include "base/copy.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/log.h"

namespace lydian::build {
namespace {

// Another form gets another name; "/wheels" was filled by images that were not ours.
constexpr const char* kFolder = "/wheels-2";
constexpr const char* kOldFolder = "/wheels";
constexpr const char* kDigests = "/SHA256SUMS";
constexpr size_t kMostBytes = size_t{1} << 30;

bool WheelName(const std::string& name) {
  return name.ends_with(".whl") && name[0] != '.' && name.size() < 200 &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '.' || c == '_' || c == '-' || c == '+' || c == '!';
         });
}

Result<std::string> Digest(const std::string& path) {
  ASSIGN_OR_RETURN(std::string bytes, ReadFile(path, kMostBytes));
  return Sha256Hex(bytes);
}

}  // namespace

WheelCache::WheelCache(const std::string& cache_dir) : dir_(cache_dir.empty() ? "" : cache_dir + kFolder) {}

Status WheelCache::DropOld(const std::string& cache_dir) {
  return cache_dir.empty() ? OkStatus() : RemoveTree(cache_dir + kOldFolder);
}

Result<UniqueFd> WheelCache::Lock() {
  RETURN_IF_ERROR(MakeDirs(dir_, 0755));
  UniqueFd fd(::open((dir_ + "/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus("creating the lock of " + dir_);
  while (::flock(fd.get(), LOCK_EX) != 0)
    if (errno != EINTR) return ErrnoStatus("locking " + dir_);
  return fd;
}

std::map<std::string, std::string> WheelCache::ReadDigests() const {
  std::map<std::string, std::string> digests;
  auto text = ReadFile(dir_ + kDigests, size_t{8} << 20);
  std::istringstream lines(text.ok() ? *text : "");
  for (std::string digest, name; lines >> digest >> name;) digests[name] = digest;
  return digests;
}

Status WheelCache::WriteDigests(const std::map<std::string, std::string>& digests) const {
  std::string text;
  for (const auto& [name, digest] : digests) text += digest + "  " + name + "\n";
  return WriteFileAtomic(dir_ + kDigests, text, 0644, true);
}

Result<std::string> WheelCache::Checked() {
  if (dir_.empty()) return std::string();
  ASSIGN_OR_RETURN(UniqueFd lock, Lock());
  const auto digests = ReadDigests();
  ASSIGN_OR_RETURN(image::Tree folder, image::Tree::Open(dir_));
  ASSIGN_OR_RETURN(auto names, folder.Names());
  for (const auto& name : names) {
    if (!name.ends_with(".whl")) continue;
    auto known = digests.find(name);
    auto digest = Digest(dir_ + "/" + name);
    if (digest.ok() && known != digests.end() && *digest == known->second) continue;
    LOG_WARN("a wheel of the cache is not what was downloaded, and goes", {{"wheel", name}});
    RETURN_IF_ERROR(RemoveTree(dir_ + "/" + name));
  }
  return dir_;
}

Status WheelCache::KeepOne(const image::Tree& tree, const std::string& path, const std::string& name,
                           std::map<std::string, std::string>& digests) {
  const std::string place = dir_ + "/" + name, part = dir_ + "/." + name + "." + RandomHex(4);
  if (Exists(place)) return OkStatus();
  ASSIGN_OR_RETURN(UniqueFd from, tree.OpenFile(path + "/" + name));
  UniqueFd to(::open(part.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!to.valid()) return ErrnoStatus("keeping " + name);
  uint64_t bytes = 0;
  auto charge = [&](uint64_t more) {
    return (bytes += more) <= kMostBytes ? OkStatus() : ResourceExhausted(name + " is too large for a wheel");
  };
  Status kept = CopyContent(from.get(), to.get(), charge);
  if (kept.ok()) {
    auto digest = Digest(part);
    kept = digest.status();
    // The digest is on disk before the wheel has its name: a wheel without one is thrown away.
    if (digest.ok()) digests[name] = *digest, kept = WriteDigests(digests);
  }
  if (kept.ok() && ::rename(part.c_str(), place.c_str()) != 0) kept = ErrnoStatus("keeping " + name);
  if (!kept.ok()) ::unlink(part.c_str());
  return kept;
}

Status WheelCache::Keep(const image::Tree& tree, const std::string& folder) {
  if (dir_.empty()) return OkStatus();
  ASSIGN_OR_RETURN(UniqueFd lock, Lock());
  auto info = tree.Stat(folder);
  if (!info.ok()) return info.status().error() == ENOENT ? OkStatus() : info.status();
  ASSIGN_OR_RETURN(image::Tree made, tree.Below(folder));
  ASSIGN_OR_RETURN(auto names, made.Names());
  auto digests = ReadDigests();
  for (const auto& name : names)
    if (WheelName(name)) RETURN_IF_ERROR(KeepOne(made, "", name, digests));
  return OkStatus();
}

}  // namespace lydian::build
