#include "image/stage.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <set>

#include "base/ids.h"
#include "base/paths.h"

namespace lydian::image {
namespace {

using nlohmann::json;

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

std::string Dump(const json& value) { return value.dump(-1, ' ', true, json::error_handler_t::replace); }

// Known to every build, but only where an ARG asks for them.
const std::map<std::string, std::string>& PlatformArgs() {
  static const std::map<std::string, std::string> args = {{"TARGETPLATFORM", "linux/amd64"},
                                                          {"TARGETOS", "linux"},
                                                          {"TARGETARCH", "amd64"},
                                                          {"TARGETVARIANT", ""},
                                                          {"BUILDPLATFORM", "linux/amd64"},
                                                          {"BUILDOS", "linux"},
                                                          {"BUILDARCH", "amd64"},
                                                          {"BUILDVARIANT", ""}};
  return args;
}

// What a process can be started with: a quarter of the usual stack limit, arguments and environment together.
constexpr size_t kMostOfVariables = size_t{2} << 20;

Status CheckTogether(const Instruction& instruction, const std::map<std::string, std::string>& variables) {
  size_t bytes = 0;
  for (const auto& [key, value] : variables) bytes += key.size() + value.size() + 2;
  if (bytes <= kMostOfVariables) return OkStatus();
  return InstructionError(instruction, "the variables take more than " + std::to_string(kMostOfVariables) +
                                           " bytes together; put what is so long into a file and COPY it");
}

bool ValidName(const std::string& name) {
  if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0]))) return false;
  return std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-' || c == '.'; });
}

Result<std::string> ExpandFor(const Instruction& instruction, const std::string& word,
                              const std::map<std::string, std::string>& variables, char escape) {
  auto expanded = ExpandWord(word, variables, escape);
  if (!expanded.ok()) return InstructionError(instruction, expanded.status().message());
  return expanded;
}

// "K" and "V" of ENV and LABEL: `K=V K2="v 2"`, or the old `K the rest`.
Result<std::vector<std::pair<std::string, std::string>>> Pairs(const Instruction& instruction, char escape) {
  std::vector<std::pair<std::string, std::string>> pairs;
  auto words = SplitWords(instruction.rest, escape);
  if (words[0].find('=') == std::string::npos) {
    if (words.size() < 2) return InstructionError(instruction, words[0] + " has no value");
    size_t value = instruction.rest.find_first_not_of(" \t", words[0].size());
    pairs.emplace_back(words[0], instruction.rest.substr(value));
    return pairs;
  }
  for (const auto& word : words) {
    size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0)
      return InstructionError(instruction, "\"" + word.substr(0, 80) + "\" is not KEY=VALUE");
    pairs.emplace_back(word.substr(0, equals), word.substr(equals + 1));
  }
  return pairs;
}

Status TakeFrom(const Instruction& one, Plan& plan) {
  for (const auto& [flag, value] : one.flags) {
    if (flag != "platform") return InstructionError(one, "--" + flag + " is not known");
    ASSIGN_OR_RETURN(std::string platform, ExpandFor(one, value, PlatformArgs(), plan.escape));
    if (platform != "linux/amd64" && platform != "linux/x86_64" && platform != "amd64")
      return Unimplemented(
          InstructionError(one, "platform " + platform + ": only linux/amd64 can be built here").message());
  }
  auto words = SplitWords(one.rest, plan.escape);
  if (words.size() != 1 && !(words.size() == 3 && Lower(words[1]) == "as"))
    return InstructionError(one, "expected FROM image [AS name]");
  Stage stage{.from = one};
  ASSIGN_OR_RETURN(stage.base, ExpandFor(one, words[0], plan.global_args, plan.escape));
  if (stage.base.empty()) return InstructionError(one, words[0] + " is empty: its ARG needs a value");
  if (words.size() == 3) {
    stage.name = Lower(words[2]);
    if (!ValidName(stage.name))
      return InstructionError(one, "\"" + words[2] + "\" is not a name for a stage");
    for (const auto& other : plan.stages)
      if (other.name == stage.name) return InstructionError(one, "there are two stages named " + stage.name);
  }
  plan.stages.push_back(std::move(stage));
  return OkStatus();
}

// Each KEY[=VALUE] of an ARG.
Result<std::vector<std::pair<std::string, std::string>>> ArgWords(const Instruction& one, char escape) {
  std::vector<std::pair<std::string, std::string>> words;
  for (const auto& word : SplitWords(one.rest, escape)) {
    size_t equals = word.find('=');
    std::string name = word.substr(0, equals);
    if (!ValidName(name))
      return InstructionError(one, "\"" + name.substr(0, 80) + "\" is not a variable's name");
    words.emplace_back(name, equals == std::string::npos ? "" : word.substr(equals));
  }
  return words;
}

}  // namespace

std::string ChainDigest(const std::string& parent, const std::string& canonical, const std::string& inputs) {
  return Sha256Hex("chain 1\n" + std::to_string(parent.size()) + ":" + parent +
                   std::to_string(canonical.size()) + ":" + canonical + std::to_string(inputs.size()) + ":" +
                   inputs);
}

int Plan::Find(const std::string& reference, size_t before) const {
  for (size_t i = 0; i < before && i < stages.size(); ++i)
    if (!stages[i].name.empty() && stages[i].name == Lower(reference)) return static_cast<int>(i);
  bool number =
      !reference.empty() && reference.size() < 6 &&
      std::all_of(reference.begin(), reference.end(), [](unsigned char c) { return std::isdigit(c); });
  if (number && std::stoul(reference) < before) return std::stoi(reference);
  return -1;
}

std::vector<size_t> Plan::Needed() const {
  std::set<size_t> needed = {stages.size() - 1};
  for (size_t i = stages.size(); i-- > 0;) {
    if (!needed.contains(i)) continue;
    if (int base = Find(stages[i].base, i); base >= 0) needed.insert(base);
    for (const auto& one : stages[i].instructions)
      if (int from = one.HasFlag("from") ? Find(one.Flag("from"), i) : -1; from >= 0) needed.insert(from);
  }
  return {needed.begin(), needed.end()};
}

Result<Plan> MakePlan(const Dockerfile& file, const std::map<std::string, std::string>& build_args) {
  Plan plan;
  plan.escape = file.escape;
  for (const auto& one : file.instructions) {
    if (one.name == "FROM") {
      RETURN_IF_ERROR(TakeFrom(one, plan));
    } else if (!plan.stages.empty()) {
      plan.stages.back().instructions.push_back(one);
    } else if (one.name == "ARG") {
      ASSIGN_OR_RETURN(auto words, ArgWords(one, file.escape));
      for (const auto& [name, value] : words) {
        if (auto given = build_args.find(name); given != build_args.end()) {
          plan.global_args[name] = given->second;
        } else if (!value.empty()) {
          ASSIGN_OR_RETURN(plan.global_args[name],
                           ExpandFor(one, value.substr(1), plan.global_args, file.escape));
        }
      }
      RETURN_IF_ERROR(CheckTogether(one, plan.global_args));
    } else {
      return InstructionError(one, "only ARG may stand before the first FROM");
    }
  }
  if (plan.stages.empty()) return InvalidArgument("the Dockerfile has no FROM");
  return plan;
}

StageState::StageState(ImageConfig base, const Plan& plan, std::map<std::string, std::string> build_args)
    : config_(std::move(base)),
      escape_(plan.escape),
      global_args_(plan.global_args),
      build_args_(std::move(build_args)) {}

std::map<std::string, std::string> StageState::Variables() const {
  std::map<std::string, std::string> variables = args_;
  for (const auto& entry : config_.env()) {
    size_t equals = entry.find('=');
    if (equals != std::string::npos) variables[entry.substr(0, equals)] = entry.substr(equals + 1);
  }
  variables.emplace(
      "PATH", kDefaultPath);  // of an image that says nothing, so that PATH=/more:$PATH adds to something
  return variables;
}

std::vector<std::string> StageState::RunEnv() const {
  std::vector<std::string> env;
  for (const auto& [key, value] : Variables()) env.push_back(key + "=" + value);
  return env;
}

Result<std::string> StageState::Expand(const Instruction& instruction, const std::string& word) const {
  return ExpandFor(instruction, word, Variables(), escape_);
}

void StageState::SetEnv(const std::string& key, const std::string& value) {
  for (auto& entry : *config_.mutable_env()) {
    if (entry.compare(0, key.size() + 1, key + "=") == 0) {
      entry = key + "=" + value;
      return;
    }
  }
  config_.add_env(key + "=" + value);
}

Status StageState::Env(const Instruction& instruction) {
  ASSIGN_OR_RETURN(auto pairs, Pairs(instruction, escape_));
  auto before = Variables();  // what one line sets, the same line does not see
  std::vector<std::pair<std::string, std::string>> values;
  for (const auto& [key, value] : pairs) {
    ASSIGN_OR_RETURN(std::string name, ExpandFor(instruction, key, before, escape_));
    ASSIGN_OR_RETURN(std::string expanded, ExpandFor(instruction, value, before, escape_));
    if (name.empty() || name.find('=') != std::string::npos)
      return InstructionError(instruction, "an empty name");
    values.emplace_back(name, expanded);
  }
  for (const auto& [key, value] : values) SetEnv(key, value);
  return CheckTogether(instruction, Variables());
}

Status StageState::Arg(const Instruction& instruction) {
  ASSIGN_OR_RETURN(auto words, ArgWords(instruction, escape_));
  for (const auto& [name, value] : words) {
    if (auto given = build_args_.find(name); given != build_args_.end()) {
      args_[name] = given->second;
    } else if (!value.empty()) {
      ASSIGN_OR_RETURN(args_[name], Expand(instruction, value.substr(1)));
    } else if (auto global = global_args_.find(name); global != global_args_.end()) {
      args_[name] = global->second;
    } else if (auto platform = PlatformArgs().find(name); platform != PlatformArgs().end()) {
      args_[name] = platform->second;
    }
  }
  return CheckTogether(instruction, args_);
}

Status StageState::Shell(const Instruction& instruction) {
  if (!instruction.exec_form || instruction.list.empty())
    return InstructionError(instruction, "needs a JSON list, such as [\"/bin/bash\", \"-c\"]");
  config_.clear_shell();
  for (const auto& word : instruction.list) config_.add_shell(word);
  return OkStatus();
}

Result<Step> StageState::Apply(const Instruction& one) {
  Step step{.text = one.text};
  auto command = [&](google::protobuf::RepeatedPtrField<std::string>* target) {
    target->Clear();
    if (one.exec_form) {
      for (const auto& word : one.list) target->Add(std::string(word));
      return;
    }
    if (config_.shell().empty()) {
      target->Add("/bin/sh");
      target->Add("-c");
    } else {
      target->MergeFrom(config_.shell());
    }
    target->Add(std::string(one.rest));
  };
  if (one.name == "RUN") return Run(one);
  if (one.name == "COPY" || one.name == "ADD") return Copy(one);
  if (one.name == "WORKDIR") return Workdir(one);
  if (one.name == "ENV") {
    RETURN_IF_ERROR(Env(one));
  } else if (one.name == "ARG") {
    RETURN_IF_ERROR(Arg(one));
  } else if (one.name == "SHELL") {
    RETURN_IF_ERROR(Shell(one));
  } else if (one.name == "CMD") {
    command(config_.mutable_cmd());
    cmd_set_ = true;
  } else if (one.name == "ENTRYPOINT") {
    command(config_.mutable_entrypoint());
    if (!cmd_set_) config_.clear_cmd();  // the base's CMD belonged to the base's ENTRYPOINT
  } else if (one.name == "USER") {
    ASSIGN_OR_RETURN(*config_.mutable_user(), Expand(one, one.rest));
  } else if (one.name == "LABEL") {
    RETURN_IF_ERROR(Pairs(one, escape_).status());
  } else if (one.name == "ONBUILD") {
    return Unimplemented(
        InstructionError(one,
                         "triggers for later builds are not built; write the instruction where it is "
                         "needed")
            .message());
  }
  // MAINTAINER, EXPOSE, VOLUME, STOPSIGNAL and HEALTHCHECK say nothing that a container here would use.
  return step;
}

Result<Step> StageState::Run(const Instruction& one) {
  Step step{.kind = Step::kRun, .text = one.text};
  for (const auto& [flag, value] : one.flags) {
    if (flag == "network" && (value == "default" || value == "none")) {
      step.no_network = value == "none";
    } else if (flag == "mount") {
      return Unimplemented(
          InstructionError(one,
                           "--mount is not built; drop the flag (a cache mount only saves time), or "
                           "COPY the files that it would bind")
              .message());
    } else {
      return Unimplemented(InstructionError(one, "--" + flag + "=" + value + " is not built").message());
    }
  }
  std::vector<std::string> shell(config_.shell().begin(), config_.shell().end());
  if (shell.empty()) shell = {"/bin/sh", "-c"};
  std::string command = one.rest;
  if (one.exec_form) {
    if (one.list.empty()) return InstructionError(one, "the list is empty");
    step.argv = one.list;
  } else if (one.heredocs.size() == 1 && one.rest.find_first_of(" \t") == std::string::npos &&
             one.rest.starts_with("<<")) {
    command = one.heredocs[0].content;
    if (command.starts_with("#!")) step.script = command;
  } else {
    for (const auto& doc : one.heredocs) command += "\n" + doc.content + doc.name + "\n";
  }
  if (step.argv.empty()) {
    step.argv = shell;
    step.argv.push_back(command);
  }
  step.env = RunEnv();
  step.workdir = config_.workdir().empty() ? "/" : config_.workdir();
  step.user = config_.user();
  step.canonical = Dump({{"run", step.argv},
                         {"env", step.env},
                         {"cwd", step.workdir},
                         {"user", step.user},
                         {"script", step.script},
                         {"no_network", step.no_network}});
  return step;
}

Status StageState::CopyFlags(const Instruction& one, Step& step) {
  for (const auto& [flag, value] : one.flags) {
    if (flag == "from" && one.name == "COPY") {
      step.from = value;
    } else if (flag == "chown") {
      ASSIGN_OR_RETURN(step.chown, Expand(one, value));
    } else if (flag == "chmod") {
      bool octal = !value.empty() && value.size() <= 4 &&
                   std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '7'; });
      if (!octal) return InstructionError(one, "--chmod needs an octal mode such as 755, not " + value);
      step.chmod = std::stoi(value, nullptr, 8);
    } else if (flag != "link") {
      return Unimplemented(InstructionError(one, "--" + flag + " is not built").message());
    }
  }
  return OkStatus();
}

Result<Step> StageState::Copy(const Instruction& one) {
  Step step{.kind = Step::kCopy, .text = one.text};
  RETURN_IF_ERROR(CopyFlags(one, step));
  std::vector<std::string> words = one.exec_form ? one.list : SplitWords(one.rest, escape_);
  if (words.size() < 2) return InstructionError(one, "needs sources and a destination");
  auto docs = one.heredocs.begin();
  for (size_t i = 0; i < words.size(); ++i) {
    if (docs != one.heredocs.end() && words[i].starts_with("<<")) {
      Heredoc doc = *docs++;
      if (doc.expand) {
        auto text = ExpandText(doc.content, Variables(), escape_);
        if (!text.ok()) return InstructionError(one, text.status().message());
        doc.content = *text;
      }
      step.files.push_back(std::move(doc));
      continue;
    }
    ASSIGN_OR_RETURN(std::string word, Expand(one, words[i]));
    if (i + 1 == words.size()) {
      bool folder = word.ends_with("/") || word.ends_with("/.") || word == "." || word == "..";
      step.destination = JoinPath(config_.workdir().empty() ? "/" : config_.workdir(), word);
      if (folder && step.destination != "/") step.destination += "/";
    } else if (one.name == "ADD" && (word.find("://") != std::string::npos || word.starts_with("git@"))) {
      return Unimplemented(
          InstructionError(one,
                           "a URL is not fetched; use RUN curl or RUN git clone, or download the file and "
                           "COPY it")
              .message());
    } else {
      step.sources.push_back(word);
    }
  }
  if (step.destination.empty()) return InstructionError(one, "needs a destination");
  if (step.sources.size() + step.files.size() > 1 && !step.destination.ends_with("/"))
    return InstructionError(one, "several sources need a destination that ends with /");
  step.unpack = one.name == "ADD";
  json files = json::array();
  for (const auto& file : step.files) files.push_back({file.name, file.content});
  step.canonical = Dump({{"copy", step.sources},
                         {"files", files},
                         {"to", step.destination},
                         {"from", step.from},
                         {"chown", step.chown},
                         {"chmod", step.chmod},
                         {"unpack", step.unpack}});
  return step;
}

Result<Step> StageState::Workdir(const Instruction& one) {
  ASSIGN_OR_RETURN(std::string path, Expand(one, one.rest));
  if (path.empty()) return InstructionError(one, "is empty");
  config_.set_workdir(JoinPath(config_.workdir().empty() ? "/" : config_.workdir(), path));
  Step step{.kind = Step::kMakeDir, .text = one.text, .workdir = config_.workdir(), .user = config_.user()};
  step.canonical = Dump({{"dir", step.workdir}, {"user", step.user}});
  return step;
}

}  // namespace lydian::image
