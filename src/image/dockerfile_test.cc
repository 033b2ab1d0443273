#include "image/dockerfile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/paths.h"
#include "image/stage.h"

namespace lydian::image {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Dockerfile Parse(const std::vector<std::string>& lines) {
  auto file = ParseDockerfile(lines);
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? *file : Dockerfile{};
}

std::string Error(const std::vector<std::string>& lines) {
  auto file = ParseDockerfile(lines);
  if (!file.ok()) return file.status().message();
  auto plan = MakePlan(*file, {});
  if (!plan.ok()) return plan.status().message();
  for (const auto& stage : plan->stages) {
    StageState state({}, *plan, {});
    for (const auto& one : stage.instructions)
      if (auto step = state.Apply(one); !step.ok()) return step.status().message();
  }
  return "";
}

TEST(Dockerfile, ContinuesAcrossListItemsAndSkipsComments) {
  auto file = Parse({"FROM base", "RUN apt-get install \\", "  # not part of it", "", "  gcc \\", "  make",
                     "CMD [\"a\", \"b\"]"});
  ASSERT_EQ(file.instructions.size(), 3u);
  EXPECT_EQ(file.instructions[1].rest, "apt-get install   gcc   make");
  EXPECT_EQ(file.instructions[1].line, 2);
  EXPECT_TRUE(file.instructions[2].exec_form);
  EXPECT_THAT(file.instructions[2].list, ElementsAre("a", "b"));
}

TEST(Dockerfile, EscapeDirective) {
  auto file = Parse({"# escape=`\nFROM base\nRUN a `\n b \\\nRUN c"});
  ASSERT_EQ(file.instructions.size(), 3u);
  EXPECT_EQ(file.instructions[1].rest, "a  b \\");
  EXPECT_THAT(Error({"# escape=x", "FROM a"}), HasSubstr("line 1"));
}

TEST(Dockerfile, Heredocs) {
  auto file = Parse({"FROM base", "RUN <<EOF", "a", " b", "EOF", "RUN python3 <<-'X' > /o", "\tprint(\"$y\")",
                     "\tX", "COPY <<a <<\"b\" /d/", "1", "a", "2", "b", "RUN cat <<<x"});
  ASSERT_EQ(file.instructions.size(), 5u);
  EXPECT_EQ(file.instructions[1].heredocs[0].content, "a\n b\n");
  EXPECT_EQ(file.instructions[2].heredocs[0].content, "print(\"$y\")\n");
  EXPECT_FALSE(file.instructions[2].heredocs[0].expand);
  EXPECT_EQ(file.instructions[3].heredocs.size(), 2u);
  EXPECT_TRUE(file.instructions[4].heredocs.empty());
  EXPECT_THAT(Error({"FROM base", "RUN <<EOF", "a"}), HasSubstr("line 2: RUN: the here-document <<EOF"));
}

TEST(Dockerfile, Expansion) {
  std::map<std::string, std::string> v = {{"a", "1"}, {"e", ""}};
  auto x = [&](const std::string& word) {
    auto out = ExpandWord(word, v, '\\');
    return out.ok() ? *out : out.status().message();
  };
  EXPECT_EQ(x("$a/${a}/$none."), "1/1/.");
  EXPECT_EQ(x("${none:-d}${e:-d}${e-d}"), "dd");
  EXPECT_EQ(x("${a:+y}${e:+y}${e+y}"), "yy");
  EXPECT_EQ(x("${none:-${a}b}"), "1b");
  EXPECT_EQ(x("'$a'\"$a b\"\\$a"), "$a1 b$a");
  EXPECT_EQ(x("'a'\"'\"'b'"), "a'b");
  EXPECT_EQ(x("${none:?is needed}"), "none: is needed");
  EXPECT_THAT(x("${a"), HasSubstr("without"));
  EXPECT_THAT(x("'a"), HasSubstr("not closed"));
  EXPECT_EQ(x("$"), "$");
}

// Forty lines would ask for a terabyte.
TEST(Stage, DoublingAVariableEnds) {
  std::vector<std::string> env = {"FROM a", "ENV A=xxxxxxxx"}, arg = {"ARG A=xxxxxxxx"};
  for (int i = 0; i < 24; ++i) {
    env.push_back("ENV A=$A$A");
    arg.push_back("ARG A=\"${A:-x}$A\"");
  }
  EXPECT_THAT(Error(env), HasSubstr("ENV: becomes longer than 131072 bytes"));
  EXPECT_THAT(Error(arg), HasSubstr("ARG: becomes longer than 131072 bytes"));
}

// Each within its bounds, and together more than any process is started with.
TEST(Stage, VariablesTogetherAreBounded) {
  std::vector<std::string> lines = {"FROM a", "ENV A=" + std::string(100'000, 'x')};
  for (int i = 0; i < 30; ++i) lines.push_back("ENV A" + std::to_string(i) + "=$A");
  EXPECT_THAT(Error(lines), HasSubstr("variables take more than 2097152 bytes together"));
}

TEST(Stage, AHereDocumentDoesNotExplode) {
  std::string document;
  for (int i = 0; i < 100; ++i) document += "$A";
  EXPECT_THAT(Error({"FROM a", "ENV A=" + std::string(100'000, 'x'), "COPY <<E /d", document, "E"}),
              HasSubstr("COPY: becomes longer than 4194304 bytes"));
}

TEST(Stage, ErrorsNameLineAndInstruction) {
  EXPECT_EQ(Error({"FROM a", "", "FOO x"}), "Dockerfile line 3: unknown instruction FOO");
  EXPECT_THAT(Error({"RUN x"}), HasSubstr("line 1: RUN: only ARG"));
  EXPECT_THAT(Error({"FROM a", "RUN --mount=type=cache,target=/x y"}),
              HasSubstr("line 2: RUN: --mount is not built"));
  EXPECT_THAT(Error({"FROM a", "COPY x"}), HasSubstr("line 2: COPY: needs sources"));
  EXPECT_THAT(Error({"FROM a", "ADD http://x/y /z"}), HasSubstr("URL"));
  EXPECT_THAT(Error({"FROM a", "ONBUILD RUN x"}), HasSubstr("ONBUILD"));
  EXPECT_THAT(Error({"FROM a", "ENV x"}), HasSubstr("x has no value"));
  EXPECT_THAT(Error({"FROM a", "COPY a b /c"}), HasSubstr("ends with /"));
  EXPECT_EQ(Error({}), "the Dockerfile has no FROM");
}

TEST(Stage, NeededStages) {
  auto plan = MakePlan(
      Parse({"FROM a AS one", "FROM b AS two", "FROM c", "COPY --from=ONE /x /y", "COPY --from=img /x /y"}),
      {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->Needed(), ElementsAre(0u, 2u));
  EXPECT_EQ(plan->Find("0", 2), 0);
  EXPECT_EQ(plan->Find("2", 2), -1);
}

TEST(Stage, JoinPathStaysInside) {
  EXPECT_EQ(JoinPath("/a", "b/./../c"), "/a/c");
  EXPECT_EQ(JoinPath("/a", "../../.."), "/");
  EXPECT_EQ(JoinPath("/a", "/x//y/"), "/x/y");
}

TEST(Stage, ChainDigestDependsOnEachPart) {
  std::string base = ChainDigest("a", "b", "c");
  EXPECT_NE(base, ChainDigest("ab", "", "c"));
  EXPECT_NE(base, ChainDigest("a", "bc", ""));
  EXPECT_EQ(base, ChainDigest("a", "b", "c"));
}

}  // namespace
}  // namespace lydian::image
