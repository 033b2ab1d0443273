// The key of an installation: 32 random bytes in a file (0600), outside the database. Secrets are sealed with
// it, digests of their content are keyed with it, and other keys (of URLs) are derived from it.
// Thread-safety: const after loading; every method from any thread. Errors: DATA_LOSS when sealed bytes don't
// open.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace lydian::control {

class Key {
 public:
  // Makes the file if there is none (atomically, on disk before it is used).
  static Result<Key> LoadOrCreate(const std::string& path);
  explicit Key(std::string bytes) : bytes_(std::move(bytes)) {}

  // AES-256-GCM: nonce, ciphertext, tag. `context` (an id) is authenticated, so sealed bytes can't be moved
  // to another row.
  Result<std::string> Seal(std::string_view plain, std::string_view context) const;
  Result<std::string> Open(std::string_view sealed, std::string_view context) const;
  // Hex; says whether two contents are equal without telling what they are.
  std::string Mac(std::string_view purpose, std::string_view data) const;
  // 32 bytes for another use.
  std::string Derive(std::string_view purpose) const;

 private:
  std::string bytes_;
};

}  // namespace lydian::control
