#include "image/dockerfile.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

namespace lydian::image {
namespace {

constexpr size_t kMaxBytes = size_t{4} << 20;

std::string TrimLeft(const std::string& text) {
  size_t start = text.find_first_not_of(" \t\r\f\v");
  return start == std::string::npos ? "" : text.substr(start);
}

std::string TrimRight(const std::string& text) {
  size_t end = text.find_last_not_of(" \t\r\n\f\v");
  return end == std::string::npos ? "" : text.substr(0, end + 1);
}

std::string Trim(const std::string& text) { return TrimRight(TrimLeft(text)); }

std::string Upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

const std::set<std::string>& KnownNames() {
  static const std::set<std::string> names = {"FROM",       "RUN",         "CMD",     "LABEL", "MAINTAINER",
                                              "EXPOSE",     "ENV",         "ADD",     "COPY",  "ENTRYPOINT",
                                              "VOLUME",     "USER",        "WORKDIR", "ARG",   "ONBUILD",
                                              "STOPSIGNAL", "HEALTHCHECK", "SHELL"};
  return names;
}

Status At(int line, const std::string& message) {
  return InvalidArgument("Dockerfile line " + std::to_string(line) + ": " + message);
}

// `# name=value` above everything else; true if the line is one.
bool Directive(const std::string& line, std::string& name, std::string& value) {
  std::string text = Trim(line);
  if (text.empty() || text[0] != '#') return false;
  size_t equals = text.find('=');
  if (equals == std::string::npos) return false;
  name = Trim(text.substr(1, equals - 1));
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  value = Trim(text.substr(equals + 1));
  return name == "syntax" || name == "escape" || name == "check";
}

class Parser {
 public:
  explicit Parser(std::vector<std::string> lines) : lines_(std::move(lines)) {}

  Result<Dockerfile> Run() {
    RETURN_IF_ERROR(Directives());
    while (at_ < lines_.size()) {
      std::string line = Trim(lines_[at_]);
      if (line.empty() || line[0] == '#') {
        ++at_;
        continue;
      }
      RETURN_IF_ERROR(One());
    }
    return std::move(file_);
  }

 private:
  Status Directives() {
    std::string name, value;
    for (; at_ < lines_.size() && Directive(lines_[at_], name, value); ++at_) {
      if (name != "escape") continue;
      if (value != "\\" && value != "`")
        return At(static_cast<int>(at_) + 1, "escape must be \\ or `, not " + value);
      file_.escape = value[0];
    }
    return OkStatus();
  }

  // The lines of one instruction as one, continuations and the comments between them taken out.
  std::string Logical() {
    std::string joined;
    bool first = true;
    while (at_ < lines_.size()) {
      std::string line = lines_[at_];
      std::string bare = TrimLeft(line);
      ++at_;
      if (!first && (TrimRight(bare).empty() || bare[0] == '#')) continue;
      std::string end = TrimRight(line);
      bool goes_on = !end.empty() && end.back() == file_.escape;
      if (goes_on) end.pop_back();
      joined += first ? TrimLeft(goes_on ? end : line) : (goes_on ? end : line);
      first = false;
      if (!goes_on) break;
    }
    return TrimRight(joined);
  }

  Status One() {
    Instruction one;
    one.line = static_cast<int>(at_) + 1;
    std::string text = Logical();
    size_t space = text.find_first_of(" \t");
    one.name = Upper(text.substr(0, space));
    one.rest = space == std::string::npos ? "" : TrimLeft(text.substr(space));
    if (!KnownNames().contains(one.name))
      return At(one.line, "unknown instruction " + one.name.substr(0, 60));
    one.text = one.name + (one.rest.empty() ? "" : " " + one.rest);
    RETURN_IF_ERROR(Flags(one));
    if (one.name == "RUN" || one.name == "COPY" || one.name == "ADD") RETURN_IF_ERROR(Heredocs(one));
    if (one.rest.empty()) return InstructionError(one, "needs at least one argument");
    JsonForm(one);
    file_.instructions.push_back(std::move(one));
    return OkStatus();
  }

  Status Flags(Instruction& one) {
    static const std::set<std::string> with_flags = {"FROM", "RUN", "COPY", "ADD", "HEALTHCHECK"};
    if (!with_flags.contains(one.name)) return OkStatus();
    while (one.rest.starts_with("--")) {
      size_t space = one.rest.find_first_of(" \t");
      std::string flag = one.rest.substr(2, space == std::string::npos ? space : space - 2);
      size_t equals = flag.find('=');
      std::string key = flag.substr(0, equals);
      if (key.empty()) return InstructionError(one, "\"--\" without a name");
      one.flags.emplace_back(key, equals == std::string::npos ? "true" : flag.substr(equals + 1));
      one.rest = space == std::string::npos ? "" : TrimLeft(one.rest.substr(space));
    }
    return OkStatus();
  }

  Status Heredocs(Instruction& one) {
    struct Open {
      Heredoc doc;
      bool chomp;
    };
    std::vector<Open> open;
    for (const auto& word : SplitWords(one.rest, file_.escape)) {
      size_t digits = word.find_first_not_of("0123456789");
      if (digits == std::string::npos || word.compare(digits, 2, "<<") != 0) continue;
      std::string name = word.substr(digits + 2);
      bool chomp = name.starts_with("-");
      if (chomp) name = name.substr(1);
      if (name.empty() || name[0] == '<') continue;
      bool quoted = name.size() >= 2 && (name[0] == '"' || name[0] == '\'') && name.back() == name[0];
      if (quoted) name = name.substr(1, name.size() - 2);
      bool plain = !name.empty() && std::all_of(name.begin(), name.end(), [](unsigned char c) {
        return std::isalnum(c) || c == '_' || c == '.' || c == '-';
      });
      if (!plain) continue;
      open.push_back({Heredoc{.name = name, .expand = !quoted}, chomp});
    }
    for (auto& [doc, chomp] : open) {
      bool closed = false;
      while (at_ < lines_.size() && !closed) {
        std::string line = lines_[at_++];
        if (chomp) line = line.substr(std::min(line.find_first_not_of('\t'), line.size()));
        closed = line == doc.name;
        if (!closed) doc.content += line + "\n";
      }
      if (!closed)
        return InstructionError(one, "the here-document <<" + doc.name + " has no end line " + doc.name);
      one.heredocs.push_back(std::move(doc));
    }
    return OkStatus();
  }

  static void JsonForm(Instruction& one) {
    static const std::set<std::string> with_lists = {"RUN",  "CMD", "ENTRYPOINT", "SHELL",
                                                     "COPY", "ADD", "VOLUME"};
    if (!with_lists.contains(one.name) || one.rest.empty() || one.rest[0] != '[') return;
    auto json = nlohmann::json::parse(one.rest, nullptr, false);
    if (!json.is_array()) return;  // a shell command that begins with a bracket
    for (const auto& item : json)
      if (!item.is_string()) return;
    one.exec_form = true;
    one.list = json.get<std::vector<std::string>>();
  }

  std::vector<std::string> lines_;
  size_t at_ = 0;
  Dockerfile file_;
};

}  // namespace

std::string Instruction::Flag(const std::string& key) const {
  for (const auto& [name, value] : flags)
    if (name == key) return value;
  return "";
}

bool Instruction::HasFlag(const std::string& key) const {
  return std::any_of(flags.begin(), flags.end(), [&](const auto& flag) { return flag.first == key; });
}

Status InstructionError(const Instruction& instruction, const std::string& message) {
  return At(instruction.line, instruction.name + ": " + message);
}

Result<Dockerfile> ParseDockerfile(const std::vector<std::string>& items) {
  std::vector<std::string> lines;
  size_t bytes = 0;
  for (const auto& item : items) {
    bytes += item.size() + 1;
    if (bytes > kMaxBytes) return InvalidArgument("a Dockerfile of more than 4 MiB is refused");
    for (size_t start = 0; start <= item.size();) {
      size_t end = std::min(item.find('\n', start), item.size());
      std::string line = item.substr(start, end - start);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.find('\0') != std::string::npos)
        return At(static_cast<int>(lines.size()) + 1, "holds a NUL byte");
      lines.push_back(std::move(line));
      start = end + 1;
    }
  }
  if (!lines.empty() && lines[0].starts_with("\xEF\xBB\xBF")) lines[0] = lines[0].substr(3);
  return Parser(std::move(lines)).Run();
}

}  // namespace lydian::image
