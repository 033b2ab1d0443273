// The outputs of one container that control has not acknowledged, in a file: a container is answered as soon
// as its output is there, and a worker that was killed sends what it finds. docs/formats/output-spool.md.
//
// Thread-safety: none; on the worker's strand. Durability: against the death of the process, not of the
// machine. Errors: RESOURCE_EXHAUSTED on a full disk (nothing of that output is kept), DATA_LOSS for a file
// of another form.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "lydian/worker.pb.h"

namespace lydian::worker {

class OutputSpool {
 public:
  // Makes the file, or opens it if it is there.
  static Result<std::unique_ptr<OutputSpool>> Open(const std::string& path);

  // What was in it when it was opened: everything that was not acknowledged, and perhaps more.
  std::vector<Output> TakeFound() { return std::move(found_); }
  Status Add(const Output& output);
  // One of those added or found is not needed any more. When none is left, the file begins anew.
  void Forget();
  // Under steady work there is always one left: when the file is crowded with others, it is made anew from
  // those that are needed. On an error it stays as it is, and asks again when it has doubled.
  bool crowded() const { return end_ > limit_; }
  Status Rewrite(const std::vector<const Output*>& needed);

 private:
  OutputSpool(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  void Read(const std::string& bytes);

  const std::string path_;
  UniqueFd fd_;
  uint64_t end_ = 0;  // of what counts
  uint64_t limit_ = 0;
  size_t live_ = 0;
  std::vector<Output> found_;
};

}  // namespace lydian::worker
