#include "os/nftables.h"

#include <nftables/libnftables.h>

namespace lydian::os {

void Nftables::Free::operator()(nft_ctx* context) const { ::nft_ctx_free(context); }

Result<Nftables> Nftables::Open() {
  nft_ctx* context = ::nft_ctx_new(NFT_CTX_DEFAULT);
  if (context == nullptr) return Internal("no nftables context");
  ::nft_ctx_buffer_output(context);
  ::nft_ctx_buffer_error(context);
  return Nftables(context);
}

Result<std::string> Nftables::Run(const std::string& commands) {
  int failed = ::nft_run_cmd_from_buffer(context_.get(), commands.c_str());
  const char* error = ::nft_ctx_get_error_buffer(context_.get());
  const char* output = ::nft_ctx_get_output_buffer(context_.get());
  if (failed != 0)
    return FailedPrecondition(std::string("nftables: ") + (error != nullptr ? error : "failed"));
  return std::string(output != nullptr ? output : "");
}

}  // namespace lydian::os
