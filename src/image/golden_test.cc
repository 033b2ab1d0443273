// Dockerfiles and what they become, as text: tests/golden/dockerfile/*.dockerfile beside *.txt.
// LYDIAN_UPDATE_GOLDEN=1 writes the texts anew.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/fd.h"
#include "image/dockerfile.h"
#include "image/stage.h"

namespace lydian::image {
namespace {

std::string Quote(const std::string& text) {
  std::string out = "\"";
  for (char c : text) out += c == '\n' ? "\\n" : c == '"' ? "\\\"" : std::string(1, c);
  return out + "\"";
}

template <typename List>
std::string QuoteAll(const List& list) {
  std::string out;
  for (const auto& item : list) out += " " + Quote(item);
  return out;
}

void DumpStep(std::ostream& out, const Step& step) {
  switch (step.kind) {
    case Step::kConfig:
      return;
    case Step::kMakeDir:
      out << "  mkdir " << step.workdir << " user=" << Quote(step.user) << "\n";
      return;
    case Step::kRun:
      out << "  run" << QuoteAll(step.argv) << "\n    in " << step.workdir << " user=" << Quote(step.user)
          << (step.no_network ? " no network" : "")
          << (step.script.empty() ? "" : " script=" + Quote(step.script)) << "\n    env" << QuoteAll(step.env)
          << "\n";
      return;
    case Step::kCopy:
      out << "  " << (step.unpack ? "add" : "copy") << QuoteAll(step.sources) << " to " << step.destination;
      if (!step.from.empty()) out << " from=" << step.from;
      if (!step.chown.empty()) out << " chown=" << step.chown;
      if (step.chmod >= 0) out << " chmod=" << std::oct << step.chmod << std::dec;
      for (const auto& file : step.files) out << "\n    file " << file.name << " " << Quote(file.content);
      out << "\n";
      return;
  }
}

std::string Dump(const std::string& text) {
  std::ostringstream out;
  auto file = ParseDockerfile({text});
  if (!file.ok()) return file.status().ToString() + "\n";
  auto plan = MakePlan(*file, {});
  if (!plan.ok()) return plan.status().ToString() + "\n";
  for (size_t i : plan->Needed()) {
    const Stage& stage = plan->stages[i];
    out << "stage " << i << " " << Quote(stage.name) << " from " << stage.base << "\n";
    StageState state({}, *plan, {});
    for (const auto& one : stage.instructions) {
      auto step = state.Apply(one);
      if (!step.ok()) {
        out << "  " << step.status().ToString() << "\n";
        break;
      }
      DumpStep(out, *step);
    }
    const ImageConfig& config = state.config();
    out << "  config env" << QuoteAll(config.env()) << "\n    workdir " << Quote(config.workdir()) << " user "
        << Quote(config.user()) << "\n    entrypoint" << QuoteAll(config.entrypoint()) << "\n    cmd"
        << QuoteAll(config.cmd()) << "\n    shell" << QuoteAll(config.shell()) << "\n";
  }
  return out.str();
}

TEST(Golden, Dockerfiles) {
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LYDIAN_GOLDEN_DIR)) {
    if (entry.path().extension() != ".dockerfile") continue;
    ++seen;
    auto text = ReadFile(entry.path().string());
    ASSERT_TRUE(text.ok());
    std::string expected = entry.path().string();
    expected.replace(expected.size() - 11, 11, ".txt");
    std::string got = Dump(*text);
    if (std::getenv("LYDIAN_UPDATE_GOLDEN") != nullptr) {
      ASSERT_TRUE(WriteFileAtomic(expected, got).ok());
    }
    auto golden = ReadFile(expected);
    ASSERT_TRUE(golden.ok()) << golden.status();
    EXPECT_EQ(got, *golden) << entry.path();
  }
  EXPECT_GE(seen, 2);
}

}  // namespace
}  // namespace lydian::image
