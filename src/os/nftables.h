// nftables in the process, by libnftables: commands in nft's own language, each call one transaction.
// Thread-safety: none; one owner. Errors: nft's message.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"

struct nft_ctx;

namespace lydian::os {

class Nftables {
 public:
  static Result<Nftables> Open();
  // Runs the commands, all or nothing; gives what they print.
  Result<std::string> Run(const std::string& commands);

 private:
  struct Free {
    void operator()(nft_ctx* context) const;
  };
  explicit Nftables(nft_ctx* context) : context_(context) {}

  std::unique_ptr<nft_ctx, Free> context_;
};

// Says when somebody has changed a table, as the kernel tells it (nfnetlink). Of the network namespace in
// which it was opened. Thread-safety: none.
class TableWatch {
 public:
  static Result<TableWatch> Open();
  int fd() const { return fd_.get(); }  // readable when there is something to look at
  // Reads all that there is: whether the table, or a chain, rule or set in it, was taken away or made anew.
  // Elements that come are not counted. Also true when messages were lost.
  bool Changed(const std::string& table);

 private:
  explicit TableWatch(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace lydian::os
