// MD5 and SHA-256 of bytes as they come. Private to the module. Thread-safety: one thread at a time.
#pragma once

#include <openssl/evp.h>

#include <memory>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/status.h"

namespace lydian::blob {

class Hasher {
 public:
  Hasher(bool md5, bool sha256) {
    if (md5) md5_ = Begin(EVP_md5());
    if (sha256) sha256_ = Begin(EVP_sha256());
  }
  void Update(std::string_view bytes) {
    for (const Context* context : {&md5_, &sha256_}) {
      if (*context) CHECK(EVP_DigestUpdate(context->get(), bytes.data(), bytes.size()) == 1);
    }
  }
  // Once each; empty when it was not asked for.
  std::string Md5Hex() { return End(md5_); }
  std::string Sha256Hex() { return End(sha256_); }

 private:
  using Context = std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)>;
  static Context Begin(const EVP_MD* kind) {
    Context context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    CHECK(context && EVP_DigestInit_ex(context.get(), kind, nullptr) == 1);
    return context;
  }
  static std::string End(Context& context) {
    if (!context) return {};
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    CHECK(EVP_DigestFinal_ex(context.get(), raw, &length) == 1);
    context.reset();
    return HexEncode({reinterpret_cast<char*>(raw), length});
  }

  Context md5_{nullptr, EVP_MD_CTX_free}, sha256_{nullptr, EVP_MD_CTX_free};
};

}  // namespace lydian::blob
