// nftables in the process, by libnftables: commands in nft's own language, each call one transaction.
// Thread-safety: none; one owner. Errors: nft's message.
#pragma once

#include <memory>
#include <string>

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

}  // namespace lydian::os
