// For tests: a disk under the databases that are opened while it lives. It counts what is asked of it, and
// can be full, fail, or lose its power.
//
//   store::FaultyDisk disk(seed);
//   auto db = store::Database::Open(path, migrations);
//   disk.Fill();                               // files grow no more: ENOSPC
//   disk.Fail(FaultyDisk::Op::kSync, "-wal");  // the next sync of a log: EIO, and what it was about is lost
//   disk.PowerCut(dir, other);                 // `other` has what a power cut would have left of `dir`
//
// What a power cut leaves: everything that was synced, and of each later write a part that the seed decides,
// by sectors of 512 bytes. Thread-safety: all methods, from any thread. One at a time; it outlives the
// databases on it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"

namespace lydian::store {

class FaultyDisk {
 public:
  enum class Op { kRead, kWrite, kSync };

  explicit FaultyDisk(uint64_t seed = 1);
  ~FaultyDisk();
  FaultyDisk(const FaultyDisk&) = delete;
  FaultyDisk& operator=(const FaultyDisk&) = delete;

  void Fill();
  void MakeRoom();
  // The next `times` operations of this kind on files whose name ends so fail with EIO.
  void Fail(Op op, const std::string& suffix, int times = 1);
  // How many were asked for, of files whose name ends so.
  uint64_t Count(Op op, const std::string& suffix) const;
  // Until there were so many; false when that took too long.
  bool WaitFor(Op op, const std::string& suffix, uint64_t count, std::chrono::milliseconds most) const;
  // How often room was refused.
  uint64_t Refused() const;
  bool WaitForRefused(uint64_t count, std::chrono::milliseconds most) const;
  // Databases may be open and written meanwhile. `to` is a folder that exists.
  Status PowerCut(const std::string& from, const std::string& to);

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace lydian::store
