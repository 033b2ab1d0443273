// Reads Dockerfiles into instructions: parser directives, comments, continuation lines (also across list
// items, as the client sends them), here-documents, flags, the JSON form. Knows the syntax, not what an
// instruction does. Thread-safety: pure functions. Errors: INVALID_ARGUMENT that names line and instruction.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"

namespace lydian::image {

struct Heredoc {
  std::string name;
  std::string content;  // with its last line break; tabs stripped for <<-
  bool expand = true;   // false when the name was quoted
  bool operator==(const Heredoc&) const = default;
};

struct Instruction {
  std::string name;                                        // upper case: "RUN"
  int line = 0;                                            // of its first line, from 1
  std::string text;                                        // for people: "RUN a && b", continuations joined
  std::vector<std::pair<std::string, std::string>> flags;  // {"from", "base"} of --from=base, in order
  std::string rest;                                        // what follows name and flags
  bool exec_form = false;  // `rest` was a JSON list of strings: `list` holds it
  std::vector<std::string> list;
  std::vector<Heredoc> heredocs;

  std::string Flag(const std::string& key) const;  // "" if absent
  bool HasFlag(const std::string& key) const;
};

struct Dockerfile {
  std::vector<Instruction> instructions;
  char escape = '\\';
};

// `lines`: each item one or more lines.
Result<Dockerfile> ParseDockerfile(const std::vector<std::string>& lines);

// The words of an instruction, split at white space; quotes and escapes protect it and stay in the words.
std::vector<std::string> SplitWords(const std::string& text, char escape);

// Expands ${x}, ${x:-y}, ${x-y}, ${x:+y}, ${x+y}, ${x:?text} and $x in one word, removes quotes and escapes:
// 'single' quotes protect everything, "double" ones white space. An unknown variable is empty.
Result<std::string> ExpandWord(const std::string& word, const std::map<std::string, std::string>& variables,
                               char escape);
// The same over a here-document: quotes are ordinary characters.
Result<std::string> ExpandText(const std::string& text, const std::map<std::string, std::string>& variables,
                               char escape);

// "RUN" at line 3: a message with its place.
Status InstructionError(const Instruction& instruction, const std::string& message);

}  // namespace lydian::image
