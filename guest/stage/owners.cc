#include "guest/stage/owners.h"

#include <algorithm>
#include <cctype>
#include <vector>

namespace lydian::stage {
namespace {

constexpr size_t kTableBytes = size_t{1} << 20;

// The lines of a passwd or group file, split at colons. A table that is missing, or no file, has none.
std::vector<std::vector<std::string>> Table(const View& view, const std::string& path) {
  std::vector<std::vector<std::string>> rows;
  auto text = view.Read(path, kTableBytes);
  if (!text.ok()) return rows;
  for (size_t start = 0; start < text->size();) {
    size_t end = std::min(text->find('\n', start), text->size());
    std::vector<std::string> row;
    std::string line = text->substr(start, end - start);
    for (size_t at = 0; at <= line.size();) {
      size_t colon = std::min(line.find(':', at), line.size());
      row.push_back(line.substr(at, colon - at));
      at = colon + 1;
    }
    if (row.size() >= 3) rows.push_back(std::move(row));
    start = end + 1;
  }
  return rows;
}

bool Number(const std::string& text, unsigned& value) {
  if (text.empty() || text.size() > 9 ||
      !std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); }))
    return false;
  value = static_cast<unsigned>(std::stoul(text));
  return true;
}

Status CheckIds(const Ids& ids, const std::string& text) {
  if (ids.uid < 65536 && ids.gid < 65536) return OkStatus();
  return InvalidArgument("\"" + text + "\": ids of users and groups end at 65535 in a container");
}

}  // namespace

Result<Owner> FindOwner(const View& view, const std::string& text) {
  Owner owner;
  if (text.empty()) return owner;
  size_t colon = text.find(':');
  const std::string user = text.substr(0, colon);
  const std::string group = colon == std::string::npos ? "" : text.substr(colon + 1);
  bool known = false;
  const bool number = Number(user, owner.ids.uid);
  for (const auto& row : Table(view, "/etc/passwd")) {
    Ids ids;
    if (row.size() < 6 || !Number(row[2], ids.uid) || !Number(row[3], ids.gid)) continue;
    if (number ? ids.uid != owner.ids.uid : row[0] != user) continue;
    owner = {ids, row[5].empty() ? std::string(1, '/') : row[5], row[0]};
    known = true;
    break;
  }
  if (!known && !number && user != "root") return InvalidArgument("no user " + user + " in /etc/passwd");
  if (!known && number && owner.ids.uid != 0) owner.home = std::string(1, '/'), owner.name = user;
  bool found = group.empty() || Number(group, owner.ids.gid);
  if (!found) {
    for (const auto& row : Table(view, "/etc/group")) {
      found = row[0] == group && Number(row[2], owner.ids.gid);
      if (found) break;
    }
  }
  if (!found && group == "root") owner.ids.gid = 0, found = true;
  if (!found) return InvalidArgument("no group " + group + " in /etc/group");
  RETURN_IF_ERROR(CheckIds(owner.ids, text));
  return owner;
}

}  // namespace lydian::stage
