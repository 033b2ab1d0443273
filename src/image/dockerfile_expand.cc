// Words and variables of Dockerfiles.
#include <cctype>

#include "image/dockerfile.h"

namespace lydian::image {
namespace {

// Variables that double each other grow without bound. The kernel takes no longer word of a command or its
// environment; a here-document is as long as a Dockerfile may be.
constexpr size_t kMostOfWord = size_t{128} << 10;
constexpr size_t kMostOfText = size_t{4} << 20;

bool NameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool NameChar(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

class Expander {
 public:
  Expander(const std::string& text, const std::map<std::string, std::string>& variables, char escape,
           bool quotes)
      : text_(text), variables_(variables), escape_(escape), quotes_(quotes) {}

  // Up to `end` ('\0' = the end of the text), which is consumed.
  Result<std::string> Run(char end, int depth = 0) {
    if (depth > 20) return InvalidArgument("${...} is nested too deeply");
    std::string out;
    while (at_ < text_.size()) {
      char c = text_[at_];
      if (end != '\0' && c == end) {
        ++at_;
        return out;
      }
      if (quotes_ && c == '\'') {
        RETURN_IF_ERROR(SingleQuoted(out));
      } else if (quotes_ && c == '"') {
        RETURN_IF_ERROR(DoubleQuoted(out, depth));
      } else if (c == escape_) {
        Escaped(out);
      } else if (c == '$') {
        RETURN_IF_ERROR(Variable(out, depth));
      } else {
        out += c;
        ++at_;
      }
      RETURN_IF_ERROR(Bounded(out));
    }
    if (end != '\0') return InvalidArgument("${ without }");
    return out;
  }

 private:
  Status Bounded(const std::string& out) const {
    const size_t most = quotes_ ? kMostOfWord : kMostOfText;
    if (out.size() <= most) return OkStatus();
    return InvalidArgument(
        "becomes longer than " + std::to_string(most) +
        " bytes with its variables filled in; put what is so long into a file and COPY it");
  }

  Status SingleQuoted(std::string& out) {
    size_t close = text_.find('\'', at_ + 1);
    if (close == std::string::npos) return InvalidArgument("a single quote is not closed");
    out += text_.substr(at_ + 1, close - at_ - 1);
    at_ = close + 1;
    return OkStatus();
  }

  Status DoubleQuoted(std::string& out, int depth) {
    for (++at_; at_ < text_.size();) {
      char c = text_[at_];
      if (c == '"') {
        ++at_;
        return OkStatus();
      }
      if (c == '$') {
        RETURN_IF_ERROR(Variable(out, depth));
        RETURN_IF_ERROR(Bounded(out));
      } else if (c == escape_ && at_ + 1 < text_.size()) {
        char next = text_[at_ + 1];
        // As in a shell: inside double quotes only these lose their backslash.
        if (next != '"' && next != '$' && next != escape_) out += c;
        out += next;
        at_ += 2;
      } else {
        out += c;
        ++at_;
      }
    }
    return InvalidArgument("a double quote is not closed");
  }

  void Escaped(std::string& out) {
    if (at_ + 1 >= text_.size()) {
      out += text_[at_++];
      return;
    }
    char next = text_[at_ + 1];
    // In a here-document a backslash protects only a variable and itself.
    if (!quotes_ && next != '$' && next != escape_) out += escape_;
    out += next;
    at_ += 2;
  }

  std::string Name() {
    size_t start = at_;
    if (at_ < text_.size() && NameStart(text_[at_]))
      while (at_ < text_.size() && NameChar(text_[at_])) ++at_;
    return text_.substr(start, at_ - start);
  }

  Status Variable(std::string& out, int depth) {
    ++at_;  // $
    if (at_ >= text_.size() || (text_[at_] != '{' && !NameStart(text_[at_]))) {
      out += '$';
      return OkStatus();
    }
    if (text_[at_] != '{') {
      if (auto found = variables_.find(Name()); found != variables_.end()) out += found->second;
      return OkStatus();
    }
    ++at_;
    std::string name = Name();
    if (name.empty()) return InvalidArgument("${ needs a variable's name");
    auto found = variables_.find(name);
    bool set = found != variables_.end();
    if (at_ < text_.size() && text_[at_] == '}') {
      ++at_;
      if (set) out += found->second;
      return OkStatus();
    }
    bool colon = at_ < text_.size() && text_[at_] == ':';
    if (colon) ++at_;
    if (at_ >= text_.size()) return InvalidArgument("${" + name + " without }");
    char op = text_[at_++];
    if (op != '-' && op != '+' && op != '?')
      return InvalidArgument("${" + name + (colon ? ":" : "") + op +
                             "...} is not supported: only :- - :+ + :? and ? are");
    ASSIGN_OR_RETURN(std::string word, Run('}', depth + 1));
    bool present = set && !(colon && found->second.empty());
    if (op == '?' && !present) return InvalidArgument(name + ": " + (word.empty() ? "is not set" : word));
    if (op == '+') {
      if (present) out += word;
    } else {
      out += present ? found->second : word;
    }
    return OkStatus();
  }

  const std::string& text_;
  const std::map<std::string, std::string>& variables_;
  char escape_;
  bool quotes_;
  size_t at_ = 0;
};

}  // namespace

std::vector<std::string> SplitWords(const std::string& text, char escape) {
  std::vector<std::string> words;
  std::string word;
  bool in_word = false;
  char quote = '\0';
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (quote == '\0' && std::isspace(static_cast<unsigned char>(c))) {
      if (in_word) words.push_back(std::move(word));
      word.clear();
      in_word = false;
      continue;
    }
    in_word = true;
    word += c;
    if (c == escape && quote != '\'' && i + 1 < text.size()) {
      word += text[++i];
    } else if (quote == '\0' && (c == '"' || c == '\'')) {
      quote = c;
    } else if (c == quote) {
      quote = '\0';
    }
  }
  if (in_word) words.push_back(std::move(word));
  return words;
}

Result<std::string> ExpandWord(const std::string& word, const std::map<std::string, std::string>& variables,
                               char escape) {
  return Expander(word, variables, escape, true).Run('\0');
}

Result<std::string> ExpandText(const std::string& text, const std::map<std::string, std::string>& variables,
                               char escape) {
  return Expander(text, variables, escape, false).Run('\0');
}

}  // namespace lydian::image
