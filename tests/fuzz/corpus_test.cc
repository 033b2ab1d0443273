// Runs every kept input through its target once: what fuzzing has found stays mended without a fuzz build.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "base/fd.h"
#include "fuzz.h"

namespace lydian::fuzz {

std::map<std::string, Target>& Targets() {
  static auto* targets = new std::map<std::string, Target>();
  return *targets;
}

namespace {

const std::filesystem::path kCorpus = LYDIAN_FUZZ_CORPUS;

TEST(FuzzCorpus, EveryFolderHasATargetAndEveryTargetSeeds) {
  size_t folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kCorpus)) {
    EXPECT_TRUE(Targets().contains(entry.path().filename())) << entry.path();
    ++folders;
  }
  EXPECT_EQ(folders, Targets().size());
}

class FuzzCorpus : public testing::TestWithParam<std::string> {};

TEST_P(FuzzCorpus, Replays) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(kCorpus / GetParam()))
    files.push_back(entry.path());
  ASSERT_FALSE(files.empty());
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    SCOPED_TRACE(file);
    auto input = ReadFile(file);
    ASSERT_TRUE(input.ok());
    Targets().at(GetParam())(*input);
  }
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& [name, target] : Targets()) names.push_back(name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpus, testing::ValuesIn(Names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lydian::fuzz
