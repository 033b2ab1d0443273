#include "control/key.h"

#include <openssl/evp.h>

#include <memory>

#include "base/fd.h"
#include "base/ids.h"

namespace lydian::control {

namespace {

constexpr size_t kKeyBytes = 32, kNonceBytes = 12, kTagBytes = 16;

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

const unsigned char* Bytes(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}
unsigned char* Bytes(std::string& text, size_t offset = 0) {
  return reinterpret_cast<unsigned char*>(text.data()) + offset;
}

}  // namespace

Result<Key> Key::LoadOrCreate(const std::string& path) {
  if (!Exists(path)) {
    RETURN_IF_ERROR(WriteFileAtomic(path, RandomBytes(kKeyBytes), 0600, /*durable=*/true)
                        .With("the key of this installation"));
  }
  ASSIGN_OR_RETURN(std::string bytes, ReadFile(path, 4096).With("the key of this installation"));
  if (bytes.size() != kKeyBytes)
    return DataLoss(path + " must hold exactly 32 bytes; restore it from a backup");
  return Key(std::move(bytes));
}

Result<std::string> Key::Seal(std::string_view plain, std::string_view context) const {
  std::string sealed = RandomBytes(kNonceBytes);
  sealed.resize(kNonceBytes + plain.size() + kTagBytes);
  Context cipher(EVP_CIPHER_CTX_new());
  int length = 0;
  if (cipher == nullptr ||
      EVP_EncryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, Bytes(std::string_view(bytes_)),
                         Bytes(sealed)) != 1 ||
      EVP_EncryptUpdate(cipher.get(), nullptr, &length, Bytes(context), static_cast<int>(context.size())) !=
          1 ||
      EVP_EncryptUpdate(cipher.get(), Bytes(sealed, kNonceBytes), &length, Bytes(plain),
                        static_cast<int>(plain.size())) != 1 ||
      EVP_EncryptFinal_ex(cipher.get(), Bytes(sealed, kNonceBytes + plain.size()), &length) != 1 ||
      EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_GET_TAG, kTagBytes,
                          Bytes(sealed, kNonceBytes + plain.size())) != 1) {
    return Internal("the cipher failed");
  }
  return sealed;
}

Result<std::string> Key::Open(std::string_view sealed, std::string_view context) const {
  if (sealed.size() < kNonceBytes + kTagBytes) return DataLoss("a sealed value is too short");
  std::string_view body = sealed.substr(kNonceBytes, sealed.size() - kNonceBytes - kTagBytes);
  std::string tag(sealed.substr(sealed.size() - kTagBytes));
  std::string plain(body.size(), '\0');
  Context cipher(EVP_CIPHER_CTX_new());
  int length = 0;
  unsigned char spare[16];
  if (cipher == nullptr ||
      EVP_DecryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, Bytes(std::string_view(bytes_)),
                         Bytes(sealed)) != 1 ||
      EVP_DecryptUpdate(cipher.get(), nullptr, &length, Bytes(context), static_cast<int>(context.size())) !=
          1 ||
      EVP_DecryptUpdate(cipher.get(), Bytes(plain), &length, Bytes(body), static_cast<int>(body.size())) !=
          1 ||
      EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, tag.data()) != 1 ||
      EVP_DecryptFinal_ex(cipher.get(), spare, &length) != 1) {
    return DataLoss("a sealed value doesn't open with this installation's key");
  }
  return plain;
}

std::string Key::Mac(std::string_view purpose, std::string_view data) const {
  std::string text(purpose);
  text.push_back('\0');
  text.append(data);
  return HmacSha256Hex(bytes_, text);
}

std::string Key::Derive(std::string_view purpose) const { return Sha256Raw(Mac("derive", purpose)); }

}  // namespace lydian::control
