// What a Dockerfile's instructions do to an image: stages, the config as it evolves, and the steps that
// change files, as values. No I/O. Thread-safety: pure functions; a StageState is used by one thread at a
// time. Errors: INVALID_ARGUMENT (what is written is wrong) or UNIMPLEMENTED (not built), with line and
// instruction.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "image/dockerfile.h"
#include "lydian/worker.pb.h"

namespace lydian::image {

struct Stage {
  std::string name;  // of "AS name", lower case; or empty
  std::string base;  // what FROM names, expanded
  Instruction from;
  std::vector<Instruction> instructions;  // without FROM
};

struct Plan {
  std::vector<Stage> stages;  // at least one; the last is the image
  std::map<std::string, std::string> global_args;
  char escape = '\\';
  // Which stages the last one needs, itself included, in order.
  std::vector<size_t> Needed() const;
  // The stage that `reference` (a name or an index) means to a COPY or FROM in stage `before`; -1 = none.
  int Find(const std::string& reference, size_t before) const;
};

Result<Plan> MakePlan(const Dockerfile& file, const std::map<std::string, std::string>& build_args);

struct Step {
  enum Kind {
    kConfig,  // the config took it; no files change
    kRun,
    kCopy,
    kMakeDir,  // WORKDIR
  };
  Kind kind = kConfig;
  std::string text;       // for logs
  std::string canonical;  // everything that its result depends on but the parent and the input files

  // kRun
  std::vector<std::string> argv;
  std::vector<std::string> env;  // ENV and ARG, complete
  std::string script;            // a here-document with #!: the content to run as a file
  bool no_network = false;
  // kRun, kMakeDir
  std::string workdir;  // absolute
  std::string user;     // "" = root
  // kCopy
  std::vector<std::string> sources;  // patterns below the context root, or paths in `from`
  std::vector<Heredoc> files;        // here-documents, expanded
  std::string destination;           // absolute; ends with / when it was written as a folder
  std::string from;                  // stage or image; "" = the context
  std::string chown;                 // "user:group", as written
  int chmod = -1;
  bool unpack = false;  // ADD
};

// The config of one stage while its instructions pass by.
class StageState {
 public:
  StageState(ImageConfig base, const Plan& plan, std::map<std::string, std::string> build_args);

  Result<Step> Apply(const Instruction& instruction);
  const ImageConfig& config() const { return config_; }

 private:
  Status Env(const Instruction& instruction);
  Status Arg(const Instruction& instruction);
  Status Shell(const Instruction& instruction);
  Result<Step> Run(const Instruction& instruction);
  Result<Step> Copy(const Instruction& instruction);
  Status CopyFlags(const Instruction& instruction, Step& step);
  Result<Step> Workdir(const Instruction& instruction);
  Result<std::string> Expand(const Instruction& instruction, const std::string& word) const;
  std::map<std::string, std::string> Variables() const;
  std::vector<std::string> RunEnv() const;
  void SetEnv(const std::string& key, const std::string& value);

  ImageConfig config_;
  char escape_;
  std::map<std::string, std::string> global_args_, build_args_;
  std::map<std::string, std::string> args_;  // declared in this stage
  bool cmd_set_ = false;
};

inline constexpr const char* kDefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

// A chain of digests: what a layer is named after.
std::string ChainDigest(const std::string& parent, const std::string& canonical, const std::string& inputs);

}  // namespace lydian::image
