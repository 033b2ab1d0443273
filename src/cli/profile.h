// The profile `lydian` in the official client's configuration file. Everything else in the file stays as it
// is, comments too. Thread-safety: none. Errors: a file that is no TOML is refused and left alone, with the
// line.
#pragma once

#include <string>

#include "base/status.h"

namespace lydian::cli {

struct Profile {
  std::string server_url, token_id, token_secret;
};

// MODAL_CONFIG_PATH, else ~/.modal.toml.
std::string ClientConfigPath();

struct EditedConfig {
  std::string text;
  bool active = false;  // the client uses `lydian` without being told to
};
// `lydian` becomes active only where no other profile is in use: who works with another must not change sides
// unawares.
Result<EditedConfig> WithProfile(const std::string& text, const Profile& profile);

// Reads, edits and replaces the file (mode 0600, its owner kept); returns whether `lydian` is active.
Result<bool> WriteProfile(const std::string& path, const Profile& profile);

}  // namespace lydian::cli
