#include "cli/profile.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "base/fd.h"

namespace lydian::cli {
namespace {

constexpr char kName[] = "lydian";

std::string Quote(const std::string& value) {
  std::ostringstream out;
  out << toml::value<std::string>(value);
  return out.str();
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

bool IsHeader(const std::string& line) {
  size_t at = line.find_first_not_of(" \t");
  return at != std::string::npos && line[at] == '[';
}

std::string Trimmed(const std::string& text) {
  size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::string Unquoted(const std::string& name) {
  bool quoted =
      name.size() >= 2 && name.front() == name.back() && (name.front() == '"' || name.front() == '\'');
  return quoted ? name.substr(1, name.size() - 2) : name;
}

bool IsHeaderOf(const std::string& line, const std::string& name) {
  std::string text = Trimmed(line);
  size_t end = text.find(']');
  if (text.empty() || text[0] != '[' || end == std::string::npos) return false;
  std::string rest = Trimmed(text.substr(end + 1));
  return (rest.empty() || rest[0] == '#') && Unquoted(Trimmed(text.substr(1, end - 1))) == name;
}

// "" where the line sets nothing.
std::string KeyOf(const std::string& line) {
  std::string text = Trimmed(line);
  size_t equals = text.find('=');
  if (equals == std::string::npos || text[0] == '#') return "";
  return Unquoted(Trimmed(text.substr(0, equals)));
}

using Settings = std::vector<std::pair<std::string, std::string>>;  // key, TOML value; "" takes the key out

// Sets keys in one section, line by line, so that everything else keeps its look.
std::string SetInSection(const std::string& text, const std::string& section, Settings settings) {
  std::vector<std::string> out;
  bool inside = false, found = false;
  size_t insert_at = 0;  // behind the section's last setting
  for (const std::string& line : Lines(text)) {
    if (IsHeader(line)) inside = IsHeaderOf(line, section);
    std::string key = inside && !IsHeader(line) ? KeyOf(line) : "";
    bool replaced = false;
    for (auto setting = settings.begin(); !key.empty() && setting != settings.end(); ++setting) {
      if (setting->first != key) continue;
      replaced = true;
      if (!setting->second.empty()) out.push_back(key + " = " + setting->second);
      settings.erase(setting);
      break;
    }
    if (!replaced) out.push_back(line);
    if (inside) found = true;
    if (inside && (IsHeader(line) || !key.empty())) insert_at = out.size();
  }
  if (!found) {
    if (!out.empty() && !out.back().empty()) out.push_back("");
    out.push_back("[" + section + "]");
    insert_at = out.size();
  }
  std::vector<std::string> added;
  for (const auto& [key, value] : settings) {
    if (!value.empty()) added.push_back(key + " = " + value);
  }
  out.insert(out.begin() + static_cast<ptrdiff_t>(insert_at), added.begin(), added.end());
  std::string result;
  for (const std::string& line : out) result += line + "\n";
  return result;
}

Result<toml::table> Parse(const std::string& text) {
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& error) {
    return InvalidArgument("line " + std::to_string(error.source().begin.line) +
                           " is not TOML: " + std::string(error.description()));
  }
}

bool SameBut(const toml::table& before, const toml::table& after) {
  for (const auto& [name, section] : before) {
    if (name.str() == kName) continue;
    const toml::table* old_one = section.as_table();
    const toml::node* node = after.get(name.str());
    if (node == nullptr) return false;
    if (old_one == nullptr || node->as_table() == nullptr) continue;
    toml::table x = *old_one, y = *node->as_table();
    x.erase("active");
    y.erase("active");
    if (x != y) return false;
  }
  return true;
}

}  // namespace

std::string ClientConfigPath() {
  if (const char* path = std::getenv("MODAL_CONFIG_PATH"); path != nullptr && *path != '\0') return path;
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') {
    passwd* user = ::getpwuid(::getuid());
    home = user != nullptr ? user->pw_dir : "/root";
  }
  return std::string(home) + "/.modal.toml";
}

Result<EditedConfig> WithProfile(const std::string& text, const Profile& profile) {
  ASSIGN_OR_RETURN(toml::table before, Parse(text));
  std::string other_active;
  for (const auto& [name, section] : before) {
    const toml::table* table = section.as_table();
    if (table != nullptr && name.str() != kName && (*table)["active"].value_or(false))
      other_active = name.str();
  }
  // Without an active one the client uses `default` where it is there, and complains as soon as there is
  // another beside it.
  bool implied = other_active.empty() && before.contains("default");
  bool was_active = before[kName]["active"].value_or(false);
  EditedConfig edited;
  edited.active = other_active.empty() && (!implied || was_active);
  edited.text = text;
  if (implied && !was_active) edited.text = SetInSection(edited.text, "default", {{"active", "true"}});
  edited.text =
      SetInSection(edited.text, kName,
                   {{"server_url", Quote(profile.server_url)},
                    {"token_id", Quote(profile.token_id)},
                    {"token_secret", Quote(profile.token_secret)},
                    // A company's proxy variables would be used for this machine's own address otherwise.
                    {"disable_api_proxy", "true"},
                    {"active", edited.active ? "true" : ""}});
  auto after = Parse(edited.text);
  const toml::table* mine = after.ok() ? (*after)[kName].as_table() : nullptr;
  if (mine != nullptr && (*mine)["token_secret"].value_or(std::string()) == profile.token_secret &&
      (*mine)["server_url"].value_or(std::string()) == profile.server_url && SameBut(before, *after)) {
    return edited;
  }
  // Written in a way that lines don't show (an inline table, dotted keys): as values then, which loses
  // comments.
  toml::table table = before;
  if (implied && !was_active && table["default"].is_table())
    table["default"].as_table()->insert_or_assign("active", true);
  if (!table[kName].is_table()) table.insert_or_assign(kName, toml::table{});
  toml::table& section = *table[kName].as_table();
  section.insert_or_assign("server_url", profile.server_url);
  section.insert_or_assign("token_id", profile.token_id);
  section.insert_or_assign("token_secret", profile.token_secret);
  section.insert_or_assign("disable_api_proxy", true);
  section.erase("active");
  if (edited.active) section.insert_or_assign("active", true);
  std::ostringstream out;
  out << table << "\n";
  edited.text = out.str();
  return edited;
}

Result<bool> WriteProfile(const std::string& path, const Profile& profile) {
  std::string real = path;
  char resolved[PATH_MAX];
  if (::realpath(path.c_str(), resolved) != nullptr) real = resolved;  // a link to it stays a link
  std::string text;
  struct stat before {};
  bool existed = ::stat(real.c_str(), &before) == 0;
  if (existed) {
    ASSIGN_OR_RETURN(text, ReadFile(real, 16 << 20));
  }
  auto edited = WithProfile(text, profile);
  if (!edited.ok()) return std::move(edited).With(path + " was left as it is").status();
  RETURN_IF_ERROR(WriteFileAtomic(real, edited->text, 0600, true));
  if (existed && ::geteuid() == 0 && ::lchown(real.c_str(), before.st_uid, before.st_gid) != 0) {
    return ErrnoStatus("keeping the owner of " + path);
  }
  return edited->active;
}

}  // namespace lydian::cli
